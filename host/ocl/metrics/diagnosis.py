"""Metrics that watch a model."""

import torch

from ocl.metrics.utils import MeanMetric


class TensorStatistic(MeanMetric):
    """Mean over samples of the mean or the sum of a tensor.

    Args:
        reduction: What to compute per sample, `mean` or `sum`.

    Raises:
        ValueError: If the reduction is unknown.
    """

    def __init__(self, reduction: str = "mean"):
        super().__init__()
        if reduction not in ("mean", "sum"):
            raise ValueError(f"Unknown reduction {reduction!r}: choose mean or sum.")
        self.reduction = reduction

    def update(self, tensor: torch.Tensor) -> None:
        """Add a tensor (B, ...); one with fewer than 2 axes counts as one sample."""
        samples = tensor.reshape(1, -1) if tensor.dim() < 2 else tensor.flatten(1)
        samples = samples.to(torch.float64)
        self.add_scores(samples.mean(dim=1) if self.reduction == "mean" else samples.sum(dim=1))
