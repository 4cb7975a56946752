"""Lazy pipelines of samples."""

import random
from functools import partial

from torch.utils.data import IterableDataset

from ocl._randomness import draw_seed


class Pipe(IterableDataset):
    """A stream of samples (later of batches) that can be iterated again and again.

    Each operation returns a new pipe and leaves this one alone. A pipe can be pickled if its callables can.

    Args:
        source: re-iterable object that gives the first stream, or None for stages that others run.
        stages: functions from stream to stream, applied in order.
        size: declared number of elements, what `len` returns; without it there is no length.
    """

    def __init__(self, source=None, stages=(), size=None):
        self.source, self.stages, self.size = source, tuple(stages), size

    def __iter__(self):
        return self.run(self.source)

    def run(self, source):
        """Iterate what the stages make of another source."""
        stream = iter(source)
        for stage in self.stages:
            stream = stage(stream)
        return iter(stream)

    def __len__(self):
        if self.size is None:
            raise TypeError("The size of this data is not known.")
        return self.size

    def then(self, stage):
        """Append a function from stream to stream, for instance a generator function."""
        return Pipe(self.source, (*self.stages, stage))

    def with_size(self, size):
        """Declare the number of elements, or None."""
        return Pipe(self.source, self.stages, size)

    def map(self, fn):
        """Apply `fn` to each sample."""
        return self.then(partial(_map, fn=fn))

    def map_dict(self, fns):
        """Apply `fns[field]` to each named field of (a copy of) each sample."""
        return self.map(partial(_map_fields, fns=dict(fns)))

    def filter(self, predicate):
        """Keep the samples for which `predicate(sample)` holds."""
        return self.then(partial(_filter, predicate=predicate))

    def shuffle(self, buffer_size):
        """Shuffle the samples within a buffer; the order follows from torch's random state."""
        return self.then(partial(_shuffle, buffer_size=buffer_size))

    def batch(self, batch_size, drop_last=False):
        """Group consecutive samples into lists."""
        return self.then(partial(group, size=batch_size, keep_partial=not drop_last))

    def collate(self, collate_fn):
        """Apply `collate_fn` to each list of samples."""
        return self.map(collate_fn)


# Stages are no closures, so that pipes can be pickled. They are generators: in the builtins `map` and `filter`, a
# StopIteration that escapes from a user's function would end the stream unnoticed.


def _map(stream, fn):
    return (fn(sample) for sample in stream)


def _map_fields(sample, fns):
    return {**sample, **{field: fn(get_field(sample, field)) for field, fn in fns.items()}}


def _filter(stream, predicate):
    return (sample for sample in stream if predicate(sample))


def _shuffle(stream, buffer_size):
    rng = random.Random(draw_seed())
    buffer = []
    for sample in stream:
        if len(buffer) < buffer_size:
            buffer.append(sample)
        else:
            chosen = rng.randrange(buffer_size)
            buffer[chosen], sample = sample, buffer[chosen]
            yield sample
    rng.shuffle(buffer)
    yield from buffer


def group(stream, size, keep_partial, rest=None):
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


def get_field(sample, field):
    """Return a field of a sample, or raise a `KeyError` that names the sample and what it has."""
    if field not in sample:
        raise KeyError(
            f"sample {sample.get('__key__')!r} has no field `{field}`, only {sorted(sample)}; "
            "a field is loaded only if the shard has it and a transform names it"
        )
    return sample[field]
