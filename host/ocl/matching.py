"""One-to-one matching of two sets."""

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn


class Matcher(nn.Module):
    """Base class: maps costs to an assignment and its cost."""

    def forward(self, C: Tensor) -> tuple[Tensor, Tensor]:  # noqa: N803
        """Map costs (b, n, m) to zeros and ones (b, n, m) and the cost (b,)."""
        raise NotImplementedError


class CPUHungarianMatcher(Matcher):
    """The assignment of least cost, found by `scipy.optimize.linear_sum_assignment`."""

    def forward(self, C: Tensor) -> tuple[Tensor, Tensor]:  # noqa: N803
        """Map costs (b, n, m) to an assignment (b, n, m) without gradient, and its cost (b,) with one."""
        assignment = torch.zeros_like(C, requires_grad=False)
        for matrix, costs in zip(assignment, C.detach().float().cpu().numpy()):
            matrix[linear_sum_assignment(costs)] = 1
        return assignment, (C * assignment).sum(dim=(1, 2))
