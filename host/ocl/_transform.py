"""What every transform of a stream of samples is, and those that make several samples of one."""

import abc
import random
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch.utils.data import get_worker_info

from ocl._loader.pipe import Pipe

Sample = dict[str, Any]


class Transform(abc.ABC):
    """Maps a pipe to a new one by its operations `map`, `map_dict`, `filter`, `then` and `shuffle`.

    Attributes:
        is_batch_transform: whether the pipe gives batches instead of samples.
        fields: names of the fields that the transform needs; other fields may not even be loaded.
    """

    is_batch_transform = False

    @property
    @abc.abstractmethod
    def fields(self) -> tuple[str, ...]:
        """Return the names of the needed fields."""

    @abc.abstractmethod
    def __call__(self, input_pipe: Pipe) -> Pipe:
        """Return the transformed pipe."""


class FieldTransform(Transform):
    """A transform with the given fields, of samples or of batches."""

    def __init__(self, fields: Iterable[str], batch_transform: bool = False):
        self._fields, self.is_batch_transform = tuple(fields), batch_transform

    @property
    def fields(self) -> tuple[str, ...]:
        return self._fields


class StreamTransform(FieldTransform):
    """Replace each sample by those that `process` yields.

    Each pass over the data has its own random generator, seeded by the worker or else by torch's seed.
    """

    def __call__(self, input_pipe: Pipe) -> Pipe:
        return input_pipe.then(self._process_stream)

    @abc.abstractmethod
    def process(self, sample: Sample, rng: random.Random) -> Iterator[Sample]:
        """Yield what a sample becomes."""

    def _process_stream(self, stream: Iterator[Sample]) -> Iterator[Sample]:
        worker = get_worker_info()
        rng = random.Random(torch.initial_seed() if worker is None else worker.seed)
        for sample in stream:
            yield from self.process(sample, rng)


def common_length(sample: Sample, lengths: Mapping[str, int]) -> int:
    """Return the length that all named fields of a sample have, or raise a `ValueError`."""
    if len(set(lengths.values())) > 1:
        raise ValueError(f"Sample {sample['__key__']!r} has fields that differ in length: {lengths}.")
    return next(iter(lengths.values()))
