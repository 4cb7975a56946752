"""Functions that turn stored samples into what models take; most map one field, some the whole sample."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Optional, Union

import numpy as np
import torch
from torch import Tensor, nn
from torchvision.transforms import InterpolationMode, Normalize, Resize
from torchvision.transforms.functional import center_crop

from ocl._annotations import (
    AddEmptyBboxes,
    AddEmptyMasks,
    AddImageSize,
    AddSegmentationMaskFromInstanceMask,
    CanonicalizeBboxes,
    InstanceMasksToDenseMasks,
    RescaleBboxes,
    VOCInstanceMasksToDenseMasks,
    expand_dense_mask,
)
from ocl._coco_classes import ConvertCocoStuff164kMasks, ConvertToCocoSuperclasses, MergeCocoThingsAndStuff
from ocl._instances import (
    AddBBoxFromInstanceMasks,
    CompressedMaskToTensor,
    CompressMask,
    IsElementOfList,
    MaskInstances,
    MultiCrop,
    RandomSample,
    SampleFramesUsingIndices,
    TokenizeText,
)
from ocl._loader.pipe import get_field

__all__ = [
    "AddBBoxFromInstanceMasks",
    "AddEmptyBboxes",
    "AddEmptyMasks",
    "AddImageSize",
    "AddSegmentationMaskFromInstanceMask",
    "CanonicalizeBboxes",
    "CheckFormat",
    "CompressMask",
    "CompressedMaskToTensor",
    "ConvertCocoStuff164kMasks",
    "ConvertToCocoSuperclasses",
    "Denormalize",
    "DenseMaskToTensor",
    "DropEntries",
    "FlowToTensor",
    "InstanceMasksToDenseMasks",
    "IntegerToOneHotMask",
    "IsElementOfList",
    "MaskInstances",
    "MaskToTensor",
    "MergeCocoThingsAndStuff",
    "MultiCrop",
    "MultiMaskToTensor",
    "NormalizeVideo",
    "OrigCenterCrop",
    "RandomSample",
    "RenameFields",
    "RescaleBboxes",
    "ResizeNearestExact",
    "SampleFramesUsingIndices",
    "ToSingleFrameVideo",
    "TokenizeText",
    "VOCInstanceMasksToDenseMasks",
    "VideoToTensor",
    "expand_dense_mask",
]

Sample = dict[str, Any]


class RenameFields:
    """Rename fields of a sample.

    Args:
        mapping: new name by old name.
    """

    def __init__(self, mapping: Mapping[str, str]):
        self.mapping = dict(mapping)

    def __call__(self, data: Sample) -> Sample:
        """Return a new dict.

        Raises:
            KeyError: if a field is missing.
        """
        renamed = {new: get_field(data, old) for old, new in self.mapping.items()}
        return {**{key: value for key, value in data.items() if key not in self.mapping}, **renamed}


class DropEntries:
    """Remove fields from a sample, if present.

    Args:
        keys: names of the fields.
    """

    def __init__(self, keys: Iterable[str]):
        self.keys = tuple(keys)

    def __call__(self, data: Sample) -> Sample:
        """Return a new dict."""
        return {key: value for key, value in data.items() if key not in self.keys}


class VideoToTensor:
    """Convert videos with channels last, or without channels, to channels first."""

    def __call__(self, video: Union[np.ndarray, Tensor]) -> Tensor:
        """Map an array or tensor (t, h, w, c) or (t, h, w) to a tensor (t, c, h, w).

        uint8 becomes float32 in [0, 1]; other types keep type and values.
        """
        frames = torch.as_tensor(video)
        frames = frames.unsqueeze(-1) if frames.ndim == 3 else frames
        if frames.ndim != 4:
            raise ValueError(f"A video has the axes t, h, w, c, not the shape {tuple(frames.shape)}.")
        frames = frames.permute(0, 3, 1, 2).contiguous()
        return frames.to(torch.float32).div_(255) if frames.dtype == torch.uint8 else frames


class ToSingleFrameVideo:
    """Turn an image into a video of one frame."""

    def __call__(self, image: Tensor) -> Tensor:
        """Map (c, h, w) to (1, c, h, w)."""
        return image[None]


class NormalizeVideo(Normalize):
    """Subtract a mean from and divide by a standard deviation per channel, for float videos (t, c, h, w).

    Args:
        mean: one number per channel.
        std: one number per channel.
    """


class Denormalize(nn.Module):
    """Undo a normalization with a mean and a standard deviation per channel.

    Args:
        mean: one number per channel.
        std: one number per channel.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, mean: Sequence[float], std: Sequence[float]):
        super().__init__()
        self.register_buffer("mean", torch.as_tensor(mean, dtype=torch.float32).view(-1, 1, 1), persistent=False)
        self.register_buffer("std", torch.as_tensor(std, dtype=torch.float32).view(-1, 1, 1), persistent=False)

    def forward(self, input: Tensor) -> Tensor:
        """Map (..., c, h, w) to the same shape."""
        return input * self.std.to(input) + self.mean.to(input)


class FlowToTensor:
    """Convert optical flow to channels first."""

    def __call__(self, flow: np.ndarray) -> Tensor:
        """Map an array (..., h, w, 2) to a float32 tensor (..., 2, h, w)."""
        return torch.from_numpy(np.ascontiguousarray(np.moveaxis(flow, -1, -3), dtype=np.float32))


