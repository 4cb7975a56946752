"""Masks, boxes and sizes of annotated samples, and placeholders for annotations that they lack."""

from typing import Any, Union

import numpy as np

from ocl._loader.pipe import get_field


class AddEmptyMasks:
    """Add masks of zeros to samples that lack them.

    Args:
        mask_keys: one field or a list of fields; each is uint8 (1, h, w, 1).
        take_size_from: field of the image (h, w, ...).
    """

    def __init__(self, mask_keys: Union[str, list[str]], take_size_from: str = "image"):
        self.mask_keys = [mask_keys] if isinstance(mask_keys, str) else list(mask_keys)
        self.take_size_from = take_size_from

    def __call__(self, data: dict[str, Any]) -> dict[str, Any]:
        """Return the sample with all masks."""
        height, width = get_field(data, self.take_size_from).shape[:2]
        return {**{key: np.zeros((1, height, width, 1), np.uint8) for key in self.mask_keys}, **data}


class AddEmptyBboxes:
    """Add one placeholder box, float32 (1, 4), to samples without boxes.

    Args:
        keys: one field or a list of fields.
        empty_value: all coordinates of the placeholder.
    """

    def __init__(self, keys: Union[str, list[str]] = "instance_bbox", empty_value: float = -1.0):
        self.keys = [keys] if isinstance(keys, str) else list(keys)
        self.empty_value = empty_value

    def __call__(self, data: dict[str, Any]) -> dict[str, Any]:
        """Return the sample with all boxes."""
        return {**{key: np.full((1, 4), self.empty_value, np.float32) for key in self.keys}, **data}


class AddImageSize:
    """Add the size of the image as int64 `[height, width]`.

    Args:
        key: field of the image (h, w, ...).
        target_key: field to add.
    """

    def __init__(self, key: str = "image", target_key: str = "image_size"):
        self.key, self.target_key = key, target_key

    def __call__(self, data: dict[str, Any]) -> dict[str, Any]:
        """Return the sample with the new field."""
        return {**data, self.target_key: np.array(get_field(data, self.key).shape[:2], dtype=np.int64)}


class CanonicalizeBboxes:
    """Convert boxes (i, 4) to the corners x1, y1, x2, y2.

    Args:
        key: field of the boxes; samples without it are not changed.
        format: `xywh`, corner and size, or `yxyx`, corners with the row first.
    """

    def __init__(self, key: str = "instance_bbox", format: str = "xywh"):
        if format not in ("xywh", "yxyx"):
            raise ValueError(f"Boxes can be of format xywh or yxyx, not `{format}`.")
        self.key, self.format = key, format

    def __call__(self, data: dict[str, Any]) -> dict[str, Any]:
        """Return the sample with converted boxes."""
        if self.key not in data:
            return data
        boxes = data[self.key]
        if self.format == "yxyx":
            return {**data, self.key: boxes[..., [1, 0, 3, 2]]}
        corner, size = boxes[..., :2], boxes[..., 2:]
        return {**data, self.key: np.concatenate([corner, corner + size], axis=-1)}


class RescaleBboxes:
    """Scale boxes x1, y1, x2, y2 from the unit square to pixels.

    Args:
        key: field of the boxes; samples without it are not changed.
        take_size_from: field of the image (h, w, ...).
    """

    def __init__(self, key: str = "instance_bbox", take_size_from: str = "image"):
        self.key, self.take_size_from = key, take_size_from

    def __call__(self, data: dict[str, Any]) -> dict[str, Any]:
        """Return the sample with scaled boxes."""
        if self.key not in data:
            return data
        height, width = get_field(data, self.take_size_from).shape[:2]
        scale = np.array([width, height, width, height], dtype=data[self.key].dtype)
        return {**data, self.key: data[self.key] * scale}


def expand_dense_mask(mask: np.ndarray) -> np.ndarray:
    """Split a mask of class ids into one mask per class.

    Args:
        mask: (1, h, w, 1) class ids, 0 is background.

    Returns:
        (k, h, w, 1), each slice holds the id of its class or 0; the background gets a slice only if there is nothing
        else.
    """
    classes = np.unique(mask)
    classes = (classes[classes != 0] if len(classes) > 1 else classes).reshape(-1, 1, 1, 1)
    return np.where(mask == classes, classes, 0).astype(mask.dtype)


class InstanceMasksToDenseMasks:
    """Multiply binary instance masks with the categories of the instances.

    Args:
        instance_mask_key: field of the masks (i, h, w, 1); samples without it are not changed.
        category_key: field of the categories (i,).
    """

    def __init__(self, instance_mask_key: str = "instance_mask", category_key: str = "instance_category"):
        self.instance_mask_key, self.category_key = instance_mask_key, category_key

    def __call__(self, data: dict[str, Any]) -> dict[str, Any]:
        """Return the sample with uint8 masks.

        Raises:
            ValueError: if a category is not in 1 ... 255.
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
        instance_mask_key: field of the masks (i, h, w, 1); samples without it are not changed.
        target_key: field of the new masks (k, h, w, 1).
    """

    def __init__(self, instance_mask_key: str = "instance_mask", target_key: str = "segmentation_mask"):
        self.instance_mask_key, self.target_key = instance_mask_key, target_key

    def __call__(self, data: dict[str, Any]) -> dict[str, Any]:
        """Return the sample with the new field."""
        if self.instance_mask_key not in data:
            return data
        return {**data, self.target_key: self.convert(data[self.instance_mask_key])}

    @staticmethod
    def convert(instance_mask: np.ndarray) -> np.ndarray:
        """Map the masks of instances to those of classes."""
        return expand_dense_mask(instance_mask.max(axis=0, keepdims=True, initial=0))


class VOCInstanceMasksToDenseMasks:
    """Give the instances of PASCAL VOC their classes.

    Args:
        instance_mask_key: field of the one-hot instance masks, replaced by masks of class ids.
        class_mask_key: field of the class ids (h, w, 1), 255 is void.
        classes_key: field to add with the class of each instance (i,).
        ignore_mask_key: field to add with the void pixels (1, h, w, 1), bool.
        instance_axis: axis of the instances.
    """

    def __init__(
        self,
        instance_mask_key: str = "segmentation-instance",
        class_mask_key: str = "segmentation-class",
        classes_key: str = "instance_category",
        ignore_mask_key: str = "ignore_mask",
        instance_axis: int = -4,
    ):
        self.instance_mask_key, self.class_mask_key = instance_mask_key, class_mask_key
        self.classes_key, self.ignore_mask_key, self.instance_axis = classes_key, ignore_mask_key, instance_axis

    def __call__(self, data: dict[str, Any]) -> dict[str, Any]:
        """Return the sample with the new fields.

        Raises:
            ValueError: if an instance has pixels of no class or of several.
        """
        class_mask = np.expand_dims(get_field(data, self.class_mask_key), self.instance_axis)
        masks = get_field(data, self.instance_mask_key) * class_mask
        classes = [np.unique(mask[mask > 0]) for mask in np.moveaxis(masks, self.instance_axis, 0)]
        mixed = [ids.tolist() for ids in classes if len(ids) != 1]
        if mixed:
            raise ValueError(f"The pixels of an instance have to be of one class, not {mixed[0]}.")
        return {
            **data,
            self.instance_mask_key: masks,
            self.ignore_mask_key: class_mask == 255,
            self.classes_key: np.array(classes, class_mask.dtype).reshape(-1),
        }
