"""Initial slots (queries)."""

from typing import Union

import torch
from torch import nn


class GaussianQueries(nn.Module):
    """Queries drawn from Gaussians with a learned mean for each slot and one scheduled sigma (section A.5).

    In evaluation mode the queries are the means: sigma is 0 and slot attention is deterministic. The means start as
    far apart as draws of the unit Gaussian, so that slots differ from the first step on, whatever sigma is.

    Args:
        object_dim: channels of a slot.
        n_slots: number of slots.
        sigma: standard deviation in training, a number or a schedule of the host (1 -> 0 in the paper).
    """

    def __init__(self, object_dim: int, n_slots: int, sigma: Union[float, nn.Module] = 1.0):
        super().__init__()
        self.object_dim = object_dim
        self.n_slots = n_slots
        self.sigma = sigma
        self.mean = nn.Parameter(torch.randn(1, n_slots, object_dim))

    def forward(self, batch_size: int) -> torch.Tensor:
        """Return queries (batch_size, n_slots, object_dim)."""
        mean = self.mean.expand(batch_size, -1, -1)
        if not self.training:
            return mean
        return mean + float(self.sigma) * torch.randn_like(mean)
