"""Means over samples."""

from typing import Optional

import torch
import torchmetrics
from torch import Tensor


def refuse_nan(**values: Optional[Tensor]) -> None:
    """Raise a ValueError that names the first of some tensors with NaN in it: NaN has no score."""
    for name, tensor in values.items():
        if tensor is not None and tensor.isnan().any():
            raise ValueError(
                f"`{name}` {tuple(tensor.shape)} holds NaN, which has no score. If it is an output of the model, its "
                "training has diverged: take an earlier checkpoint. Otherwise check the data."
            )


class MeanMetric(torchmetrics.Metric):
    """The mean of scores over the samples of all updates and all ranks, in double precision."""

    full_state_update = is_differentiable = False
    total: Tensor
    count: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.add_state("total", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("count", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")

    def add_scores(self, scores: Tensor) -> None:
        """Add one score per sample, (b,)."""
        self.total += scores.sum(dtype=torch.float64)
        self.count += scores.numel()

    def compute(self) -> Tensor:
        """Return the mean, or 0 if there were no samples."""
        return self.total / self.count.clamp(min=1)


class SampleMean(MeanMetric):
    """Mean over samples of numbers that are given, such as losses; NaN makes it NaN."""

    def update(self, scores: Tensor) -> None:
        """Add one number per sample, (b,)."""
        self.add_scores(scores)


class TensorStatistic(MeanMetric):
    """Mean over samples of the mean or the sum of a tensor.

    Args:
        reduction: what to compute per sample, `mean` or `sum`.

    Raises:
        ValueError: if the reduction is unknown.
    """

    def __init__(self, reduction: str = "mean"):
        super().__init__()
        if reduction not in ("mean", "sum"):
            raise ValueError(f"Unknown reduction {reduction!r}: choose mean or sum.")
        self.reduction = reduction

    def update(self, tensor: Tensor) -> None:
        """Add a tensor (b, ...); one with fewer than 2 axes counts as one sample.

        Raises:
            ValueError: If it holds NaN.
        """
        refuse_nan(tensor=tensor)
        samples = (tensor.reshape(1, -1) if tensor.dim() < 2 else tensor.flatten(1)).to(torch.float64)
        self.add_scores(samples.mean(dim=1) if self.reduction == "mean" else samples.sum(dim=1))
