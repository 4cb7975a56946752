"""Transforms of streams of samples, configured by name in the data modules."""

import abc
import itertools
import os
import random
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Optional, Union

import numpy as np
import torch

from ocl._loader.pipe import Pipe, get_field
from ocl._transform import (  # noqa: F401  plugins look for the first one here
    FieldTransform,
    Sample,
    StreamTransform,
    Transform,
    common_length,
)

Position = Union[int, slice]


class SimpleTransform(FieldTransform):
    """Apply a function to each named field.

    Args:
        transforms: function by field name.
        batch_transform: apply them to the fields of batches.
    """

    def __init__(self, transforms: Mapping[str, Callable[[Any], Any]], batch_transform: bool):
        super().__init__(transforms, batch_transform)
        self.transforms = dict(transforms)

    def __call__(self, input_pipe: Pipe) -> Pipe:
        return input_pipe.map_dict(self.transforms)


class Map(FieldTransform):
    """Apply a function to whole samples.

    Args:
        transform: function from dict to dict.
        fields: names of the fields it needs.
        batch_transform: apply it to batches.
    """

    def __init__(self, transform: Callable[[Sample], Sample], fields: Iterable[str], batch_transform: bool):
        super().__init__(fields, batch_transform)
        self.transform = transform

    def __call__(self, input_pipe: Pipe) -> Pipe:
        return input_pipe.map(self.transform)


class Filter(FieldTransform):
    """Keep the samples for which `predicate(*values of the fields)` holds."""

    def __init__(self, predicate: Callable[..., bool], fields: Iterable[str]):
        super().__init__(fields)
        self.predicate = predicate

    def __call__(self, input_pipe: Pipe) -> Pipe:
        return input_pipe.filter(self._holds)

    def _holds(self, sample: Sample) -> bool:
        return self.predicate(*(get_field(sample, field) for field in self.fields))


class DuplicateFields(FieldTransform):
    """Give fields a second name.

    Args:
        mapping: new name by field; both names refer to the same object.
        batch_transform: do so in batches.
    """

    def __init__(self, mapping: Mapping[str, str], batch_transform: bool):
        super().__init__(mapping, batch_transform)
        self.mapping = dict(mapping)

    def __call__(self, input_pipe: Pipe) -> Pipe:
        return input_pipe.map(self._duplicate)

    def _duplicate(self, sample: Sample) -> Sample:
        return {**sample, **{copy: get_field(sample, field) for field, copy in self.mapping.items()}}


class _SlicingTransform(StreamTransform):
    """Replace each sample by slices of the named fields, with keys `"{key}_{index of the slice}"`."""

    def __init__(self, fields: Iterable[str], dim: int, shuffle_buffer_size: int = 1):
        super().__init__(fields)
        self.dim, self.shuffle_buffer_size = dim, shuffle_buffer_size

    def __call__(self, input_pipe: Pipe) -> Pipe:
        pipe = super().__call__(input_pipe)
        return pipe.shuffle(buffer_size=self.shuffle_buffer_size) if self.shuffle_buffer_size > 1 else pipe

    @abc.abstractmethod
    def choose(self, key: str, length: int, rng: random.Random) -> Iterable[tuple[int, Position]]:
        """Return pairs of the index of a slice, and its position or the `slice` along the axis."""

    def process(self, sample: Sample, rng: random.Random) -> Iterator[Sample]:
        key, values = sample["__key__"], {field: get_field(sample, field) for field in self.fields}
        length = common_length(sample, {field: value.shape[self.dim] for field, value in values.items()})
        for index, part in self.choose(key, length, rng):
            sliced = {field: _slice(value, part, self.dim) for field, value in values.items()}
            yield {**sample, **sliced, "__key__": f"{key}_{index}"}


def _slice(value: Any, part: Position, dim: int) -> Any:
    piece = value[(slice(None),) * (dim % value.ndim) + (part,)]
    if isinstance(part, slice):
        return piece
    # A copy does not keep the whole video in memory while the frame waits in a shuffle buffer.
    return piece.clone() if torch.is_tensor(piece) else piece.copy()


