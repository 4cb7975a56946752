"""What transforms have in common."""
import abc
import random

import torch
from torch.utils.data import get_worker_info


class Transform(abc.ABC):
    """Maps a pipe to a new one by its operations `map`, `map_dict`, `filter`, `then` and `shuffle`.

    Attributes:
        is_batch_transform: whether the pipe gives batches instead of samples.
        fields: names of the fields that the transform needs; other fields may not even be loaded.
    """

    is_batch_transform = False

    @property
    @abc.abstractmethod
    def fields(self):
        """Return the names of the needed fields."""

    @abc.abstractmethod
    def __call__(self, input_pipe):
        """Return the transformed pipe."""


class FieldTransform(Transform):
    """A transform that is told its fields, and whether it works on batches."""

    def __init__(self, fields, batch_transform=False):
        self._fields = tuple(fields)
        self.is_batch_transform = batch_transform

    @property
    def fields(self):
        return self._fields


def stream_rng():
    """Return the random generator of one pass over the data, seeded by the worker or else by torch's seed."""
    worker = get_worker_info()
    return random.Random(torch.initial_seed() if worker is None else worker.seed)
