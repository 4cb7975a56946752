"""Loaders of batches from shards, in step over workers and ranks."""

import dataclasses
import itertools
import logging
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Optional

import torch
from torch.utils.data import IterableDataset

from ocl._loader.pipe import Pipe, group
from ocl._loader.random_state import draw_seed, with_own_randomness
from ocl._loader.ranks import Pass, gather, new_pass, world_size
from ocl._loader.shards import Damage
from ocl._loader.workers import WORKER_TIMEOUT, SentByValue, WorkerLoader
from ocl.errors import ShardError

log = logging.getLogger(__name__)


@dataclasses.dataclass
class Rest:
    """The last samples of a reader, too few for a batch."""

    samples: list


class Batches(SentByValue):
    """Batches of samples; between them `Damage` that was skipped, and at last a `Rest` of training samples.

    Args:
        samples: pipe of samples.
        finish: pipe without a source that makes batches of lists of samples.
        batch_size: number of samples in a batch.
        keep_partial: form a smaller batch of the last samples instead of a `Rest`.
    """

    def __init__(self, samples: Pipe, finish: Pipe, batch_size: int, keep_partial: bool):
        self.samples, self.finish, self.batch_size, self.keep_partial = samples, finish, batch_size, keep_partial

    def __iter__(self) -> Iterator:
        rest: list = []
        damage: list[Damage] = self.samples.source.damage
        for batch in self.form(self.samples, rest):
            yield from _empty(damage)
            yield batch
        yield from _empty(damage)
        if rest:
            yield Rest(rest)

    def form(self, samples: Iterable, rest: list) -> Iterator:
        """Yield batches of samples, and leave in the list `rest` those that do not fill one."""
        return self.finish.run(group(samples, self.batch_size, self.keep_partial, rest))


def _empty(items: list) -> Iterator:
    while items:
        yield items.pop(0)


class _SeededLoader(WorkerLoader):
    """Loader of a dataset of batches, in which everything random follows from a seed."""

    def __init__(self, dataset: IterableDataset, **options: Any):
        super().__init__(dataset, **{**options, "batch_size": None, "collate_fn": identity})

    def items(self, seed: int) -> Iterator:
        """Iterate the dataset, and leave the random generators of this process alone."""
        self.generator = torch.Generator().manual_seed(seed)  # gives the workers their seeds
        items = super().__iter__()
        return items if self.num_workers else with_own_randomness(items, seed)


class _BatchLoader(_SeededLoader):
    """Loader of `Batches` over shards.

    Args:
        dataset: the `Batches`.
        size: declared number of samples, or None.
        on_damage: called in this process with each `Damage` that a reader skipped.
        worker_timeout: see `WorkerLoader`.
        **options: further options of `DataLoader`; Lightning looks for these, and for all named arguments, among the
            attributes when it rebuilds a loader.
    """

    dataset: Batches

    def __init__(
        self,
        dataset: Batches,
        size: Optional[int],
        on_damage: Callable[[Damage], Any],
        worker_timeout: float = WORKER_TIMEOUT,
        **options: Any,
    ):
        super().__init__(dataset, **options)
        self.size, self.on_damage, self.worker_timeout = size, on_damage, worker_timeout

    def read(self, current_pass: Pass) -> Iterator:
        """Iterate the batches, and the rests, of one pass on this rank."""
        self.dataset.samples.source.current_pass = current_pass
        for item in self.items(current_pass.seed + current_pass.rank):
            if isinstance(item, Damage):
                self.on_damage(item)
            else:
                yield item


class EvaluationLoader(_BatchLoader):
    """Yields every sample once, over all workers and ranks, and leaves the random generators alone.

    The length is an upper bound, because every worker may end with a partial batch. With several ranks it is not known.
    """

    def __iter__(self) -> Iterator:  # type: ignore[override]  # a generator does for torch's own iterator
        batches = self.read(new_pass(draw_seed(advance=False)))
        first = next(batches, None)
        if first is None and world_size() > 1:  # this rank could not take part in reducing metrics
            raise ShardError("A rank has no sample to evaluate: there are too few for so many ranks.")
        if first is None:
            raise ShardError("There is no sample to evaluate: the shards are empty, or the filters keep none.")
        return itertools.chain([first], batches)

    def __len__(self) -> int:
        if self.size is None or world_size() > 1:
            raise TypeError("The number of batches is not known in advance.")
        n_readers = max(1, min(self.num_workers, len(self.dataset.samples.source.shards)))
        return (self.size + n_readers * (self.dataset.batch_size - 1)) // self.dataset.batch_size


