"""Transforms of single fields that OCLF lacks; configs compose them with those of `ocl.preprocessing`."""

from typing import Any, Dict

import numpy as np
import torch


class OneHotMasks:
    """Masks of ids to one mask for each of the ids 0 to `num_masks - 1`; larger ids are in none.

    Args:
        num_masks: Number of masks, k.
    """

    def __init__(self, num_masks: int) -> None:
        self.num_masks = num_masks

    def __call__(self, ids: np.ndarray) -> np.ndarray:
        """Map integers (... h w 1) to uint8 zeros and ones (... k h w 1)."""
        numbers = np.arange(self.num_masks, dtype=np.promote_types(ids.dtype, np.min_scalar_type(self.num_masks)))
        return (ids[..., None, :, :, :] == numbers[:, None, None, None]).astype(np.uint8)


class ObjectMasks(OneHotMasks):
    """`OneHotMasks` of a background, id 0, and of objects; those with larger ids belong to the background."""

    def __call__(self, ids: np.ndarray) -> np.ndarray:
        """Map integers (... h w 1) to uint8 zeros and ones (... k h w 1); each pixel is in one mask."""
        return super().__call__(np.where(ids < self.num_masks, ids, 0))


class VoidMask:
    """The mask of pixels without a label.

    Args:
        void: Their id.
    """

    def __init__(self, void: int = 255) -> None:
        self.void = void

    def __call__(self, ids: np.ndarray) -> np.ndarray:
        """Map integers (... h w 1) to booleans (1 ... h w 1)."""
        return (ids == self.void)[None]


class CrowdsToVoid:
    """Of converted COCO, the pixels of crowd regions, which scores leave out.

    Args:
        score_crowds: Leave out none: crowds are scored like objects.
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
        num_masks: Number of masks, that of void, the first, included.
    """

    def __init__(self, num_masks: int) -> None:
        self.num_masks = num_masks

    def __call__(self, sample: Dict[str, Any]) -> Dict[str, Any]:
        """Replace `segment_area` and `segment_isthing` by `area`, `num_masks` pixel counts.

        It is -1 for what has no size to be scored by: void, stuff, and masks without a segment.
        """
        sample = dict(sample)
        segments = zip(sample.pop("segment_area"), sample.pop("segment_isthing"))
        areas = [-1.0] + [area if is_thing else -1.0 for area, is_thing in segments]
        areas = (areas + [-1.0] * self.num_masks)[: self.num_masks]
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
