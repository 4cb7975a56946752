"""Preprocessing of segmentation masks."""
import numpy as np
import torch

from ocl._pipe import get_field


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
        if self.singleton_dim_last:
            mask = _without_last_axis(mask)
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
        winners = np.expand_dims(mask.argmax(self.axis), self.axis)
        one_hot = winners == _along_axis(np.arange(mask.shape[self.axis]), mask.ndim, self.axis)
        return torch.from_numpy(_without_last_axis(one_hot).astype(np.float32))


def _along_axis(values, n_axes, axis):
    """Lay out a vector along one of `n_axes` axes."""
    shape = [1] * n_axes
    shape[axis] = len(values)
    return values.reshape(shape)


class IntegerToOneHotMask:
    """Convert an integer mask into one mask per id.

    Args:
        ignore_typical_background: whether the ids 0 and 255 are background and get no mask.
        output_axis: where the new axis goes.
        max_instances: largest id to expect; by default the largest in the mask.
    """

    def __init__(self, ignore_typical_background=True, output_axis=-4, max_instances=None):
        self.ignore_typical_background = ignore_typical_background
        self.output_axis = output_axis
        self.max_instances = max_instances

    def __call__(self, mask):
        """Map integers (..., H, W, 1) to uint8 zeros and ones (..., M, H, W, 1).

        M counts the ids 1, 2, ... if the background is ignored and the ids 0, 1, ... otherwise.
        """
        if self.ignore_typical_background:
            mask = np.where(mask == 255, 0, mask)
        n_ids = int(mask.max(initial=0)) if self.max_instances is None else self.max_instances
        first = 1 if self.ignore_typical_background else 0
        # A type as small as possible compares fastest.
        ids = np.arange(first, n_ids + 1, dtype=np.promote_types(mask.dtype, np.min_scalar_type(n_ids)))
        ids = _along_axis(ids, mask.ndim + 1, self.output_axis)
        return (np.expand_dims(mask, self.output_axis) == ids).astype(np.uint8)


def expand_dense_mask(mask):
    """Split a mask of class ids into one mask per class.

    Args:
        mask: (1, H, W, 1) class ids, 0 is background.

    Returns:
        (K, H, W, 1), each slice holds the id of its class or 0; the background gets a slice only if there is
        nothing else.
    """
    classes = np.unique(mask)
    if len(classes) > 1:
        classes = classes[classes != 0]
    classes = classes.reshape(-1, 1, 1, 1)
    return np.where(mask == classes, classes, 0).astype(mask.dtype)


class InstanceMasksToDenseMasks:
    """Multiply binary instance masks with the categories of the instances.

    Args:
        instance_mask_key: field of the masks (I, H, W, 1); samples without it are not changed.
        category_key: field of the categories (I,).
    """

    def __init__(self, instance_mask_key="instance_mask", category_key="instance_category"):
        self.instance_mask_key = instance_mask_key
        self.category_key = category_key

    def __call__(self, data):
        """Return the sample with uint8 masks.

        Raises:
            ValueError: a category is not in 1 ... 255.
        """
        if self.instance_mask_key not in data:
            return data
        categories = np.asarray(get_field(data, self.category_key))
        if np.any(categories <= 0) or np.any(categories > 255):
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
        self.instance_mask_key = instance_mask_key
        self.target_key = target_key

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
        self.instance_mask_key = instance_mask_key
        self.class_mask_key = class_mask_key
        self.classes_key = classes_key
        self.ignore_mask_key = ignore_mask_key
        self.instance_axis = instance_axis

    def __call__(self, data):
        """Return the sample with the new fields.

        Raises:
            ValueError: an instance has pixels of no class or of several.
        """
        class_mask = np.expand_dims(get_field(data, self.class_mask_key), self.instance_axis)
        masks = get_field(data, self.instance_mask_key) * class_mask
        classes = [self._class_of(mask) for mask in np.moveaxis(masks, self.instance_axis, 0)]
        return {
            **data,
            self.instance_mask_key: masks,
            self.classes_key: np.array(classes, dtype=class_mask.dtype),
            self.ignore_mask_key: class_mask == 255,
        }

    @staticmethod
    def _class_of(mask):
        classes = np.unique(mask[mask > 0])
        if len(classes) != 1:
            raise ValueError(f"The pixels of an instance have to be of one class, not {classes.tolist()}.")
        return classes[0]


class AddEmptyMasks:
    """Add masks of zeros to samples that lack them.

    Args:
        mask_keys: one field or a list of fields; each is uint8 (1, H, W, 1).
        take_size_from: field of the image (H, W, ...).
    """

    def __init__(self, mask_keys, take_size_from="image"):
        self.mask_keys = [mask_keys] if isinstance(mask_keys, str) else list(mask_keys)
        self.take_size_from = take_size_from

    def __call__(self, data):
        """Return the sample with all masks."""
        height, width = get_field(data, self.take_size_from).shape[:2]
        missing = [key for key in self.mask_keys if key not in data]
        return {**data, **{key: np.zeros((1, height, width, 1), np.uint8) for key in missing}}
