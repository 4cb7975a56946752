"""Loaders of batches from shards, in step over workers and ranks."""
import dataclasses
import itertools
import logging

import torch
from torch import distributed
from torch.utils.data import DataLoader, IterableDataset

from ocl._pipe import group
from ocl._randomness import draw_seed, with_own_randomness
from ocl._shards import Damage, ShardError, gather, new_pass, world_size

log = logging.getLogger(__name__)


@dataclasses.dataclass
class Rest:
    """The last samples of a reader, too few for a batch."""

    samples: list


class Batches(IterableDataset):
    """Batches of samples; between them `Damage` that was skipped, and at last a `Rest` of training samples.

    Args:
        samples: pipe of samples.
        finish: pipe without a source that makes batches of lists of samples.
        batch_size: number of samples in a batch.
        keep_partial: whether the last samples form a smaller batch instead of a `Rest`.
    """

    def __init__(self, samples, finish, batch_size, keep_partial):
        super().__init__()
        self.samples = samples
        self.finish = finish
        self.batch_size = batch_size
        self.keep_partial = keep_partial

    def __iter__(self):
        rest, damage = [], self.samples.source.damage
        for batch in self.form(self.samples, rest):
            yield from _empty(damage)
            yield batch
        yield from _empty(damage)
        if rest:
            yield Rest(rest)

    def form(self, samples, rest):
        """Yield batches of samples, and leave in the list `rest` those that do not fill one."""
        return self.finish.run(group(samples, self.batch_size, self.keep_partial, rest))


def _empty(items):
    while items:
        yield items.pop(0)


class _SeededLoader(DataLoader):
    """Loader of a dataset of batches, in which everything random follows from a seed."""

    def __init__(self, dataset, **options):
        options.update(batch_size=None, collate_fn=identity)
        super().__init__(dataset, **options)

    def items(self, seed):
        """Iterate the dataset, and leave the random generators of this process alone."""
        self.generator = torch.Generator().manual_seed(seed)  # gives the workers their seeds
        items = super().__iter__()
        return items if self.num_workers else with_own_randomness(items, seed)


class _BatchLoader(_SeededLoader):
    """Loader of `Batches` over shards.

    Args:
        dataset: the `Batches`.
        size: declared number of samples, or None.
        num_workers: number of worker processes.
        on_damage: called in this process with each `Damage` that a reader skipped.
        **options: further options of `DataLoader`; Lightning passes them all when it rebuilds a loader.
    """

    def __init__(self, dataset, size, num_workers=0, on_damage=None, **options):
        super().__init__(dataset, num_workers=num_workers, **options)
        self.size = size
        self.on_damage = on_damage

    @property
    def n_readers(self):
        """Number of workers that get something to read if there is only one rank."""
        return max(1, min(self.num_workers, len(self.dataset.samples.source.shards)))

    def read(self, current_pass):
        """Iterate the batches, and the rests, of one pass on this rank."""
        self.dataset.samples.source.current_pass = current_pass
        for item in self.items(current_pass.seed + current_pass.rank):
            if isinstance(item, Damage):
                self.on_damage(item)
            else:
                yield item


class EvaluationLoader(_BatchLoader):
    """Yields every sample once, over all workers and ranks, and leaves the random generators alone.

    The length is an upper bound, because every worker may end with a partial batch. With several ranks it is
    not known.
    """

    def __iter__(self):
        current_pass = new_pass(draw_seed(advance=False))
        return self._some(self.read(current_pass)) if current_pass.world_size > 1 else self.read(current_pass)

    def __len__(self):
        if self.size is None or world_size() > 1:
            raise TypeError("The number of batches is not known in advance.")
        batch_size = self.dataset.batch_size
        return (self.size + self.n_readers * (batch_size - 1)) // batch_size

    @staticmethod
    def _some(batches):
        """Yield the batches; a rank without any could not take part when metrics are put together."""
        first = next(batches, None)
        if first is None:
            raise ShardError("A rank has no sample to evaluate: there are too few for so many ranks.")
        yield first
        yield from batches


class TrainingLoader(_BatchLoader):
    """Yields full batches only, equally many on each rank, and every sample at most once.

    What is left by the readers is put together to further full batches, at the end also across ranks: only
    the samples that do not fill a batch on each rank are dropped.

    Args:
        begin_pass: called at the start of a pass; returns its seed, and the number of its batches that
            training has seen before it was interrupted.
    """

    def __init__(self, dataset, size, num_workers=0, on_damage=None, begin_pass=None, **options):
        super().__init__(dataset, size, num_workers, on_damage, **options)
        self.begin_pass = begin_pass

    def __iter__(self):
        seed, n_seen = self.begin_pass()
        if n_seen:
            log.info("Reading over the %d batches of this epoch that are done", n_seen)
        yield from itertools.islice(self._batches(new_pass(seed)), n_seen, None)

    def __len__(self):
        if self.size is None:
            raise TypeError("The number of batches is not known in advance.")
        return self.size // (self.dataset.batch_size * world_size())

    def _batches(self, first_pass):
        """Yield the batches of a pass, and of further ones if there are fewer than declared.

        Lightning validates after the last declared batch.
        """
        n_batches, declared = 0, 0 if self.size is None else len(self)
        for repetition in itertools.count():
            before = n_batches
            current_pass = dataclasses.replace(first_pass, seed=first_pass.seed + repetition)
            read = self._in_step if current_pass.world_size > 1 else self._full_batches
            for batch in read(self.read(current_pass)):
                n_batches += 1
                yield batch
            if n_batches == before:
                raise ShardError(
                    f"There is no full batch of {self.dataset.batch_size} training samples. Use a smaller "
                    "batch_size or more data, and check which samples the filters keep."
                )
            if n_batches >= declared:
                return
            if repetition == 0:
                log.warning(
                    "The training data gave %d batches instead of the %d that train_size=%d promises, and is "
                    "read again. Count it with ocl_compute_dataset_size.", n_batches, declared, self.size
                )

    def _full_batches(self, items):
        rest = []
        yield from self._whole(items, rest)
        yield from self.dataset.form(rest, [])

    @staticmethod
    def _whole(items, rest):
        """Yield the batches, and collect the samples left over in the list `rest`."""
        for item in items:
            if isinstance(item, Rest):
                rest += item.samples
            else:
                yield item

    def _in_step(self, items):
        """Yield as many batches as the other ranks; the last ones are shared out evenly."""
        rest = []
        batches = self._whole(items, rest)
        for batch in batches:
            if not all(gather(True)):
                break
            yield batch
        else:
            batch = None
            gather(False)
        spare = [] if batch is None else [batch, *batches]
        spare, rest = (list(itertools.chain.from_iterable(gather(part))) for part in (spare, rest))
        spare += self.dataset.form(rest, [])
        n_ranks = world_size()
        yield from spare[distributed.get_rank() :: n_ranks][: len(spare) // n_ranks]


class PlainLoader(_SeededLoader):
    """Loader of a pipe of batches in this process, for each rank its own.

    Args:
        dataset: the pipe.
        begin_pass: as for `TrainingLoader`; for evaluation None.
        **options: further options of `DataLoader`.
    """

    def __init__(self, dataset, begin_pass=None, **options):
        super().__init__(dataset, **options)
        self.begin_pass = begin_pass

    def __iter__(self):
        seed, n_seen = self.begin_pass() if self.begin_pass else (draw_seed(advance=False), 0)
        yield from itertools.islice(self.items(seed), n_seen, None)


def identity(batch):
    return batch