class TrainingLoader(_BatchLoader):
    """Yields full batches only, equally many on each rank, and every sample at most once.

    The samples that readers have left over form further full batches, at the end across ranks: only those that do
    not fill a batch on each rank are dropped.

    Args:
        dataset: see `_BatchLoader`, like `size`, `on_damage` and `options`.
        begin_pass: called at the start of a pass; returns its seed, and the number of its batches that training has
            seen before it was interrupted.
    """

    def __init__(
        self,
        dataset: Batches,
        size: Optional[int],
        on_damage: Callable[[Damage], Any],
        begin_pass: Callable[[], tuple[int, int]],
        **options: Any,
    ):
        super().__init__(dataset, size, on_damage, **options)
        self.begin_pass = begin_pass
        self.n_rest = 0  # samples of the last pass, over all ranks, that filled no batch of one reader

    def __iter__(self) -> Iterator:  # type: ignore[override]  # as above
        seed, n_seen = self.begin_pass()
        if n_seen:
            log.info("Skipping the first %d batches of this epoch, which were trained on before", n_seen)
        yield from itertools.islice(self._as_many_as_declared(new_pass(seed)), n_seen, None)

    def __len__(self) -> int:
        if self.size is None:
            raise TypeError("The number of batches is not known in advance.")
        return self.size // (self.dataset.batch_size * world_size())

    def _as_many_as_declared(self, current_pass: Pass) -> Iterator:
        """Yield the batches of a pass, and of further ones if there are fewer than declared.

        Lightning validates after the last declared batch.
        """
        declared, n_batches = 0 if self.size is None else len(self), 0
        while True:
            n_before = n_batches
            for batch in self._in_step(current_pass):
                n_batches += 1
                yield batch
            if n_batches == n_before:
                raise too_few_samples(self.n_rest, self.dataset.batch_size)
            if n_batches >= declared:
                return
            if not n_before:
                log.warning(
                    "The training data gave %d batches instead of the %d that train_size=%d promises, and is "
                    "read again. Count it with ocl_compute_dataset_size.",
                    n_batches,
                    declared,
                    self.size,
                )
            current_pass = dataclasses.replace(current_pass, seed=current_pass.seed + 1)

    def _in_step(self, current_pass: Pass) -> Iterator:
        """Yield as many batches as every other rank; the last ones are distributed evenly."""
        rest: list = []
        batches = self._whole(self.read(current_pass), rest)
        batch = next(batches, None)
        while all(gather(batch is not None)):
            yield batch
            batch = next(batches, None)
        self.n_rest = len(rest)
        if current_pass.world_size == 1:  # one by one, where the last batches need not be counted first
            yield from self.dataset.form(rest, [])
            return
        spare = [] if batch is None else [batch, *batches]
        spare, rest = (list(itertools.chain.from_iterable(gather(part))) for part in (spare, rest))
        self.n_rest = len(rest) + len(spare) * self.dataset.batch_size
        spare += self.dataset.form(rest, [])
        n_ranks = current_pass.world_size
        yield from spare[current_pass.rank :: n_ranks][: len(spare) // n_ranks]

    @staticmethod
    def _whole(items: Iterable, rest: list) -> Iterator:
        """Yield the batches, and collect the samples left over in the list `rest`."""
        for item in items:
            if isinstance(item, Rest):
                rest += item.samples
            else:
                yield item


class PlainLoader(_SeededLoader):
    """Loader of a pipe of batches in this process, for each rank its own.

    Args:
        dataset: the pipe.
        begin_pass: as for `TrainingLoader`; for evaluation None.
        **options: further options of `DataLoader`.
    """

    def __init__(self, dataset: Pipe, begin_pass: Optional[Callable[[], tuple[int, int]]] = None, **options: Any):
        super().__init__(dataset, **options)
        self.begin_pass = begin_pass

    def __iter__(self) -> Iterator:  # type: ignore[override]  # as above
        seed, n_seen = self.begin_pass() if self.begin_pass else (draw_seed(advance=False), 0)
        yield from itertools.islice(self.items(seed), n_seen, None)


def too_few_samples(n_samples: int, batch_size: int) -> ShardError:
    """Return the error about training samples that do not fill a batch on every rank."""
    ranks = f" for each of {world_size()} processes" if world_size() > 1 else ""
    return ShardError(
        f"There is no full batch of {batch_size} training samples{ranks}: there are {n_samples}. Use a smaller "
        "dataset.batch_size or more data, and check which samples the filters keep."
    )


def identity(batch: Any) -> Any:
    """Return a batch as it is; it need not be collated."""
    return batch
