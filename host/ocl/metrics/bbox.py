"""Metrics that compare the boxes around predicted masks with true boxes."""

from typing import Any

import torch
from torch import Tensor

from ocl.metrics.matched import MatchedIoUMetric, assign, check_matching
from ocl.metrics.means import refuse_nan
from ocl.metrics.utils import masks_to_bboxes


def box_iou(first: Tensor, second: Tensor) -> Tensor:
    """Compute the IoU (n, m) of boxes x1, y1, x2, y2 (n, 4) and (m, 4); it is 0 where both have no area."""
    from torchvision.ops import box_iou as iou  # here, since it takes seconds

    return iou(first.to(torch.float64), second.to(torch.float64)).nan_to_num(0)


def find_boxes(masks: Tensor) -> tuple[Tensor, Tensor]:
    """Return the boxes (..., k, 4) of masks (..., k, h, w), and which masks (..., k) have any pixel."""
    boxes = masks_to_bboxes(masks.flatten(0, -3)).unflatten(0, masks.shape[:-2])
    return boxes, masks.flatten(-2).any(dim=-1)


def find_true_boxes(target: Tensor, is_mask: bool) -> tuple[Tensor, Tensor]:
    """Return true boxes (..., k, 4) and which of them (..., k) are meant, of masks or of boxes.

    Raises:
        ValueError: if `target` is neither.
    """
    if is_mask:
        return find_boxes(target)
    if target.shape[-1] != 4:
        raise ValueError(f"Expected boxes (..., k, 4), got shape {tuple(target.shape)}; are they masks?")
    return target, (target[..., 0] != -1) & (target != 0).any(dim=-1)


def unsupervised_bbox_iou(
    pred_bboxes: Tensor, true_bboxes: Tensor, matching: str = "best_overlap", reduction: str = "mean"
) -> Tensor:
    """Compute the IoU of true boxes with the predictions that fit them, of one image.

    Args:
        pred_bboxes: x1, y1, x2, y2 (c, 4).
        true_bboxes: (k, 4).
        matching: `hungarian` or `best_overlap`.
        reduction: `mean`, or `none` for one number per true box, (k,).

    Raises:
        ValueError: if the matching is unknown.
    """
    check_matching(matching)
    ious = box_iou(pred_bboxes, true_bboxes)
    if matching == "hungarian":
        matched = assign(ious.cpu(), torch.ones(len(true_bboxes), dtype=torch.bool)).to(ious)
    else:
        matched = ious.amax(dim=0)
    return matched.mean() if reduction == "mean" else matched


class UnsupervisedBboxIoUMetric(MatchedIoUMetric):
    """Intersection over union of true boxes with the boxes around predicted masks that fit them.

    Args:
        target_is_mask: true boxes are those around true masks.
        **options: those of `MatchedIoUMetric`.
    """

    def __init__(self, target_is_mask: bool = False, **options: Any):
        super().__init__(**options)
        self.target_is_mask = target_is_mask

    def update(self, prediction: Tensor, target: Tensor) -> None:
        """Add images; the frames of a video count as images.

        Args:
            prediction: scores (b, c, h, w) or (b, t, c, h, w).
            target: boxes x1, y1, x2, y2 (b, k, 4) or (b, t, k, 4), where zeros or -1 stand for no box; or masks
                (b, k, h, w) or (b, t, k, h, w).

        Raises:
            ValueError: if shapes do not fit, or something holds NaN.
        """
        if prediction.dim() not in (4, 5) or prediction.shape[:-3] != target.shape[: prediction.dim() - 3]:
            shapes = f"{tuple(prediction.shape)} and {tuple(target.shape)}"
            raise ValueError(f"Expected predictions (b, c, h, w) or (b, t, c, h, w) and as many targets, got {shapes}.")
        refuse_nan(prediction=prediction, target=target)
        found, is_found = find_boxes(self.select(prediction.flatten(0, -4)))
        true, is_true = find_true_boxes(target.flatten(0, prediction.dim() - 4), self.target_is_mask)
        ious = torch.stack([box_iou(*boxes) for boxes in zip(found, true)])
        self.add_matched(ious.where(is_found.unsqueeze(2) & is_true.unsqueeze(1), 0), is_true)


class BboxCorLocMetric(UnsupervisedBboxIoUMetric):
    """Fraction of images in which some predicted box overlaps some true box well (CorLoc)."""

    def __init__(self, **options: Any):
        super().__init__(matching="best_overlap", correct_localization=True, **options)


class BboxRecallMetric(UnsupervisedBboxIoUMetric):
    """Fraction of true boxes that some predicted box overlaps well."""

    def __init__(self, **options: Any):
        super().__init__(matching="best_overlap", compute_discovery_fraction=True, **options)
