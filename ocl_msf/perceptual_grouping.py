"""Parts of grouping that the host lacks."""

from typing import Optional

import torch
from torch import nn


class TemporalPredictor(nn.Module):
    """Predict the slots of the next frame from those of this one: one pre-norm transformer encoder block (STEVE).

    Args:
        object_dim: channels of a slot.
        num_heads: of its self-attention.
        hidden_dim: of its MLP, 4 * object_dim by default.
        dropout: on attention weights and residual branches.

    Raises:
        ValueError: object_dim cannot be split into so many heads.
    """

    def __init__(self, object_dim: int, num_heads: int = 4, hidden_dim: int = 0, dropout: float = 0.0):
        super().__init__()
        if object_dim % num_heads:
            raise ValueError(f"{object_dim} channels cannot be split into {num_heads} heads.")
        self.block = nn.TransformerEncoderLayer(
            object_dim, num_heads, hidden_dim or 4 * object_dim, dropout, norm_first=True, batch_first=True
        )

    def forward(self, slots: torch.Tensor, slot_mask: Optional[torch.Tensor] = None) -> torch.Tensor:
        """Let slots (b, k, d) look at one another: (b, k, d).

        Args:
            slots: (b, k, d).
            slot_mask: (b, k), bool, True where a slot is off and no other slot sees it; at least one must be on.
        """
        return self.block(slots, src_key_padding_mask=slot_mask)
