"""Metrics of objects that are followed through videos."""

from typing import Any

import torch
import torchmetrics
from torch import Tensor

from ocl.errors import require
from ocl.metrics.bbox import box_iou, find_boxes, find_true_boxes
from ocl.metrics.means import refuse_nan
from ocl.metrics.utils import one_hot_argmax

_ERRORS = ["num_misses", "num_false_positives", "num_switches"]


class MOTMetric(torchmetrics.Metric):
    """Multiple object tracking accuracy (Bernardin and Stiefelhagen, 2008) in percent, by `motmetrics`.

    Predicted boxes over more than a quarter of the image are taken for background. A box can be that of an object if
    their IoU is at least 0.5. Frames without any object do not count. 100 is best, and more errors than objects give
    less than 0.

    Args:
        target_is_mask: true boxes are those around true masks.
        use_threshold: predictions are all scores above `threshold`, instead of the highest of every pixel.
        threshold: see above.

    Raises:
        ImportError: if motmetrics is not installed.
    """

    full_state_update = is_differentiable = False
    higher_is_better = True
    errors: Tensor
    objects: Tensor

    def __init__(self, target_is_mask: bool = True, use_threshold: bool = True, threshold: float = 0.5):
        super().__init__()
        require("motmetrics", "tracking")
        self.target_is_mask, self.use_threshold, self.threshold = target_is_mask, use_threshold, threshold
        self.add_state("errors", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")
        self.add_state("objects", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, prediction: Tensor, target: Tensor) -> None:
        """Add videos.

        Args:
            prediction: scores (b, t, c, h, w).
            target: masks (b, t, k, h, w), or boxes x1, y1, x2, y2 (b, t, k, 4), where zeros or -1 stand for no box.

        Raises:
            ValueError: if predictions are no videos, or something holds NaN.
        """
        if prediction.dim() != 5:
            raise ValueError(f"Expected predictions (b, t, c, h, w), got shape {tuple(prediction.shape)}.")
        refuse_nan(prediction=prediction, target=target)
        frames = prediction.flatten(0, 1)
        masks = frames > self.threshold if self.use_threshold else one_hot_argmax(frames)
        found, is_found = find_boxes(masks.unflatten(0, prediction.shape[:2]))
        sides = found[..., 2:] - found[..., :2] + 1
        is_found &= sides.prod(dim=-1) <= prediction.shape[-2] * prediction.shape[-1] / 4
        true, is_true = find_true_boxes(target, self.target_is_mask)
        for video in zip(found.cpu(), is_found.cpu(), true.cpu(), is_true.cpu()):
            counts = _follow(*video)
            self.errors += int(counts[_ERRORS].sum())
            self.objects += int(counts["num_objects"])

    def compute(self) -> Tensor:
        """Return the accuracy over all videos in percent, or 0 if there were no objects."""
        accuracy = 1 - self.errors / self.objects.clamp(min=1).to(torch.float64)
        return 100 * accuracy.where(self.objects > 0, 0)


def _follow(found: Tensor, is_found: Tensor, true: Tensor, is_true: Tensor) -> Any:
    """Count errors and objects of a video, as a row of pandas, from boxes (t, c, 4) and (t, k, 4)."""
    import motmetrics

    record = motmetrics.MOTAccumulator(auto_id=True)
    for boxes, are_found, true_boxes, are_true in zip(found, is_found, true, is_true):
        if not are_true.any():
            continue
        distances = 1 - box_iou(true_boxes[are_true], boxes[are_found])
        distances = distances.where(distances <= 0.5, torch.nan)
        record.update(are_true.nonzero().flatten().numpy(), are_found.nonzero().flatten().numpy(), distances.numpy())
    return motmetrics.metrics.create().compute(record, metrics=[*_ERRORS, "num_objects"]).iloc[0]
