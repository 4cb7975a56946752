"""Functions that turn stored samples into what models take; most map one field, some the whole sample."""
import numpy as np
import torch
from torch import nn
from torchvision.transforms import InterpolationMode, Normalize
from torchvision.transforms.functional import center_crop, resize

from ocl._box_preprocessing import AddEmptyBboxes, AddImageSize, CanonicalizeBboxes, RescaleBboxes
from ocl._mask_preprocessing import (
    AddEmptyMasks,
    AddSegmentationMaskFromInstanceMask,
    DenseMaskToTensor,
    InstanceMasksToDenseMasks,
    IntegerToOneHotMask,
    MaskToTensor,
    MultiMaskToTensor,
    VOCInstanceMasksToDenseMasks,
    expand_dense_mask,
)
from ocl._pipe import get_field

__all__ = [
    "AddEmptyBboxes",
    "AddEmptyMasks",
    "AddImageSize",
    "AddSegmentationMaskFromInstanceMask",
    "CanonicalizeBboxes",
    "CheckFormat",
    "Denormalize",
    "DenseMaskToTensor",
    "DropEntries",
    "FlowToTensor",
    "InstanceMasksToDenseMasks",
    "IntegerToOneHotMask",
    "MaskToTensor",
    "MultiMaskToTensor",
    "NormalizeVideo",
    "OrigCenterCrop",
    "RenameFields",
    "RescaleBboxes",
    "ResizeNearestExact",
    "ToSingleFrameVideo",
    "VOCInstanceMasksToDenseMasks",
    "VideoToTensor",
    "expand_dense_mask",
]


class RenameFields:
    """Rename fields of a sample.

    Args:
        mapping: new name by old name.
    """

    def __init__(self, mapping):
        self.mapping = dict(mapping)

    def __call__(self, data):
        """Return a new dict.

        Raises:
            KeyError: a field is missing.
        """
        renamed = {new: get_field(data, old) for old, new in self.mapping.items()}
        return {**{key: value for key, value in data.items() if key not in self.mapping}, **renamed}


class DropEntries:
    """Remove fields from a sample, if present.

    Args:
        keys: names of the fields.
    """

    def __init__(self, keys):
        self.keys = tuple(keys)

    def __call__(self, data):
        """Return a new dict."""
        return {key: value for key, value in data.items() if key not in self.keys}


class VideoToTensor:
    """Convert videos with channels last, or without channels, to channels first."""

    def __call__(self, video):
        """Map an array or tensor (T, H, W, C) or (T, H, W) to a tensor (T, C, H, W).

        uint8 becomes float32 in [0, 1]; other types keep type and values.
        """
        video = torch.as_tensor(video)
        if video.ndim == 3:
            video = video[..., None]
        if video.ndim != 4:
            raise ValueError(f"A video has the axes T, H, W, C, not the shape {tuple(video.shape)}.")
        video = video.permute(0, 3, 1, 2).contiguous()
        return video.to(torch.float32).div_(255) if video.dtype == torch.uint8 else video


class ToSingleFrameVideo:
    """Turn an image into a video of one frame."""

    def __call__(self, image):
        """Map (C, H, W) to (1, C, H, W)."""
        return image[None]


class NormalizeVideo(Normalize):
    """Subtract a mean from and divide by a standard deviation per channel, for float videos (T, C, H, W).

    Args:
        mean: one number per channel.
        std: one number per channel.
    """


def _per_channel(values):
    return torch.as_tensor(values, dtype=torch.float32).view(-1, 1, 1)


class Denormalize(nn.Module):
    """Undo a normalization with a mean and a standard deviation per channel.

    Args:
        mean: one number per channel.
        std: one number per channel.
    """

    def __init__(self, mean, std):
        super().__init__()
        self.register_buffer("mean", _per_channel(mean), persistent=False)
        self.register_buffer("std", _per_channel(std), persistent=False)

    def forward(self, input):
        """Map (..., C, H, W) to the same shape."""
        return input * self.std.to(input) + self.mean.to(input)


class FlowToTensor:
    """Convert optical flow to channels first."""

    def __call__(self, flow):
        """Map an array (..., H, W, 2) to a float32 tensor (..., 2, H, W)."""
        return torch.from_numpy(np.ascontiguousarray(np.moveaxis(flow, -1, -3), dtype=np.float32))


class ResizeNearestExact:
    """Resize by picking the nearest pixels, which keeps the values of masks.

    Args:
        size: [height, width], or the size of the shorter edge.
        max_size: limit of the longer edge if only the shorter is given.
    """

    def __init__(self, size, max_size=None):
        self.size = size if isinstance(size, int) else list(size)
        self.max_size = max_size

    def __call__(self, input):
        """Map (C, H, W) or (N, C, H, W) to the new size, with the same type.

        Raises:
            ValueError: `max_size` is not larger than `size`.
        """
        return resize(input, self.size, InterpolationMode.NEAREST_EXACT, self.max_size)


class OrigCenterCrop:
    """Crop the central square whose side is the shorter edge."""

    def __call__(self, input):
        """Map a tensor (..., H, W) to (..., S, S) with S = min(H, W)."""
        return center_crop(input, min(input.shape[-2:]))


class CheckFormat:
    """Check the shape of a tensor and, if asked for, that it is one-hot.

    Args:
        shape: expected shape.
        one_hot: whether the values have to be 0 and 1 with a single 1 along `class_dim`.
        class_dim: axis of the classes.
    """

    def __init__(self, shape, one_hot=False, class_dim=0):
        self.shape = tuple(shape)
        self.one_hot = one_hot
        self.class_dim = class_dim

    def __call__(self, input):
        """Return the tensor itself.

        Raises:
            ValueError: it does not have the expected format.
        """
        if tuple(input.shape) != self.shape:
            raise ValueError(f"Expected the shape {self.shape}, got {tuple(input.shape)}.")
        if self.one_hot:
            binary = ((input == 0) | (input == 1)).all()
            if not binary or not (input.sum(self.class_dim) == 1).all():
                raise ValueError(f"Expected one-hot values along axis {self.class_dim}.")
        return input
