"""Transforms that cut samples along an axis, for instance videos into frames and clips."""
import abc
import math
import os
import random
import zlib

import numpy as np
import torch

from ocl._pipe import get_field
from ocl._transform import FieldTransform, stream_rng


class _SlicingTransform(FieldTransform):
    """Replace each sample by slices of the named fields, with keys `"{key}_{index of the slice}"`."""

    def __init__(self, fields, dim, shuffle_buffer_size=1):
        super().__init__(fields)
        self.dim = dim
        self.shuffle_buffer_size = shuffle_buffer_size

    def __call__(self, input_pipe):
        pipe = input_pipe.then(self._slice_stream)
        return pipe.shuffle(buffer_size=self.shuffle_buffer_size) if self.shuffle_buffer_size > 1 else pipe

    def _slice_stream(self, stream):
        choose = self.chooser()
        for sample in stream:
            key, values = sample["__key__"], {field: get_field(sample, field) for field in self.fields}
            lengths = {field: value.shape[self.dim] for field, value in values.items()}
            if len(set(lengths.values())) > 1:
                raise ValueError(f"Sample {key!r} has fields of different length to slice: {lengths}.")
            for index, part in choose(key, next(iter(lengths.values()))):
                sliced = {field: _slice(value, part, self.dim) for field, value in values.items()}
                yield {**sample, **sliced, "__key__": f"{key}_{index}"}

    @abc.abstractmethod
    def chooser(self):
        """Return the function that chooses the slices during one pass over the data.

        Returns:
            function from the key and the length of a sample to a list of pairs: the index of the slice, and
            the position or the `slice` along the axis.
        """


def _slice(value, part, dim):
    index = (slice(None),) * (dim % value.ndim) + (part,)
    if isinstance(part, slice):
        return value[index]
    # A copy does not keep the whole video in memory while the frame waits in a shuffle buffer.
    return value[index].clone() if torch.is_tensor(value) else value[index].copy()


class SampleSlices(_SlicingTransform):
    """Replace each sample by randomly chosen positions along an axis, which is removed.

    The choice depends on nothing but the key and the seed, with `per_epoch` also on the epoch: then the
    epochs go through all positions, the last group filled up from the front, before the order is drawn anew.

    Args:
        n_slices_per_input: number of positions, -1 for all.
        fields: names of the fields to slice, all of the same length.
        dim: the axis.
        seed: seed of the choice.
        per_epoch: whether to take other positions in each epoch; reads the environment variable `EPOCH`.
        shuffle_buffer_size: size of the buffer in which the slices are shuffled, 1 for not at all.
    """

    def __init__(
        self, n_slices_per_input, fields, dim=0, seed=39480234, per_epoch=False, shuffle_buffer_size=1000
    ):
        super().__init__(fields, dim, shuffle_buffer_size)
        self.n_slices_per_input = n_slices_per_input
        self.seed = seed
        self.per_epoch = per_epoch

    def chooser(self):
        if not self.per_epoch:
            return self._choose
        if "EPOCH" not in os.environ:
            raise RuntimeError(
                "SampleSlices with per_epoch needs the environment variable EPOCH; "
                "add the callback ocl.callbacks.SetEpochEnvironmentVariable to the trainer."
            )
        epoch = int(os.environ["EPOCH"])
        return lambda key, length: self._choose_in_epoch(key, length, epoch)

    def _choose(self, key, length):
        count = self._count(length)
        if count > length:
            raise ValueError(f"Sample {key!r} has only {length} of the {count} slices to take.")
        positions = random.Random(_key_number(key) + self.seed).sample(range(length), count)
        return [(position, position) for position in positions]

    def _choose_in_epoch(self, key, length, epoch):
        count = self._count(length)
        n_groups = math.ceil(length / count)
        seed = (_key_number(key) + self.seed + epoch // n_groups) % 2**32
        order = np.random.RandomState(seed).permutation(length)
        start = epoch % n_groups * count
        positions = order.take(range(start, start + count), mode="wrap").tolist()
        return [(position, position) for position in positions]

    def _count(self, length):
        return length if self.n_slices_per_input == -1 else self.n_slices_per_input


def _key_number(key):
    try:
        return int(key)
    except ValueError:
        return zlib.crc32(key.encode())


class SplitConsecutive(_SlicingTransform):
    """Replace each sample by all its windows of consecutive positions, in order and without overlap.

    Args:
        n_consecutive: length of a window.
        fields: names of the fields to split, all of the same length.
        dim: the axis.
        shuffle_buffer_size: size of the buffer in which the windows are shuffled, 1 for not at all.
        drop_last: whether to leave out a last window that is shorter.
    """

    def __init__(self, n_consecutive, fields, dim=0, shuffle_buffer_size=1000, drop_last=True):
        super().__init__(fields, dim, shuffle_buffer_size)
        self.n_consecutive = n_consecutive
        self.drop_last = drop_last

    def chooser(self):
        return self._windows

    def _windows(self, key, length):
        end = length - length % self.n_consecutive if self.drop_last else length
        starts = range(0, end, self.n_consecutive)
        return [(index, slice(start, start + self.n_consecutive)) for index, start in enumerate(starts)]


class SampleConsecutive(SplitConsecutive):
    """Replace each sample by one of its full windows, chosen at random among those of `SplitConsecutive`.

    Args:
        n_consecutive: length of a window.
        fields: names of the fields to cut, all of the same length.
        dim: the axis.
    """

    def __init__(self, n_consecutive, fields, dim=0):
        super().__init__(n_consecutive, fields, dim, shuffle_buffer_size=1)

    def chooser(self):
        rng = stream_rng()

        def choose(key, length):
            windows = self._windows(key, length)
            if not windows:
                raise ValueError(f"Sample {key!r} has {length} frames, too few for {self.n_consecutive}.")
            return [rng.choice(windows)]

        return choose
