"""Preprocessing of image sizes and bounding boxes."""
import numpy as np

from ocl._pipe import get_field


class AddImageSize:
    """Add the size of the image as int64 `[height, width]`.

    Args:
        key: field of the image (H, W, ...).
        target_key: field to add.
    """

    def __init__(self, key="image", target_key="image_size"):
        self.key = key
        self.target_key = target_key

    def __call__(self, data):
        """Return the sample with the new field."""
        return {**data, self.target_key: np.array(get_field(data, self.key).shape[:2], dtype=np.int64)}


class AddEmptyBboxes:
    """Add one placeholder box, float32 (1, 4), to samples without boxes.

    Args:
        keys: one field or a list of fields.
        empty_value: all coordinates of the placeholder.
    """

    def __init__(self, keys="instance_bbox", empty_value=-1.0):
        self.keys = [keys] if isinstance(keys, str) else list(keys)
        self.empty_value = empty_value

    def __call__(self, data):
        """Return the sample with all boxes."""
        missing = [key for key in self.keys if key not in data]
        return {**data, **{key: np.full((1, 4), self.empty_value, np.float32) for key in missing}}


class CanonicalizeBboxes:
    """Convert boxes (I, 4) to the corners x1, y1, x2, y2.

    Args:
        key: field of the boxes; samples without it are not changed.
        format: `xywh`, corner and size, or `yxyx`, corners with the row first.
    """

    def __init__(self, key="instance_bbox", format="xywh"):
        if format not in ("xywh", "yxyx"):
            raise ValueError(f"Boxes can be of format xywh or yxyx, not `{format}`.")
        self.key = key
        self.format = format

    def __call__(self, data):
        """Return the sample with converted boxes."""
        if self.key not in data:
            return data
        boxes = data[self.key]
        if self.format == "yxyx":
            corners = boxes[..., [1, 0, 3, 2]]
        else:
            corners = np.concatenate([boxes[..., :2], boxes[..., :2] + boxes[..., 2:]], axis=-1)
        return {**data, self.key: corners}


class RescaleBboxes:
    """Scale boxes x1, y1, x2, y2 from the unit square to pixels.

    Args:
        key: field of the boxes; samples without it are not changed.
        take_size_from: field of the image (H, W, ...).
    """

    def __init__(self, key="instance_bbox", take_size_from="image"):
        self.key = key
        self.take_size_from = take_size_from

    def __call__(self, data):
        """Return the sample with scaled boxes."""
        if self.key not in data:
            return data
        height, width = get_field(data, self.take_size_from).shape[:2]
        scale = np.array([width, height, width, height], dtype=data[self.key].dtype)
        return {**data, self.key: data[self.key] * scale}
