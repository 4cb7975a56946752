"""Videos as frames: models of images work on the frames of a video, folded into the batch."""

import dataclasses
from typing import Any, Callable, Optional, Tuple

import torch
from torch import nn

from ocl_msf.decoding import TokenDecoder, TokenDecoderOutput
from ocl_msf.diffusion import DiffusionDecoder, DiffusionDecoderOutput
from ocl_msf.feature_extractors import BigLittle
from ocl_msf.guidance import FrozenGuidance, GuidanceOutput


class FoldFrames(nn.Module):
    """Fold time into the batch: (b, t, ...) -> (b * t, ...), of a tensor or of every tensor in a dataclass."""

    def forward(self, video: Any) -> Any:
        """Fold a tensor (b, t, ...), or a dataclass of such tensors."""
        if isinstance(video, torch.Tensor):
            return video.flatten(0, 1)
        folded = {name: x.flatten(0, 1) for name, x in vars(video).items() if isinstance(x, torch.Tensor)}
        return dataclasses.replace(video, **folded)


def in_chunks(function: Callable[..., Any], size: int, *inputs: Optional[torch.Tensor]) -> Any:
    """Apply a function of images to at most `size` of them at a time: the same result in bounded memory.

    Args:
        function: maps tensors (n, ...) to a dataclass or tuple of tensors (n, ...), of None and of such tuples.
        size: how many images at a time.
        inputs: (n, ...) each, or None.

    Returns:
        What `function(*inputs)` returns, if it treats every image by itself.
    """
    total = len(inputs[0])
    if total <= size:
        return function(*inputs)
    whole = None
    for start in range(0, total, size):
        part = function(*(None if x is None else x[start : start + size] for x in inputs))
        if whole is None:  # room for all, so that parts need not wait for one another
            whole = _map(lambda x: x.new_empty(total, *x.shape[1:]), part)
        _map(lambda x, y, start=start: x[start : start + size].copy_(y), whole, part)
    return whole


def _map(function: Callable[..., torch.Tensor], first: Any, *others: Any) -> Any:
    """Apply a function to the tensors of answers of the same structure."""
    if first is None:
        return None
    if isinstance(first, torch.Tensor):
        return function(first, *others)
    if isinstance(first, tuple):
        return tuple(_map(function, *same) for same in zip(first, *others))
    fields = [field.name for field in dataclasses.fields(first)]
    return type(first)(**{name: _map(function, *(getattr(x, name) for x in (first, *others))) for name in fields})


class ChunkedBigLittle(BigLittle):
    """`BigLittle` for the many frames of videos; in evaluation at most `max_frames` at a time.

    Attributes:
        max_frames: how many; the result does not depend on it.
    """

    max_frames = 16

    def encode(self, images: torch.Tensor) -> Tuple[torch.Tensor, Optional[torch.Tensor]]:
        """Encode frames (b * t, 3, h, w): feature maps and tokens."""
        return super().encode(images) if self.training else in_chunks(super().encode, self.max_frames, images)


class ChunkedGuidance(FrozenGuidance):
    """`FrozenGuidance` for the many frames of videos, at most `max_frames` at a time.

    Attributes:
        max_frames: how many; the result does not depend on it.
    """

    max_frames = 16

    def forward(self, image: torch.Tensor) -> GuidanceOutput:
        """Encode frames (b * t, 3, h, w), values in [-1, 1]; deterministic."""
        return in_chunks(super().forward, self.max_frames, image)


class ChunkedTokenDecoder(TokenDecoder):
    """`TokenDecoder` for the many frames of videos; in evaluation at most `max_frames` at a time.

    Attributes:
        max_frames: how many; the result does not depend on it.
    """

    max_frames = 16

    def forward(
        self, slots: torch.Tensor, guidance: torch.Tensor, slot_mask: Optional[torch.Tensor] = None
    ) -> TokenDecoderOutput:
        """Predict the tokens of frames: slots (b * t, k, d), guidance (b * t, d, h, w), slot_mask (b * t, k)."""
        if self.training:
            return super().forward(slots, guidance, slot_mask)
        return in_chunks(super().forward, self.max_frames, slots, guidance, slot_mask)


class ChunkedDiffusionDecoder(DiffusionDecoder):
    """`DiffusionDecoder` for the many frames of videos; in evaluation at most `max_frames` at a time.

    Attributes:
        max_frames: how many; the result does not depend on it.
    """

    max_frames = 16

    def forward(
        self, slots: torch.Tensor, guidance: torch.Tensor, slot_mask: Optional[torch.Tensor] = None
    ) -> DiffusionDecoderOutput:
        """Predict the noise in frames: slots (b * t, k, d), guidance (b * t, d, h, w), slot_mask (b * t, k)."""
        if self.training:
            return super().forward(slots, guidance, slot_mask)
        return in_chunks(super().forward, self.max_frames, slots, guidance, slot_mask)
