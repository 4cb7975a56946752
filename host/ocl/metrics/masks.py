"""Metrics that compare predicted with true masks.

Predictions are scores (b, c, h, w), true masks (b, k, h, w), pixels to leave out (b, 1, h, w). Videos have an axis t
behind b: all their frames are scored jointly, so masks have to keep their place over time. A model called `prediction`,
`target` or `ignore` would take the place of what is mapped to these arguments.
"""

from typing import Any, Optional

import torch
from torch import Tensor

from ocl.metrics.matched import MatchedIoUMetric, assign, check_matching
from ocl.metrics.means import MeanMetric, refuse_nan
from ocl.metrics.utils import (  # noqa: F401  some look for all of them here
    adjusted_rand_index,
    count_common_pixels,
    fg_adjusted_rand_index,
    one_hot_argmax,
    rand_index_of_table,
)
from ocl.utils.resizing import resize_patches_to_image


def _flatten(prediction: Tensor, target: Tensor, ignore: Optional[Tensor], from_class: int) -> tuple[Tensor, ...]:
    """Merge frames and pixels: scores (b, c, n), true masks (b, k, n) from a class on, and ignored pixels (b, 1, n)."""
    shapes = [tuple(mask.shape) for mask in (prediction, target, ignore) if mask is not None]
    if prediction.dim() not in (4, 5) or len({shape[:-3] + shape[-2:] for shape in shapes}) != 1:
        raise ValueError(
            "Expected predictions (b, c, h, w), targets (b, k, h, w) and pixels to ignore (b, 1, h, w), "
            f"or videos with an axis t behind b, all of one size, got shapes {shapes}."
        )
    refuse_nan(prediction=prediction, target=target, ignore=ignore)
    ignore = torch.zeros_like(prediction[..., :1, :, :]) if ignore is None else ignore
    scores, target, ignored = (mask.movedim(-3, 1).flatten(2) for mask in (prediction, target, ignore))
    return scores, target[:, from_class:], ignored > 0


def _find_counted_pixels(target: Tensor, ignored: Tensor, ignore_overlaps: bool) -> Tensor:
    """Find the pixels (b, 1, n) that are neither ignored nor in several of the bool masks (b, k, n)."""
    counted = target.sum(dim=1, keepdim=True) <= 1
    if not ignore_overlaps and not (counted | ignored).all():
        raise ValueError(
            "True masks overlap. Set ignore_overlaps to leave these pixels out, "
            "or convert the masks such that each pixel belongs to one object."
        )
    return counted & ~ignored


class ARIMetric(MeanMetric):
    """Adjusted Rand index, by default of the foreground only.

    Args:
        foreground: leave out the pixels of the first true mask.
        convert_target_one_hot: the true masks carry class ids as values: the highest one wins a pixel.
        ignore_overlaps: leave out pixels of several true masks.
    """

    higher_is_better = True

    def __init__(self, foreground: bool = True, convert_target_one_hot: bool = False, ignore_overlaps: bool = False):
        super().__init__()
        self.foreground = foreground
        self.convert_target_one_hot, self.ignore_overlaps = convert_target_one_hot, ignore_overlaps

    def update(self, prediction: Tensor, target: Tensor, ignore: Optional[Tensor] = None) -> None:
        """Add samples; only pixels of a true mask count, and samples without any score 1.

        Args:
            prediction: scores (b, c, h, w) or (b, t, c, h, w).
            target: (b, k, h, w) or (b, t, k, h, w).
            ignore: (b, 1, h, w) or (b, t, 1, h, w), true where pixels are left out.

        Raises:
            ValueError: if shapes do not fit, true masks overlap, or something holds NaN.
        """
        scores, target, ignored = _flatten(prediction, target, ignore, int(self.foreground))
        labeled = target > 0
        if self.convert_target_one_hot and target.shape[1] > 1:
            labeled = labeled & one_hot_argmax(target)
        labeled = labeled & _find_counted_pixels(labeled, ignored, self.ignore_overlaps)
        self.add_scores(rand_index_of_table(count_common_pixels(one_hot_argmax(scores), labeled)))


class PatchARIMetric(ARIMetric):
    """Adjusted Rand index of masks over the patches of a square image.

    Args:
        foreground: see `ARIMetric`, like the further options.
        resize_masks_mode: how the predictions are brought to the size of the true masks.
        **options: `convert_target_one_hot` and `ignore_overlaps`.
    """

    def __init__(self, foreground: bool = True, resize_masks_mode: str = "bilinear", **options: Any):
        super().__init__(foreground, **options)
        self.resize_masks_mode = resize_masks_mode

    def update(self, prediction: Tensor, target: Tensor, ignore: Optional[Tensor] = None) -> None:
        """Add samples; `prediction` is (b, c, n) or (b, t, c, n), the rest as in `ARIMetric`."""
        size = target.shape[-1]
        super().update(resize_patches_to_image(prediction, size, resize_mode=self.resize_masks_mode), target, ignore)