class ResizeNearestExact(Resize):
    """Resize (c, h, w) or (n, c, h, w) by picking the nearest pixels, which keeps the type and the values of masks.

    Args:
        size: [height, width], or the size of the shorter edge.
        max_size: limit of the longer edge if only the shorter is given. A call raises a `ValueError` if it is not
            larger than `size`.
    """

    def __init__(self, size: Union[int, Sequence[int]], max_size: Optional[int] = None):
        super().__init__(size if isinstance(size, int) else list(size), InterpolationMode.NEAREST_EXACT, max_size)

    def forward(self, input: Tensor) -> Tensor:
        """Return the resized tensor; torchvision calls the argument `img`."""
        return super().forward(input)


class OrigCenterCrop:
    """Crop the central square whose side is the shorter edge."""

    def __call__(self, input: Tensor) -> Tensor:
        """Map a tensor (..., h, w) to (..., s, s) with s = min(h, w)."""
        return center_crop(input, min(input.shape[-2:]))


class CheckFormat:
    """Check the shape of a tensor and, if asked for, that it is one-hot.

    Args:
        shape: expected shape.
        one_hot: require values 0 and 1, with a single 1 along `class_dim`.
        class_dim: axis of the classes.
    """

    def __init__(self, shape: Sequence[int], one_hot: bool = False, class_dim: int = 0):
        self.shape, self.one_hot, self.class_dim = tuple(shape), one_hot, class_dim

    def __call__(self, input: Tensor) -> Tensor:
        """Return the tensor itself.

        Raises:
            ValueError: if it does not have the expected format.
        """
        if tuple(input.shape) != self.shape:
            raise ValueError(f"Expected the shape {self.shape}, got {tuple(input.shape)}.")
        if self.one_hot:
            is_binary = (input == 0) | (input == 1)
            if not is_binary.all() or not (input.sum(self.class_dim) == 1).all():
                raise ValueError(f"Expected one-hot values along axis {self.class_dim}.")
        return input


def _without_last_axis(mask: np.ndarray) -> np.ndarray:
    if mask.shape[-1] != 1:
        raise ValueError(f"The last axis of a mask has to be of size 1, the shape is {tuple(mask.shape)}.")
    return mask[..., 0]


class MaskToTensor:
    """Convert per-object masks into float32 tensors of zeros and ones.

    Args:
        singleton_dim_last: remove a last axis of size 1.
    """

    def __init__(self, singleton_dim_last: bool = True):
        self.singleton_dim_last = singleton_dim_last

    def __call__(self, mask: np.ndarray) -> Tensor:
        """Map (..., k, h, w, 1) to (..., k, h, w): 1 where the mask is positive."""
        mask = _without_last_axis(mask) if self.singleton_dim_last else mask
        return torch.from_numpy((mask > 0).astype(np.float32))


class DenseMaskToTensor:
    """Convert an integer mask into a uint8 tensor, without its last axis of size 1."""

    def __call__(self, mask: np.ndarray) -> Tensor:
        """Map (..., 1) to (...)."""
        return torch.from_numpy(_without_last_axis(mask).astype(np.uint8))


class MultiMaskToTensor:
    """Make overlapping per-object masks exclusive: each pixel goes to the object with the largest value.

    Args:
        axis: axis of the objects.
    """

    def __init__(self, axis: int = -4):
        self.axis = axis

    def __call__(self, mask: np.ndarray) -> Tensor:
        """Map (..., k, h, w, 1) to a float32 one-hot tensor (..., k, h, w); ties go to the lowest index."""
        winners = mask.argmax(self.axis)
        one_hot = IntegerToOneHotMask(False, self.axis, max_instances=mask.shape[self.axis] - 1)(winners)
        return torch.from_numpy(_without_last_axis(one_hot).astype(np.float32))


class IntegerToOneHotMask:
    """Convert an integer mask into one mask per id.

    Args:
        ignore_typical_background: take the ids 0 and 255 for background, which gets no mask.
        output_axis: position of the new axis.
        max_instances: largest id to expect; by default the largest in the mask.
    """

    def __init__(
        self, ignore_typical_background: bool = True, output_axis: int = -4, max_instances: Optional[int] = None
    ):
        self.ignore_typical_background = ignore_typical_background
        self.output_axis, self.max_instances = output_axis, max_instances

    def __call__(self, mask: np.ndarray) -> np.ndarray:
        """Map integers (..., h, w, 1) to uint8 zeros and ones (..., m, h, w, 1).

        m counts the ids 1, 2, ... if the background is ignored and the ids 0, 1, ... otherwise.
        """
        if self.ignore_typical_background:
            mask = np.where(mask == 255, 0, mask)
        n_ids = int(mask.max(initial=0)) if self.max_instances is None else self.max_instances
        # A type as small as possible compares fastest.
        dtype = np.promote_types(mask.dtype, np.min_scalar_type(n_ids))
        ids = np.arange(int(self.ignore_typical_background), n_ids + 1, dtype=dtype)
        ids = np.moveaxis(ids.reshape(-1, *[1] * mask.ndim), 0, self.output_axis)
        return (np.expand_dims(mask, self.output_axis) == ids).astype(np.uint8)
