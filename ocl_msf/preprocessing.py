"""Transforms of single fields that OCLF lacks; configs compose them with those of `ocl.preprocessing`."""

import math
from typing import Any, Dict, Optional, Tuple

import numpy as np
import torch
from torch.nn import functional as F


class OneHotMasks:
    """Masks of ids to one mask for each id from 0 on.

    Args:
        num_masks: number of masks, k; larger ids are in none. By default as many as the sample's largest id asks for,
            at least 2, so that no object is lost, whatever the model has slots for; collation has to pad
            (`use_autopadding`).
        void: id of pixels without a label, which is not counted.
    """

    def __init__(self, num_masks: Optional[int] = None, void: Optional[int] = None) -> None:
        self.num_masks = num_masks
        self.void = void

    def __call__(self, ids: np.ndarray) -> np.ndarray:
        """Map integers (... h w 1) to uint8 zeros and ones (... k h w 1)."""
        count = self.num_masks or int(ids.max(where=ids != self.void, initial=1)) + 1
        numbers = np.arange(count, dtype=np.promote_types(ids.dtype, np.min_scalar_type(count)))
        return (ids[..., None, :, :, :] == numbers[:, None, None, None]).astype(np.uint8)


class ObjectMasks(OneHotMasks):
    """`OneHotMasks` of a background, id 0, and of objects; those from `num_masks` on belong to the background."""

    def __call__(self, ids: np.ndarray) -> np.ndarray:
        """Map integers (... h w 1) to uint8 zeros and ones (... k h w 1); each pixel is in one mask."""
        return super().__call__(ids if self.num_masks is None else np.where(ids < self.num_masks, ids, 0))


class VoidMask:
    """The mask of pixels without a label.

    Args:
        void: their id.
    """

    def __init__(self, void: int = 255) -> None:
        self.void = void

    def __call__(self, ids: np.ndarray) -> np.ndarray:
        """Map integers (... h w 1) to booleans (1 ... h w 1)."""
        return (ids == self.void)[None]


class CrowdsToVoid:
    """Of converted COCO, the pixels of crowd regions, which scores leave out.

    Args:
        score_crowds: leave out none: crowds are scored like objects.
    """

    def __init__(self, score_crowds: bool = False) -> None:
        self.score_crowds = score_crowds

    def __call__(self, sample: Dict[str, Any]) -> Dict[str, Any]:
        """Replace `segment_iscrowd` (n) by `void`, booleans (1 h w 1), with `segmentation` (h w 1) as it is."""
        sample = dict(sample)
        crowds = 1 + np.flatnonzero(sample.pop("segment_iscrowd"))
        void = np.isin(sample["segmentation"], crowds)[None]
        return {**sample, "void": np.zeros_like(void) if self.score_crowds else void}


class SegmentAreas:
    """Of converted COCO, the areas of things in the original image, in the order of their masks.

    Args:
        num_masks: number of masks, that of void, the first, included; by default as many as `OneHotMasks` makes of
            the same segments.
    """

    def __init__(self, num_masks: Optional[int] = None) -> None:
        self.num_masks = num_masks

    def __call__(self, sample: Dict[str, Any]) -> Dict[str, Any]:
        """Replace `segment_area` and `segment_isthing` by `area`, a pixel count for each mask.

        It is -1 for what has no size to be scored by: void, stuff, and masks without a segment.
        """
        sample = dict(sample)
        segments = zip(sample.pop("segment_area"), sample.pop("segment_isthing"))
        areas = [-1.0] + [area if is_thing else -1.0 for area, is_thing in segments]
        count = self.num_masks or max(len(areas), 2)
        areas = (areas + [-1.0] * count)[:count]
        return {**sample, "area": areas}


class SampleFrames:
    """Every n-th frame of a video, from its first.

    Args:
        every: n.
    """

    def __init__(self, every: int) -> None:
        self.every = every

    def __call__(self, video: np.ndarray) -> np.ndarray:
        """Map (t ...) to (t/n ...), rounded up."""
        return video[:: self.every]


class FramesToBatch:
    """Videos to a batch of images."""

    def __call__(self, videos: torch.Tensor) -> torch.Tensor:
        """Map (b t c h w) to (b*t c h w)."""
        return videos.flatten(0, 1)


class RandomCropAndFlip:
    """A random crop, resized to a square, which half of the time is flipped; frames of a video and boxes alike.

    Args:
        size: side of the square in pixels.
        scale: least and largest area of the crop, as shares of the largest square in the image.
        ratio: least and largest width of the crop per height.
    """

    def __init__(self, size: int, scale: Tuple[float, float] = (0.75, 1.0), ratio: Tuple[float, float] = (0.75, 4 / 3)):
        self.size, self.scale, self.ratio = size, scale, ratio

    def __call__(self, sample: Dict[str, Any]) -> Dict[str, Any]:
        """Replace `image`, uint8 (h w c) or (t h w c), and `boxes` (... 4), if there are any.

        Boxes are corners x, y, x, y in [0, 1]; those that the crop leaves out become zeros, which is no box.
        """
        image = np.asarray(sample["image"])
        rows, columns = image.shape[-3:-1]
        top, left, height, width = self._draw(rows, columns)
        flips = bool(torch.rand(()) < 0.5)
        cropped = image[..., top : top + height, left : left + width, :]
        sample = {**sample, "image": self._resize(cropped[..., ::-1, :] if flips else cropped)}
        if "boxes" in sample:
            boxes = np.asarray(sample["boxes"]) * np.array([columns, rows] * 2)
            boxes = ((boxes - np.array([left, top] * 2)) / np.array([width, height] * 2)).clip(0, 1)  # ... 4
            if flips:
                boxes = np.stack([1 - boxes[..., 2], boxes[..., 1], 1 - boxes[..., 0], boxes[..., 3]], -1)
            seen = (boxes[..., 2:] > boxes[..., :2]).all(-1, keepdims=True)
            sample["boxes"] = np.where(seen, boxes, 0).astype(np.float32)
        return sample

    def _draw(self, rows: int, columns: int) -> Tuple[int, int, int, int]:
        """Top, left, height and width of a crop; after ten that do not fit, the largest square in the middle."""
        side = min(rows, columns)
        for _ in range(10):
            area = side**2 * torch.empty(()).uniform_(*self.scale).item()
            ratio = math.exp(torch.empty(()).uniform_(*map(math.log, self.ratio)).item())
            width, height = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
            if width <= columns and height <= rows:
                top, left = (int(torch.randint(room + 1, ())) for room in (rows - height, columns - width))
                return top, left, height, width
        return (rows - side) // 2, (columns - side) // 2, side, side

    def _resize(self, image: np.ndarray) -> np.ndarray:
        frames = torch.from_numpy(np.ascontiguousarray(image)).movedim(-1, -3).float()  # (t) c h w
        batch = frames if frames.dim() == 4 else frames[None]
        size = (self.size, self.size)
        batch = F.interpolate(batch, size, mode="bilinear", align_corners=False, antialias=True)
        frames = batch if frames.dim() == 4 else batch[0]
        return frames.round().clamp(0, 255).to(torch.uint8).movedim(-3, -1).numpy()
