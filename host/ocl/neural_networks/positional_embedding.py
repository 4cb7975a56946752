"""Modules that tell features where they are."""

from typing import Any

import torch
from torch import Tensor, nn

from ocl.typing import Positions


class DummyPositionEmbed(nn.Module):
    """Leave the inputs as they are."""

    def forward(self, inputs: Tensor, positions: Any) -> Tensor:
        """Return the inputs."""
        return inputs


class SoftPositionEmbed(nn.Module):
    """Add a linear map of the coordinates (slot attention, Locatello et al., 2020, appendix E.2).

    Args:
        n_spatial_dims: number of coordinates s.
        feature_dim: channels d of the features.
        cnn_channel_order: the features are maps (b, d, h, w) and the positions (1, h, w, s).
        savi_style: map coordinates in [-1, 1] instead of the distances to all sides.
    """

    def __init__(
        self, n_spatial_dims: int, feature_dim: int, cnn_channel_order: bool = False, savi_style: bool = False
    ):
        super().__init__()
        self.cnn_channel_order, self.savi_style = cnn_channel_order, savi_style
        self.dense = nn.Linear(n_spatial_dims if savi_style else 2 * n_spatial_dims, feature_dim)

    def forward(self, inputs: Tensor, positions: Positions) -> Tensor:
        """Embed features.

        Args:
            inputs: (..., n, d), or (b, d, h, w) in the channel order of CNNs.
            positions: (n, s) in [0, 1], or (1, h, w, s) in the channel order of CNNs.

        Returns:
            A tensor like `inputs`.
        """
        positions = positions.to(self.dense.weight.dtype)
        coordinates = 2 * positions - 1 if self.savi_style else torch.cat([positions, 1 - positions], dim=-1)
        embedding = self.dense(coordinates)
        return inputs + (embedding.permute(0, 3, 1, 2) if self.cnn_channel_order else embedding)


class LearnedAdditivePositionalEmbed(nn.Module):
    """Add a learned vector per place of a sequence.

    Args:
        max_len: length of the longest sequence.
        d_model: channels d.
        dropout: probability of dropping a channel of the sum.
    """

    def __init__(self, max_len: int, d_model: int, dropout: float = 0.0):
        super().__init__()
        self.dropout = nn.Dropout(dropout)
        self.pe = nn.Parameter(nn.init.trunc_normal_(torch.empty(1, max_len, d_model)))

    def forward(self, inputs: Tensor) -> Tensor:
        """Embed sequences (b, l, d), l at most `max_len`."""
        return self.dropout(inputs + self.pe[:, : inputs.shape[1]])
