"""Lazy pipelines of samples: the interface on which transforms are built."""

import random
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from typing import Any, Optional

from torch.utils.data import IterableDataset

from ocl._loader.random_state import draw_seed

Sample = Mapping[str, Any]
Stage = Callable[[Iterator], Iterable]


class Pipe(IterableDataset):
    """A stream of samples (later of batches) that can be iterated again and again.

    Each operation returns a new pipe and leaves this one alone. A pipe can be pickled if its callables can.

    Args:
        source: Re-iterable object that gives the first stream; empty for stages that are run on others.
        stages: functions from stream to stream, applied in order.
        size: declared number of elements, what `len` returns; without it there is no length.
    """

    def __init__(self, source: Iterable = (), stages: Iterable[Stage] = (), size: Optional[int] = None):
        self.source: Any = source
        self.stages, self.size = tuple(stages), size

    def __iter__(self) -> Iterator:
        return self.run(self.source)

    def run(self, source: Iterable) -> Iterator:
        """Iterate what the stages make of another source."""
        stream = iter(source)
        for stage in self.stages:
            stream = iter(stage(stream))
        return stream

    def __len__(self) -> int:
        if self.size is None:
            raise TypeError("The size of this data is not known.")
        return self.size

    def then(self, stage: Stage) -> "Pipe":
        """Append a function from stream to stream, for instance a generator function."""
        return Pipe(self.source, (*self.stages, stage))

    def with_size(self, size: Optional[int]) -> "Pipe":
        """Declare the number of elements, or None."""
        return Pipe(self.source, self.stages, size)

    def map(self, fn: Callable) -> "Pipe":
        """Apply `fn` to each sample."""
        return self.then(partial(_map, fn=fn))

    def map_dict(self, fns: Mapping[str, Callable]) -> "Pipe":
        """Apply `fns[field]` to each named field of (a copy of) each sample."""
        return self.map(partial(_map_fields, fns=dict(fns)))

    def filter(self, predicate: Callable[[Any], bool]) -> "Pipe":
        """Keep the samples for which `predicate(sample)` holds."""
        return self.then(partial(_filter, predicate=predicate))

    def shuffle(self, buffer_size: int) -> "Pipe":
        """Shuffle the samples within a buffer; the order follows from torch's random state."""
        return self.then(partial(_shuffle, buffer_size=buffer_size))

    def batch(self, batch_size: int, drop_last: bool = False) -> "Pipe":
        """Group consecutive samples into lists."""
        return self.then(partial(group, size=batch_size, keep_partial=not drop_last))

    def collate(self, collate_fn: Callable[[list], Any]) -> "Pipe":
        """Apply `collate_fn` to each list of samples."""
        return self.map(collate_fn)


# Stages are no closures, so that pipes can be pickled. They are generators: in the builtins `map` and `filter`, a
# StopIteration that escapes from a user's function would end the stream unnoticed.


def _map(stream: Iterator, fn: Callable) -> Iterator:
    return (fn(sample) for sample in stream)


def _map_fields(sample: Sample, fns: Mapping[str, Callable]) -> dict[str, Any]:
    return {**sample, **{field: fn(get_field(sample, field)) for field, fn in fns.items()}}


def _filter(stream: Iterator, predicate: Callable[[Any], bool]) -> Iterator:
    return (sample for sample in stream if predicate(sample))


def _shuffle(stream: Iterator, buffer_size: int) -> Iterator:
    rng = random.Random(draw_seed())
    buffer: list = []
    for sample in stream:
        if len(buffer) < buffer_size:
            buffer.append(sample)
        else:
            chosen = rng.randrange(buffer_size)
            buffer[chosen], sample = sample, buffer[chosen]
            yield sample
    rng.shuffle(buffer)
    yield from buffer


def group(stream: Iterable, size: int, keep_partial: bool, rest: Optional[list] = None) -> Iterator[list]:
    """Yield lists of `size` samples; the last samples form a shorter one, or are left in the list `rest`."""
    rest = [] if rest is None else rest
    for sample in stream:
        rest.append(sample)
        if len(rest) == size:
            yield rest[:]
            rest.clear()
    if rest and keep_partial:
        yield rest[:]
        rest.clear()


def get_field(sample: Sample, field: str) -> Any:
    """Return a field of a sample, or raise a `KeyError` that names the sample and what it has."""
    if field not in sample:
        raise KeyError(
            f"sample {sample.get('__key__')!r} has no field `{field}`, only {sorted(sample)}; "
            "a field is loaded only if the shard has it and a transform names it"
        )
    return sample[field]
