"""What metrics have in common."""

import torch
import torchmetrics


class MeanMetric(torchmetrics.Metric):
    """The mean of scores over the samples of all updates and all ranks, in double precision."""

    full_state_update = False
    is_differentiable = False

    def __init__(self):
        super().__init__()
        self.add_state("total", default=torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("count", default=torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")

    def add_scores(self, scores: torch.Tensor) -> None:
        """Add one score per sample, (B,)."""
        self.total += scores.sum(dtype=torch.float64)
        self.count += scores.numel()

    def compute(self) -> torch.Tensor:
        """Return the mean, or 0 if there were no samples."""
        return self.total / self.count.clamp(min=1)
