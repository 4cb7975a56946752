"""Functions that turn stored samples into what models take; most map one field, some the whole sample."""

import numpy as np
import torch
from torch import nn
from torchvision.transforms import InterpolationMode, Normalize, Resize
from torchvision.transforms.functional import center_crop

from ocl._annotations import AddEmptyBboxes, AddEmptyMasks, AddImageSize, CanonicalizeBboxes, RescaleBboxes
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
        video = video.unsqueeze(-1) if video.ndim == 3 else video
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


class Denormalize(nn.Module):
    """Undo a normalization with a mean and a standard deviation per channel.

    Args:
        mean: one number per channel.
        std: one number per channel.
    """

    def __init__(self, mean, std):
        super().__init__()
        self.register_buffer("mean", torch.as_tensor(mean, dtype=torch.float32).view(-1, 1, 1), persistent=False)
        self.register_buffer("std", torch.as_tensor(std, dtype=torch.float32).view(-1, 1, 1), persistent=False)

    def forward(self, input):
        """Map (..., C, H, W) to the same shape."""
        return input * self.std.to(input) + self.mean.to(input)


class FlowToTensor:
    """Convert optical flow to channels first."""

    def __call__(self, flow):
        """Map an array (..., H, W, 2) to a float32 tensor (..., 2, H, W)."""
        return torch.from_numpy(np.ascontiguousarray(np.moveaxis(flow, -1, -3), dtype=np.float32))


class ResizeNearestExact(Resize):
    """Resize (C, H, W) or (N, C, H, W) by picking the nearest pixels, which keeps the type and the values of masks.

    Args:
        size: [height, width], or the size of the shorter edge.
        max_size: limit of the longer edge if only the shorter is given. A call raises a `ValueError` if it is not
            larger than `size`.
    """

    def __init__(self, size, max_size=None):
        super().__init__(size if isinstance(size, int) else list(size), InterpolationMode.NEAREST_EXACT, max_size)

    def forward(self, input):
        """Return the resized tensor."""
        return super().forward(input)


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
        self.shape, self.one_hot, self.class_dim = tuple(shape), one_hot, class_dim

    def __call__(self, input):
        """Return the tensor itself.

        Raises:
            ValueError: it does not have the expected format.
        """
        if tuple(input.shape) != self.shape:
            raise ValueError(f"Expected the shape {self.shape}, got {tuple(input.shape)}.")
        if self.one_hot:
            is_binary = (input == 0) | (input == 1)
            if not is_binary.all() or not (input.sum(self.class_dim) == 1).all():
                raise ValueError(f"Expected one-hot values along axis {self.class_dim}.")
        return input


def _without_last_axis(mask):
    if mask.shape[-1] != 1:
        raise ValueError(f"The last axis of a mask has to be of size 1, the shape is {tuple(mask.shape)}.")
    return mask[..., 0]


class MaskToTensor:
    """Convert per-object masks into float32 tensors of zeros and ones.

    Args:
        singleton_dim_last: whether there is a last axis of size 1 to remove.
    """

    def __init__(self, singleton_dim_last=True):
        self.singleton_dim_last = singleton_dim_last

    def __call__(self, mask):
        """Map (..., K, H, W, 1) to (..., K, H, W): 1 where the mask is positive."""
        mask = _without_last_axis(mask) if self.singleton_dim_last else mask
        return torch.from_numpy((mask > 0).astype(np.float32))


class DenseMaskToTensor:
    """Convert an integer mask into a uint8 tensor, without its last axis of size 1."""

    def __call__(self, mask):
        """Map (..., 1) to (...)."""
        return torch.from_numpy(_without_last_axis(mask).astype(np.uint8))


class MultiMaskToTensor:
    """Make overlapping per-object masks exclusive: each pixel goes to the object with the largest value.

    Args:
        axis: axis of the objects.
    """

    def __init__(self, axis=-4):
        self.axis = axis

    def __call__(self, mask):
        """Map (..., K, H, W, 1) to a float32 one-hot tensor (..., K, H, W); ties go to the lowest index."""
        winners = mask.argmax(self.axis)
        one_hot = IntegerToOneHotMask(False, self.axis, max_instances=mask.shape[self.axis] - 1)(winners)
        return torch.from_numpy(_without_last_axis(one_hot).astype(np.float32))


