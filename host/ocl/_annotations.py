"""Sizes and boxes of samples, and placeholders for annotations that they lack."""

from typing import Any, Union

import numpy as np

from ocl._loader.pipe import get_field


class AddEmptyMasks:
    """Add masks of zeros to samples that lack them.

    Args:
        mask_keys: One field or a list of fields; each is uint8 (1, h, w, 1).
        take_size_from: Field of the image (h, w, ...).
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
        keys: One field or a list of fields.
        empty_value: All coordinates of the placeholder.
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
        key: Field of the image (h, w, ...).
        target_key: Field to add.
    """

    def __init__(self, key: str = "image", target_key: str = "image_size"):
        self.key, self.target_key = key, target_key

    def __call__(self, data: dict[str, Any]) -> dict[str, Any]:
        """Return the sample with the new field."""
        return {**data, self.target_key: np.array(get_field(data, self.key).shape[:2], dtype=np.int64)}


class CanonicalizeBboxes:
    """Convert boxes (i, 4) to the corners x1, y1, x2, y2.

    Args:
        key: Field of the boxes; samples without it are not changed.
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
        key: Field of the boxes; samples without it are not changed.
        take_size_from: Field of the image (h, w, ...).
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