class UnsupervisedMaskIoUMetric(MatchedIoUMetric):
    """Intersection over union of true masks with the predictions that fit them.

    The score of a sample is the mean over its true masks; empty masks and samples without masks do not count.

    Args:
        use_threshold: see `MatchedIoUMetric`, like the following arguments.
        threshold: lowest score of a predicted pixel.
        matching: `hungarian` or `best_overlap`.
        compute_discovery_fraction: score the fraction of true masks that are found.
        correct_localization: score whether any true mask is found.
        discovery_threshold: IoU above which a true mask is found.
        ignore_background: leave out the first true mask.
        ignore_overlaps: leave out pixels of several true masks.
    """

    def __init__(
        self,
        use_threshold: bool = False,
        threshold: float = 0.5,
        matching: str = "hungarian",
        compute_discovery_fraction: bool = False,
        correct_localization: bool = False,
        discovery_threshold: float = 0.5,
        ignore_background: bool = False,
        ignore_overlaps: bool = False,
    ):
        super().__init__(
            use_threshold, threshold, matching, compute_discovery_fraction, correct_localization, discovery_threshold
        )
        self.ignore_background, self.ignore_overlaps = ignore_background, ignore_overlaps

    def update(self, prediction: Tensor, target: Tensor, ignore: Optional[Tensor] = None) -> None:
        """Add samples.

        Args:
            prediction: scores (b, c, h, w) or (b, t, c, h, w).
            target: (b, k, h, w) or (b, t, k, h, w), positive inside.
            ignore: (b, 1, h, w) or (b, t, 1, h, w), true where pixels are left out.

        Raises:
            ValueError: if shapes do not fit, true masks overlap, or something holds NaN.
        """
        scores, target, ignored = _flatten(prediction, target, ignore, int(self.ignore_background))
        predicted, target = self.select(scores), target > 0
        counted = _find_counted_pixels(target, ignored, self.ignore_overlaps)
        predicted, target = predicted & counted, target & counted
        self.add_matched(_iou(predicted, target), target.any(dim=2))


def _iou(first: Tensor, second: Tensor, if_both_empty: float = 0) -> Tensor:
    """Compute the IoU (b, c, k) of all pairs of bool masks (b, c, n) and (b, k, n)."""
    common = count_common_pixels(first, second)
    union = first.sum(dim=2).unsqueeze(2) + second.sum(dim=2).unsqueeze(1) - common
    return (common / union.clamp(min=1)).where(union > 0, if_both_empty)


def unsupervised_mask_iou(
    pred_mask: Tensor,
    true_mask: Tensor,
    matching: str = "hungarian",
    reduction: str = "mean",
    iou_empty: float = 0.0,
) -> Tensor:
    """Compute the IoU of true masks with the predictions that fit them, of one image.

    Args:
        pred_mask: (c, n), not 0 inside.
        true_mask: (k, n), not 0 inside.
        matching: `hungarian`, every prediction serves one true mask at most; or `best_overlap`, every true mask takes
            the best one, and empty ones score 0.
        reduction: `mean`, or `none` for one number per true mask, (k,).
        iou_empty: IoU of an empty prediction with an empty true mask.

    Raises:
        ValueError: if the masks have other axes, or the matching is unknown.
    """
    check_matching(matching)
    if pred_mask.dim() != 2 or true_mask.dim() != 2:
        raise ValueError(f"Expected (c, n) and (k, n), got {tuple(pred_mask.shape)} and {tuple(true_mask.shape)}.")
    predicted, true = pred_mask != 0, true_mask != 0
    ious = _iou(predicted.unsqueeze(0), true.unsqueeze(0), iou_empty)[0]
    if matching == "hungarian":
        matched = assign(ious.cpu(), torch.ones(len(true), dtype=torch.bool)).to(ious)
    else:
        matched = ious.amax(dim=0).where(true.any(dim=1), 0)
    return matched.mean() if reduction == "mean" else matched


class AverageBestOverlapMetric(UnsupervisedMaskIoUMetric):
    """Mean IoU of true masks with the best prediction each (ABO, also mBO)."""

    def __init__(self, **options: Any):
        super().__init__(matching="best_overlap", **options)


class BestOverlapObjectRecoveryMetric(UnsupervisedMaskIoUMetric):
    """Fraction of true masks that some prediction overlaps well."""

    def __init__(self, **options: Any):
        super().__init__(matching="best_overlap", compute_discovery_fraction=True, **options)


class MaskCorLocMetric(UnsupervisedMaskIoUMetric):
    """Fraction of samples in which some prediction overlaps some true mask well (CorLoc)."""

    def __init__(self, **options: Any):
        super().__init__(matching="best_overlap", correct_localization=True, **options)