class IntegerToOneHotMask:
    """Convert an integer mask into one mask per id.

    Args:
        ignore_typical_background: whether the ids 0 and 255 are background and get no mask.
        output_axis: where the new axis goes.
        max_instances: largest id to expect; by default the largest in the mask.
    """

    def __init__(self, ignore_typical_background=True, output_axis=-4, max_instances=None):
        self.ignore_typical_background = ignore_typical_background
        self.output_axis, self.max_instances = output_axis, max_instances

    def __call__(self, mask):
        """Map integers (..., H, W, 1) to uint8 zeros and ones (..., M, H, W, 1).

        M counts the ids 1, 2, ... if the background is ignored and the ids 0, 1, ... otherwise.
        """
        if self.ignore_typical_background:
            mask = np.where(mask == 255, 0, mask)
        n_ids = int(mask.max(initial=0)) if self.max_instances is None else self.max_instances
        # A type as small as possible compares fastest.
        dtype = np.promote_types(mask.dtype, np.min_scalar_type(n_ids))
        ids = np.arange(int(self.ignore_typical_background), n_ids + 1, dtype=dtype)
        ids = np.moveaxis(ids.reshape(-1, *[1] * mask.ndim), 0, self.output_axis)
        return (np.expand_dims(mask, self.output_axis) == ids).astype(np.uint8)


def expand_dense_mask(mask):
    """Split a mask of class ids into one mask per class.

    Args:
        mask: (1, H, W, 1) class ids, 0 is background.

    Returns:
        (K, H, W, 1), each slice holds the id of its class or 0; the background gets a slice only if there is nothing
        else.
    """
    classes = np.unique(mask)
    classes = (classes[classes != 0] if len(classes) > 1 else classes).reshape(-1, 1, 1, 1)
    return np.where(mask == classes, classes, 0).astype(mask.dtype)


class InstanceMasksToDenseMasks:
    """Multiply binary instance masks with the categories of the instances.

    Args:
        instance_mask_key: field of the masks (I, H, W, 1); samples without it are not changed.
        category_key: field of the categories (I,).
    """

    def __init__(self, instance_mask_key="instance_mask", category_key="instance_category"):
        self.instance_mask_key, self.category_key = instance_mask_key, category_key

    def __call__(self, data):
        """Return the sample with uint8 masks.

        Raises:
            ValueError: a category is not in 1 ... 255.
        """
        if self.instance_mask_key not in data:
            return data
        categories = np.asarray(get_field(data, self.category_key))
        if np.any((categories <= 0) | (categories > 255)):
            raise ValueError(f"Categories of instances have to be in 1 ... 255, not {categories.tolist()}.")
        masks = data[self.instance_mask_key] * categories.reshape(-1, 1, 1, 1)
        return {**data, self.instance_mask_key: masks.astype(np.uint8)}


class AddSegmentationMaskFromInstanceMask:
    """Add masks per class, made of dense instance masks; where these overlap, the highest class wins.

    Args:
        instance_mask_key: field of the masks (I, H, W, 1); samples without it are not changed.
        target_key: field of the new masks (K, H, W, 1).
    """

    def __init__(self, instance_mask_key="instance_mask", target_key="segmentation_mask"):
        self.instance_mask_key, self.target_key = instance_mask_key, target_key

    def __call__(self, data):
        """Return the sample with the new field."""
        if self.instance_mask_key not in data:
            return data
        classes = data[self.instance_mask_key].max(axis=0, keepdims=True, initial=0)
        return {**data, self.target_key: expand_dense_mask(classes)}


class VOCInstanceMasksToDenseMasks:
    """Give the instances of PASCAL VOC their classes.

    Args:
        instance_mask_key: field of the one-hot instance masks, replaced by masks of class ids.
        class_mask_key: field of the class ids (H, W, 1), 255 is void.
        classes_key: field to add with the class of each instance (I,).
        ignore_mask_key: field to add with the void pixels (1, H, W, 1), bool.
        instance_axis: axis of the instances.
    """

    def __init__(
        self,
        instance_mask_key="segmentation-instance",
        class_mask_key="segmentation-class",
        classes_key="instance_category",
        ignore_mask_key="ignore_mask",
        instance_axis=-4,
    ):
        self.instance_mask_key, self.class_mask_key = instance_mask_key, class_mask_key
        self.classes_key, self.ignore_mask_key, self.instance_axis = classes_key, ignore_mask_key, instance_axis

    def __call__(self, data):
        """Return the sample with the new fields.

        Raises:
            ValueError: an instance has pixels of no class or of several.
        """
        class_mask = np.expand_dims(get_field(data, self.class_mask_key), self.instance_axis)
        masks = get_field(data, self.instance_mask_key) * class_mask
        classes = [np.unique(mask[mask > 0]) for mask in np.moveaxis(masks, self.instance_axis, 0)]
        mixed = [found.tolist() for found in classes if len(found) != 1]
        if mixed:
            raise ValueError(f"The pixels of an instance have to be of one class, not {mixed[0]}.")
        return {
            **data,
            self.instance_mask_key: masks,
            self.ignore_mask_key: class_mask == 255,
            self.classes_key: np.array(classes, class_mask.dtype).reshape(-1),
        }
