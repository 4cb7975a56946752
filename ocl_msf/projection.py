"""The invertible projection: up by the pseudo-inverse of W, down by W (Eq. 3 and 5)."""

from typing import List, Sequence

import torch
from torch import nn

from ocl_msf.tracing import is_traced


class InvertibleProjection(nn.Module):
    """Project up by pinv(W), project down by W (Eq. 3 and 5): W (groups * dim, dim) has full column rank, no bias.

    pinv(W) = (W^T W)^-1 W^T, so up followed by down is the identity. W starts with orthonormal columns.

    Attributes:
        weight: W, (groups * dim, dim); for Multi-Scale Fusion (2c, c).
    """

    def __init__(self, dim: int, groups: int):
        super().__init__()
        self.groups = groups
        self.weight = nn.Parameter(nn.init.orthogonal_(torch.empty(groups * dim, dim)))

    def pinv(self) -> torch.Tensor:
        """Return pinv(W), (dim, groups * dim), by one float32 Cholesky factorisation; differentiable.

        The rank check reads values, which breaks a compiled graph: in evaluation mode torch.compile skips it.

        Raises:
            ValueError: W has nearly lost its full column rank, or holds NaN.
        """
        w = self.weight if self.weight.dtype == torch.float64 else self.weight.float()
        factor, info = torch.linalg.cholesky_ex(w.T @ w)
        pivots = factor.diagonal()
        checked = self.training or not is_traced()
        if checked and (info.item() or not pivots.min() > 4 * torch.finfo(w.dtype).eps ** 0.5 * pivots.max()):
            raise ValueError(
                f"The projection matrix W ({w.shape[0]} x {w.shape[1]}) has nearly lost its full column rank, or "
                "holds NaN: it cannot be inverted. Train with a lower learning rate or stronger gradient clipping."
            )
        return torch.cholesky_solve(w.T, factor)

    def up(self, maps: Sequence[torch.Tensor]) -> List[List[torch.Tensor]]:
        """Project up, Z . pinv(W), group by group: N maps (..., dim) -> g lists of N maps (..., dim)."""
        return [[m @ part for m in maps] for part in self.pinv().chunk(self.groups, 1)]

    def down_weight(self, group: int) -> torch.Tensor:
        """Return W_g (dim, dim), the rows of W that project a group down: X . W = sum over groups of X_g . W_g."""
        return self.weight.chunk(self.groups)[group]