class SampleSlices(_SlicingTransform):
    """Replace each sample by randomly chosen positions along an axis, which is removed.

    The choice depends on nothing but the key and the seed, with `per_epoch` also on the epoch: then the epochs go
    through all positions, the last group filled up from the front, before the order is drawn anew.

    Args:
        n_slices_per_input: number of positions, -1 for all.
        fields: names of the fields to slice, all of the same length.
        dim: the axis.
        seed: seed of the choice.
        per_epoch: take other positions in each epoch; reads the environment variable `EPOCH`.
        shuffle_buffer_size: size of the buffer in which the slices are shuffled, 1 for not at all.
    """

    def __init__(
        self,
        n_slices_per_input: int,
        fields: Iterable[str],
        dim: int = 0,
        seed: int = 39480234,
        per_epoch: bool = False,
        shuffle_buffer_size: int = 1000,
    ):
        super().__init__(fields, dim, shuffle_buffer_size)
        self.n_slices_per_input, self.seed, self.per_epoch = n_slices_per_input, seed, per_epoch

    def choose(self, key: str, length: int, rng: random.Random) -> Iterable[tuple[int, int]]:
        count = length if self.n_slices_per_input == -1 else self.n_slices_per_input
        seed = self.seed + _key_number(key)
        if self.per_epoch:
            if "EPOCH" not in os.environ:
                raise RuntimeError(
                    "SampleSlices with per_epoch needs the environment variable EPOCH; "
                    "add the callback ocl.callbacks.SetEpochEnvironmentVariable to the trainer."
                )
            n_rounds, group = divmod(int(os.environ["EPOCH"]), -(-length // count))
            order = np.random.RandomState((seed + n_rounds) % 2**32).permutation(length)
            positions = order.take(range(group * count, (group + 1) * count), mode="wrap").tolist()
        elif count > length:
            raise ValueError(f"Sample {key!r} has only {length} of the {count} slices to take.")
        else:
            positions = random.Random(seed).sample(range(length), count)
        return zip(positions, positions)


def _key_number(key: str) -> int:
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
        drop_last: leave out a last window that is shorter.
    """

    def __init__(
        self,
        n_consecutive: int,
        fields: Iterable[str],
        dim: int = 0,
        shuffle_buffer_size: int = 1000,
        drop_last: bool = True,
    ):
        super().__init__(fields, dim, shuffle_buffer_size)
        self.n_consecutive, self.drop_last = n_consecutive, drop_last

    def choose(self, key: str, length: int, rng: random.Random) -> list[tuple[int, slice]]:
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

    def __init__(self, n_consecutive: int, fields: Iterable[str], dim: int = 0):
        super().__init__(n_consecutive, fields, dim, shuffle_buffer_size=1)

    def choose(self, key: str, length: int, rng: random.Random) -> list[tuple[int, slice]]:
        windows = super().choose(key, length, rng)
        if not windows:
            raise ValueError(f"Sample {key!r} has {length} frames, too few for {self.n_consecutive}.")
        return [rng.choice(windows)]


class VideoDecoder(StreamTransform):
    """Decode whole videos; needs the package `decord`.

    Each field becomes a uint8 tensor (frames, height, width, 3); the field `decoded_indices` holds the numbers of the
    decoded frames.

    Args:
        fields: names of the fields with the encoded videos, all of the same length.
        stride: step between decoded frames.
        split_extension: store the frames under the name without its extension.
        video_reader_kwargs: options of `decord.VideoReader`.
    """

    def __init__(
        self,
        fields: Iterable[str],
        stride: int = 1,
        split_extension: bool = True,
        video_reader_kwargs: Optional[Mapping[str, Any]] = None,
    ):
        super().__init__(fields)
        self.stride, self.split_extension = stride, split_extension
        self.video_reader_kwargs = dict(video_reader_kwargs or {})

    def process(self, sample: Sample, rng: random.Random) -> Iterator[Sample]:
        from decord import VideoReader

        readers = {field: VideoReader(get_field(sample, field), **self.video_reader_kwargs) for field in self.fields}
        n_frames = common_length(sample, {field: len(reader) for field, reader in readers.items()})
        indices = list(self.choose_frames(n_frames, rng))
        decoded = {field: value for field, value in sample.items() if field not in readers}
        for field, reader in readers.items():
            name = os.path.splitext(field)[0] if self.split_extension else field
            decoded[name] = torch.from_numpy(reader.get_batch(indices).asnumpy())
        yield {**decoded, "decoded_indices": torch.tensor(indices)}

    def choose_frames(self, n_frames: int, rng: random.Random) -> Sequence[int]:
        """Return the numbers of the frames to decode."""
        return range(0, n_frames, self.stride)


class DecodeRandomWindow(VideoDecoder):
    """Decode a random window of each video.

    Args:
        n_consecutive_frames: number of frames to decode, `stride` apart.
        **options: see `VideoDecoder`.
    """

    aligned = False

    def __init__(self, n_consecutive_frames: int, fields: Iterable[str], **options: Any):
        super().__init__(fields, **options)
        self.n_consecutive_frames = n_consecutive_frames

    def choose_frames(self, n_frames: int, rng: random.Random) -> Sequence[int]:
        n_wanted, stride = self.n_consecutive_frames, self.stride
        starts = range(0, n_frames - (n_wanted - 1) * stride, n_wanted * stride if self.aligned else 1)
        if not starts:
            raise ValueError(f"A video of {n_frames} frames has no {n_wanted} frames {stride} apart.")
        start = rng.choice(starts)
        return range(start, start + n_wanted * stride, stride)


class DecodeRandomStridedWindow(DecodeRandomWindow):
    """Decode a random window that starts at a multiple of the window length."""

    aligned = True


class SpatialSlidingWindow(FieldTransform):
    """Cut images and masks into windows, row by row; the key of each is `<key>_<column>_<row>` of its corner.

    Args:
        window_size: [width, height].
        stride: [right, down], from one window to the next.
        padding: [left, top, right, bottom], zeros around the image; a window within them has a negative corner.
        fields: arrays (..., h, w, c) of images and masks with c of 3 or 1, or (..., h, w).
        expected_n_windows: number of windows of an image, if known.
    """

    def __init__(
        self,
        window_size: Sequence[int],
        stride: Sequence[int],
        padding: Sequence[int],
        fields: Iterable[str],
        expected_n_windows: Optional[int] = None,
    ):
        super().__init__(fields)
        self.window_size, self.stride, self.padding = window_size, stride, padding
        self.expected_n_windows = expected_n_windows

    def __call__(self, input_pipe: Pipe) -> Pipe:
        return input_pipe.then(self.cut)

    def cut(self, samples: Iterable[Sample]) -> Iterator[Sample]:
        """Yield the windows of each sample.

        Raises:
            ValueError: if the windows do not fit, or are fewer or more than expected.
        """
        (width, height), (right, down), (left, top, _, _) = self.window_size, self.stride, self.padding
        for sample in samples:
            padded = {field: self._pad(get_field(sample, field)) for field in self.fields}
            sizes = {value.shape[-3:-1] for value in padded.values()}
            rows, columns = (range(0, side, step) for side, step in zip(max(sizes), (down, right)))
            if len(sizes) > 1 or rows[-1] + height > rows.stop or columns[-1] + width > columns.stop:
                raise ValueError(
                    f"Windows {width} wide and {height} high, ({right}, {down}) apart, do not cover fields of sizes "
                    f"{sorted(sizes)} (height, width, with padding) of the sample {sample['__key__']}."
                )
            if self.expected_n_windows not in (None, len(rows) * len(columns)):
                raise ValueError(f"Expected {self.expected_n_windows} windows, got {len(rows) * len(columns)}.")
            for y, x in itertools.product(rows, columns):
                windows = {field: value[..., y : y + height, x : x + width, :] for field, value in padded.items()}
                yield {**sample, **windows, "__key__": f"{sample['__key__']}_{x - left}_{y - top}"}

    def _pad(self, value: np.ndarray) -> np.ndarray:
        value = value if value.shape[-1] in (1, 3) else value[..., None]
        left, top, right, bottom = self.padding
        return np.pad(value, [*[(0, 0)] * (value.ndim - 3), (top, bottom), (left, right), (0, 0)])
