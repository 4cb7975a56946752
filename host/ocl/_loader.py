"""Loaders of batches from shards, in step over workers and ranks."""
import dataclasses
import itertools

from torch import distributed
from torch.utils.data import DataLoader

from ocl._shards import ShardError, new_pass


class _BatchLoader(DataLoader):
    """Loader of a pipe over a `ShardReader` that already yields batches.

    Args:
        dataset: the pipe.
        samples_per_batch: number of samples in a batch of the pipe.
        size: declared number of samples, or None.
        num_workers: number of worker processes.
        **options: further options of `DataLoader`; Lightning passes them all when it rebuilds a loader.
    """

    def __init__(self, dataset, samples_per_batch, size, num_workers=0, **options):
        options.update(batch_size=None, collate_fn=identity)
        super().__init__(dataset, num_workers=num_workers, **options)
        self.samples_per_batch = samples_per_batch
        self.size = size

    @property
    def n_readers(self):
        """Number of workers that get something to read if there is only one rank."""
        return max(1, min(self.num_workers, len(self.dataset.source.shards)))

    def read(self, current_pass):
        """Iterate the batches of one pass on this rank."""
        self.dataset.source.current_pass = current_pass
        return super().__iter__()


class EvaluationLoader(_BatchLoader):
    """Yields every sample once, over all workers and ranks.

    The length is an upper bound, because every worker may end with a partial batch. With several ranks it is
    not known.
    """

    def __iter__(self):
        return self.read(new_pass())

    def __len__(self):
        if self.size is None or _world_size() > 1:
            raise TypeError("The number of batches is not known in advance.")
        return (self.size + self.n_readers * (self.samples_per_batch - 1)) // self.samples_per_batch


class TrainingLoader(_BatchLoader):
    """Yields full batches only, equally many on each rank.

    Several readers lose more samples in partial batches than one. If the size is declared, they start over
    until there are as many batches as the length says: Lightning validates after the last one, and ranks wait
    for each other. Without a declared size all ranks end with the first that runs out.
    """

    def __iter__(self):
        current_pass = new_pass()
        if self.size is not None and (self.n_readers > 1 or current_pass.world_size > 1):
            return self._declared_number_of_batches(current_pass)
        batches = self.read(current_pass)
        return batches if current_pass.world_size == 1 else self._in_step(batches)

    def __len__(self):
        if self.size is None:
            raise TypeError("The number of batches is not known in advance.")
        return self.size // (self.samples_per_batch * _world_size())

    def _declared_number_of_batches(self, first_pass):
        missing = len(self)
        for repetition in itertools.count():
            # A single rank may have more than declared, several have to end together.
            limit = None if repetition == 0 and first_pass.world_size == 1 else missing
            current_pass = dataclasses.replace(first_pass, seed=first_pass.seed + repetition)
            n_batches = 0
            for batch in itertools.islice(self.read(current_pass), limit):
                n_batches += 1
                yield batch
            missing -= n_batches
            if missing <= 0:
                return
            self._check_progress(n_batches)

    def _in_step(self, batches):
        for n_batches in itertools.count():
            batch = next(batches, None)
            ready = [None] * _world_size()
            distributed.all_gather_object(ready, batch is not None)
            if not all(ready):
                self._check_progress(n_batches)
                return
            yield batch

    def _check_progress(self, n_batches):
        if n_batches == 0:
            raise ShardError(
                f"No reader has a full batch of {self.samples_per_batch} training samples. Use a smaller "
                "batch_size, fewer workers or more data, and check which samples the filters keep."
            )


def _world_size():
    return distributed.get_world_size() if distributed.is_available() and distributed.is_initialized() else 1


def identity(batch):
    return batch
