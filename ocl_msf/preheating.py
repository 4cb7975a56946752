"""Preheated queries (SmoothSA, Zhao et al., 2026): what slots start from has seen the features already."""

from dataclasses import dataclass
from typing import Optional

import torch
from torch import nn
from torch.nn import functional as F

from ocl_msf.codebook import Schedule


@dataclass
class PreheatedOutput:
    """Queries of images, or of the first frame of videos.

    Attributes:
        queries: (b, k, object_dim), without gradients to what made them.
        preheated: (b, k, object_dim), the same without noise and with gradients, for `PreheatingLoss`.
        is_empty: (b, k), bool, True where a slot is off; None: none is.
    """

    queries: torch.Tensor
    preheated: torch.Tensor
    is_empty: Optional[torch.Tensor] = None


class PreheatedQueries(nn.Module):
    """Cold queries that one transformer block has let look at the features, then at each other (preheating, SmoothSA).

    The block learns by `PreheatingLoss` alone, from the slots that become of its queries (self-distillation): slot
    attention starts from the queries without gradients to them, in training with noise of a learned deviation.

    Args:
        object_dim: channels of a slot.
        feature_dim: channels of the features.
        queries: makes the cold queries: a `GaussianQueries`, or for videos a `BoxQueries`.
        num_heads: of the block.
        detach: whether the loss has no gradient to the encoder either; a schedule says until when.
    """

    def __init__(
        self, object_dim: int, feature_dim: int, queries: nn.Module, num_heads: int = 4, detach: Schedule = 1.0
    ):
        super().__init__()
        self.cold = queries
        self.detach = detach
        self.to_memory = nn.Linear(feature_dim, object_dim)
        self.look = nn.MultiheadAttention(object_dim, num_heads, batch_first=True, bias=False)
        self.norm_talk, self.norm_mlp = nn.LayerNorm(object_dim), nn.LayerNorm(object_dim)
        self.talk = nn.MultiheadAttention(object_dim, num_heads, batch_first=True, bias=False)
        self.mlp = nn.Sequential(
            nn.Linear(object_dim, 4 * object_dim), nn.GELU(), nn.Linear(4 * object_dim, object_dim)
        )
        self.log_deviation = nn.Parameter(torch.zeros(1, 1, object_dim))

    def forward(self, features: torch.Tensor, boxes: Optional[torch.Tensor] = None) -> PreheatedOutput:
        """Preheat.

        Args:
            features: (b, n, feature_dim), or of videos (b, t, n, feature_dim), whose first frame counts.
            boxes: of videos, see `BoxQueries`; None: the cold queries need the batch size alone.
        """
        features = features if features.dim() == 3 else features[:, 0]  # b n f
        if boxes is None:
            cold, is_empty = self.cold(len(features)), None  # b k d
        else:
            made = self.cold(boxes)
            cold, is_empty = made.queries, made.is_empty
        if self.training and float(self.detach):
            features = features.detach()
        memory = self.to_memory(features)  # b n d
        x = cold + self.look(cold, memory, memory, need_weights=False)[0]  # b k d
        normed = self.norm_talk(x)
        x = x + self.talk(normed, normed, normed, key_padding_mask=is_empty, need_weights=False)[0]
        x = x + self.mlp(self.norm_mlp(x))  # b k d
        queries = x.detach()
        if self.training:
            queries = queries + torch.randn_like(queries) * self.log_deviation.exp()
        return PreheatedOutput(queries, x, is_empty)


class PreheatingLoss(nn.Module):
    """Mean squared error of preheated queries to the slots that became of them, without gradients to the slots.

    Args:
        weight: of this loss.
    """

    def __init__(self, weight: float = 100.0):
        super().__init__()
        self.weight = weight

    def forward(
        self, preheated: torch.Tensor, slots: torch.Tensor, is_empty: Optional[torch.Tensor] = None
    ) -> torch.Tensor:
        """Compare.

        Args:
            preheated: (b, k, d).
            slots: (b, k, d), or of all frames (b, t, k, d), of which the first counts; channels behind d do not.
            is_empty: (b, k), bool, True where a slot is off and does not count.

        Returns:
            A scalar.
        """
        slots = slots if slots.dim() == 3 else slots[:, 0]  # b k d
        targets = slots.detach()[..., : preheated.shape[-1]].to(preheated.dtype)  # b k d
        if is_empty is None:
            return self.weight * F.mse_loss(preheated, targets)
        return self.weight * F.mse_loss(preheated[~is_empty], targets[~is_empty])
