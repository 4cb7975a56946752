"""Transforms that decode encoded videos; they need the package `decord`."""
import os

import torch

from ocl._pipe import get_field
from ocl._transform import FieldTransform, stream_rng


class VideoDecoder(FieldTransform):
    """Decode whole videos.

    Each field becomes a uint8 tensor (frames, height, width, 3); the field `decoded_indices` holds the
    numbers of the decoded frames.

    Args:
        fields: names of the fields with the encoded videos, all of the same length.
        stride: step between decoded frames.
        split_extension: whether to store the frames under the name without its extension.
        video_reader_kwargs: options of `decord.VideoReader`.
    """

    def __init__(self, fields, stride=1, split_extension=True, video_reader_kwargs=None):
        super().__init__(fields)
        self.stride = stride
        self.split_extension = split_extension
        self.video_reader_kwargs = dict(video_reader_kwargs or {})

    def __call__(self, input_pipe):
        return input_pipe.then(self._decode_stream)

    def _decode_stream(self, stream):
        import decord

        rng = stream_rng()
        for sample in stream:
            readers = {
                field: decord.VideoReader(get_field(sample, field), **self.video_reader_kwargs)
                for field in self.fields
            }
            lengths = {field: len(reader) for field, reader in readers.items()}
            if len(set(lengths.values())) > 1:
                raise ValueError(f"Videos of sample {sample['__key__']!r} differ in length: {lengths}.")
            indices = list(self.choose_frames(next(iter(lengths.values())), rng))
            decoded = {field: value for field, value in sample.items() if field not in readers}
            for field, reader in readers.items():
                name = os.path.splitext(field)[0] if self.split_extension else field
                decoded[name] = torch.from_numpy(reader.get_batch(indices).asnumpy())
            yield {**decoded, "decoded_indices": torch.tensor(indices)}

    def choose_frames(self, n_frames, rng):
        """Return the numbers of the frames to decode."""
        return range(0, n_frames, self.stride)


class DecodeRandomWindow(VideoDecoder):
    """Decode a random window of each video.

    Args:
        n_consecutive_frames: number of frames to decode, `stride` apart.
        **options: see `VideoDecoder`.
    """

    def __init__(self, n_consecutive_frames, fields, **options):
        super().__init__(fields, **options)
        self.n_consecutive_frames = n_consecutive_frames

    def choose_frames(self, n_frames, rng):
        return self._window(rng.randrange(self._last_start(n_frames) + 1))

    def _window(self, start):
        return range(start, start + self.n_consecutive_frames * self.stride, self.stride)

    def _last_start(self, n_frames):
        last_start = n_frames - 1 - (self.n_consecutive_frames - 1) * self.stride
        if last_start < 0:
            raise ValueError(
                f"A video of {n_frames} frames has no {self.n_consecutive_frames} frames {self.stride} apart."
            )
        return last_start


class DecodeRandomStridedWindow(DecodeRandomWindow):
    """Decode a random window that starts at a multiple of the window length."""

    def choose_frames(self, n_frames, rng):
        length = self.n_consecutive_frames * self.stride
        return self._window(rng.randrange(self._last_start(n_frames) // length + 1) * length)
