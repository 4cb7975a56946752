"""Transforms of single fields that OCLF lacks; configs compose them with those of `ocl.preprocessing`."""

from typing import Any, Dict, Optional

import numpy as np
import torch


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
