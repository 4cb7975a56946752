"""The pipe interface that host transforms use, over any iterable of samples."""

import itertools
import random
from typing import Any, Callable, Dict, Iterable, Iterator, List


class Pipe:
    """A stream of samples; every method returns a new one, and nothing is read before iteration.

    Args:
        source: samples, dicts from field to value.
    """

    def __init__(self, source: Iterable[Any]) -> None:
        self.source = source

    def __iter__(self) -> Iterator[Any]:
        return iter(self.source)

    def then(self, stage: Callable[[Iterable[Any]], Iterator[Any]]) -> "Pipe":
        """The stream that `stage` makes of this one."""
        return Pipe(_Stage(stage, self))

    def map(self, function: Callable[[Any], Any]) -> "Pipe":
        """`function` of each sample."""
        return self.then(lambda stream: map(function, stream))

    def map_dict(self, functions: Dict[str, Callable[[Any], Any]]) -> "Pipe":
        """Apply a function to each of the named fields.

        Raises:
            KeyError: a sample lacks a field.
        """

        def apply(sample: Dict[str, Any]) -> Dict[str, Any]:
            missing = [field for field in functions if field not in sample]
            if missing:
                raise KeyError(f"Sample {sample.get('__key__')} has no {', '.join(missing)}, only {', '.join(sample)}.")
            return {**sample, **{field: function(sample[field]) for field, function in functions.items()}}

        return self.map(apply)

    def filter(self, predicate: Callable[[Any], bool]) -> "Pipe":
        """The samples for which `predicate` is true."""
        return self.then(lambda stream: filter(predicate, stream))

    def shuffle(self, buffer_size: int) -> "Pipe":
        """Shuffle with a buffer of this many samples."""
        return self.then(lambda stream: _shuffled(stream, buffer_size))

    def batch(self, batch_size: int, drop_last: bool = False) -> "Pipe":
        """Lists of samples."""
        return self.then(lambda stream: _batches(stream, batch_size, drop_last))

    def collate(self, collate_fn: Callable[[List[Any]], Any]) -> "Pipe":
        """`collate_fn` of each list of samples."""
        return self.map(collate_fn)


class _Stage:
    """A generator function and its input, to be iterated over any number of times."""

    def __init__(self, function: Callable[[Iterable[Any]], Iterator[Any]], source: Iterable[Any]) -> None:
        self.function, self.source = function, source

    def __iter__(self) -> Iterator[Any]:
        return iter(self.function(self.source))


def _shuffled(stream: Iterable[Any], size: int) -> Iterator[Any]:
    buffer: List[Any] = []
    for sample in stream:
        if len(buffer) < size:
            buffer.append(sample)
            continue
        place = random.randrange(size)
        sample, buffer[place] = buffer[place], sample
        yield sample
    random.shuffle(buffer)
    yield from buffer


def _batches(stream: Iterable[Any], size: int, drop_last: bool) -> Iterator[List[Any]]:
    stream = iter(stream)
    while True:
        batch = list(itertools.islice(stream, size))
        if not batch or (drop_last and len(batch) < size):
            return
        yield batch
