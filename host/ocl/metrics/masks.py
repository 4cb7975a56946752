"""Metrics that compare predicted with true masks.

Predictions are scores (b, c, h, w), true masks (b, k, h, w), pixels to leave out (b, 1, h, w). Videos have an axis t
behind b: all their frames are scored jointly, so masks have to keep their place over time. A model called `prediction`,
`target` or `ignore` would take the place of what is mapped to these arguments.
"""

from typing import Any, Optional

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from ocl.metrics.means import MeanMetric, refuse_nan
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


def _one_hot_argmax(scores: Tensor) -> Tensor:
    """Mark the highest of k scores (b, k, n), the first one of equals, as bool."""
    winner = scores.max(dim=1, keepdim=True).indices  # several times faster than argmax on CPUs
    return torch.arange(scores.shape[1], device=scores.device).view(-1, 1) == winner


def _find_counted_pixels(target: Tensor, ignored: Tensor, ignore_overlaps: bool) -> Tensor:
    """Find the pixels (b, 1, n) that are neither ignored nor in several of the bool masks (b, k, n)."""
    counted = target.sum(dim=1, keepdim=True) <= 1
    if not ignore_overlaps and not (counted | ignored).all():
        raise ValueError(
            "True masks overlap. Set ignore_overlaps to leave these pixels out, "
            "or convert the masks such that each pixel belongs to one object."
        )
    return counted & ~ignored


def _count_common_pixels(first: Tensor, second: Tensor) -> Tensor:
    """Count the pixels that bool masks (b, c, n) and (b, k, n) share, as (b, c, k) in double precision."""
    # Autocast would round products in single precision; in double precision they are exact.
    return first.to(torch.float64) @ second.to(torch.float64).transpose(1, 2)


def _adjusted_rand_index(table: Tensor) -> Tensor:
    """Compute the index (b,) of contingency tables (b, c, k); it is 1 where it is not defined.

    This is Hubert and Arabie (1985), eq. 5, with ordered instead of unordered pairs of pixels.
    """
    margins = table, table.sum(2, keepdim=True), table.sum(1, keepdim=True), table.sum((1, 2), keepdim=True)
    in_both, in_rows, in_columns, in_all = ((counts * (counts - 1)).sum((1, 2)) for counts in margins)
    # Divided first, such that a single cluster gives exactly 1.
    expected = in_rows * (in_columns / in_all.clamp(min=1))
    span = (in_rows + in_columns) / 2 - expected
    return torch.where(span > 0, (in_both - expected) / span.where(span > 0, 1), 1)


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
            labeled = labeled & _one_hot_argmax(target)
        labeled = labeled & _find_counted_pixels(labeled, ignored, self.ignore_overlaps)
        self.add_scores(_adjusted_rand_index(_count_common_pixels(_one_hot_argmax(scores), labeled)))


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


class UnsupervisedMaskIoUMetric(MeanMetric):
    """Intersection over union of true masks with the predictions that fit them.

    The score of a sample is the mean over its true masks; empty masks and samples without masks do not count.

    Args:
        use_threshold: predictions are all scores above `threshold`, instead of the highest of every pixel.
        threshold: see above.
        matching: `hungarian`, every prediction serves one true mask at most, and masks left over score 0; or
            `best_overlap`, every true mask takes the best prediction.
        compute_discovery_fraction: the score is the fraction of true masks above `discovery_threshold`.
        correct_localization: the score is 1 if any true mask is above `discovery_threshold`, otherwise 0.
        discovery_threshold: see above.
        ignore_background: leave out the first true mask.
        ignore_overlaps: leave out pixels of several true masks.

    Raises:
        ValueError: if the matching is unknown or two kinds of scores are asked for.
    """

    higher_is_better = True

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
        super().__init__()
        if matching not in ("hungarian", "best_overlap"):
            raise ValueError(f"Unknown matching {matching!r}: choose hungarian or best_overlap.")
        if compute_discovery_fraction and correct_localization:
            raise ValueError("Choose one of compute_discovery_fraction and correct_localization.")
        self.use_threshold, self.threshold, self.matching = use_threshold, threshold, matching
        self.compute_discovery_fraction, self.correct_localization = compute_discovery_fraction, correct_localization
        self.discovery_threshold = discovery_threshold
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
        predicted = scores > self.threshold if self.use_threshold else _one_hot_argmax(scores)
        target = target > 0
        counted = _find_counted_pixels(target, ignored, self.ignore_overlaps)
        predicted, target = predicted & counted, target & counted
        common = _count_common_pixels(predicted, target)  # b c k
        union = predicted.sum(dim=2).unsqueeze(2) + target.sum(dim=2).unsqueeze(1) - common
        self.add_scores(self._score(common / union.clamp(min=1), target.any(dim=2)))

    def _score(self, ious: Tensor, present: Tensor) -> Tensor:
        """Turn IoUs (b, c, k) into the scores of all samples that have any of the true masks (b, k)."""
        if self.matching == "best_overlap":
            matched = ious.amax(dim=1)
        else:
            matched = torch.stack([_assign(table, kept) for table, kept in zip(ious.cpu(), present.cpu())]).to(ious)
        matched = matched.where(present, torch.nan)
        if self.correct_localization:
            scores = (matched > self.discovery_threshold).any(dim=1).to(ious)
        elif self.compute_discovery_fraction:
            scores = (matched > self.discovery_threshold).sum(dim=1) / present.sum(dim=1, dtype=ious.dtype)
        else:
            scores = matched.nanmean(dim=1)
        return scores[present.any(dim=1)]


def _assign(ious: Tensor, present: Tensor) -> Tensor:
    """Match predictions one to one with the present ones of k true masks; return the IoUs (k,)."""
    columns = present.nonzero().flatten()
    rows, order = linear_sum_assignment(ious[:, columns].numpy(), maximize=True)
    matched = torch.zeros_like(ious[0])
    matched[columns[order]] = ious[rows, columns[order]]
    return matched


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
