"""The transformer of the token decoder: causal self-attention, cross-attention to slots, and a cache for generation."""

from typing import Any, Optional, Sequence, Tuple

import torch
from einops import rearrange
from torch import nn
from torch.nn import functional as F

ROWS = 128  # queries that a CPU takes at a time: so few that their attention weights stay in its caches


def attend_to_past(
    queries: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, dropout: float = 0.0
) -> torch.Tensor:
    """Causal attention among (b, heads, n, d): position i attends to the positions up to i.

    For CPUs torch has no fused kernel with dropout, and its fallback computes all n * n attention weights. There the
    queries are taken in blocks, each with the keys up to its last position: the same distribution at about half the
    work.

    Args:
        queries, keys, values: (b, heads, n, d) each.
        dropout: probability that an attention weight is dropped.
    """
    if not dropout or queries.device.type != "cpu":
        return F.scaled_dot_product_attention(queries, keys, values, dropout_p=dropout, is_causal=True)
    outputs = []
    for start in range(0, queries.shape[2], ROWS):
        block = queries[:, :, start : start + ROWS]  # b heads r d
        stop = start + block.shape[2]
        visible = torch.ones(block.shape[2], stop, dtype=torch.bool).tril(start)  # r stop
        past = keys[:, :, :stop], values[:, :, :stop]
        outputs.append(F.scaled_dot_product_attention(block, *past, visible, dropout_p=dropout))
    return torch.cat(outputs, 2)  # b heads n d


class Attention(nn.Module):
    """Multi-head attention of queries (b, n, d) to a context (b, l, e), heads merged, no bias."""

    def __init__(self, dim: int, context_dim: int, num_heads: int, dropout: float):
        super().__init__()
        if dim % num_heads:
            raise ValueError(f"{dim} channels cannot be split into {num_heads} heads.")
        self.num_heads = num_heads
        self.dropout = dropout
        self.to_query = nn.Linear(dim, dim, bias=False)
        self.to_key_value = nn.Linear(context_dim, 2 * dim, bias=False)
        self.to_output = nn.Linear(dim, dim, bias=False)

    def key_value(self, context: torch.Tensor) -> Tuple[torch.Tensor, torch.Tensor]:
        """(b, l, e) -> keys and values (b, heads, l, d / heads)."""
        keys, values = rearrange(self.to_key_value(context), "b l (two h d) -> two b h l d", two=2, h=self.num_heads)
        return keys, values

    def forward(
        self,
        x: torch.Tensor,
        keys: torch.Tensor,
        values: torch.Tensor,
        visible: Optional[torch.Tensor] = None,
        causal: bool = False,
    ) -> torch.Tensor:
        """Attend from x (b, n, d) to keys and values (b, heads, l, d / heads).

        Args:
            visible: (b, 1, 1, l), bool, False where a key is masked.
            causal: position i attends to the positions up to i alone.
        """
        queries = rearrange(self.to_query(x), "b n (h d) -> b h n d", h=self.num_heads)
        dropout = self.dropout if self.training else 0.0
        if causal:
            output = attend_to_past(queries, keys, values, dropout)
        else:
            output = F.scaled_dot_product_attention(queries, keys, values, visible, dropout_p=dropout)  # b heads n d
        return self.to_output(rearrange(output, "b h n d -> b n (h d)"))


class DecoderBlock(nn.Module):
    """Pre-norm transformer block: causal self-attention, cross-attention to slots, MLP."""

    def __init__(self, dim: int, num_heads: int, dropout: float):
        super().__init__()
        self.norm_self, self.norm_cross, self.norm_mlp = (nn.LayerNorm(dim) for _ in range(3))
        self.self_attention = Attention(dim, dim, num_heads, dropout)
        self.cross_attention = Attention(dim, dim, num_heads, dropout)
        self.mlp = nn.Sequential(nn.Linear(dim, 4 * dim), nn.ReLU(inplace=True), nn.Linear(4 * dim, dim))
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: torch.Tensor, slots: torch.Tensor, visible: Optional[torch.Tensor] = None) -> torch.Tensor:
        """x (b, n, d), slots (b, k, d), `visible` (b, 1, 1, k), bool, False where a slot is off -> (b, n, d)."""
        normed = self.norm_self(x)  # b n d
        x = x + self.dropout(self.self_attention(normed, *self.self_attention.key_value(normed), causal=True))
        keys, values = self.cross_attention.key_value(slots)  # b heads k d
        return self._attend_to_slots(x, keys, values, visible)

    def step(self, x: torch.Tensor, cache: "BlockCache") -> torch.Tensor:
        """The same for the next position x (b, 1, d) alone, the past being in the cache."""
        normed = self.norm_self(x)
        cache.append(*self.self_attention.key_value(normed))
        x = x + self.self_attention(normed, cache.keys, cache.values)
        return self._attend_to_slots(x, cache.slot_keys, cache.slot_values, cache.visible)

    def _attend_to_slots(
        self, x: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, visible: Optional[torch.Tensor]
    ) -> torch.Tensor:
        x = x + self.dropout(self.cross_attention(self.norm_cross(x), keys, values, visible))
        return x + self.dropout(self.mlp(self.norm_mlp(x)))


@torch.no_grad()
def start_as_slate(blocks: Sequence[Any]) -> None:
    """Initialise the `DecoderBlock`s of a decoder as SLATE does (Singh et al., 2022).

    Linear layers start by Xavier's uniform distribution, those before a ReLU by Kaiming's, and biases at zero. What the
    three branches of each of L blocks add is scaled by (3L)^-1/2, so that all of them add about as much as the input.
    """
    gain = (3 * len(blocks)) ** -0.5
    for block in blocks:
        for attention in (block.self_attention, block.cross_attention):
            for weight in (attention.to_query.weight, *attention.to_key_value.weight.chunk(2)):
                nn.init.xavier_uniform_(weight)
            nn.init.xavier_uniform_(attention.to_output.weight, gain)
        hidden, _, output = block.mlp
        nn.init.kaiming_uniform_(hidden.weight, nonlinearity="relu")
        nn.init.xavier_uniform_(output.weight, gain)
        nn.init.zeros_(hidden.bias)
        nn.init.zeros_(output.bias)


class BlockCache:
    """Keys and values of one block during generation: those of the slots, and those of the tokens so far."""

    def __init__(self, block: DecoderBlock, slots: torch.Tensor, visible: Optional[torch.Tensor], num_tokens: int):
        self.slot_keys, self.slot_values = block.cross_attention.key_value(slots)
        self.visible = visible
        batch, heads, _, channels = self.slot_keys.shape
        self._past = slots.new_empty(2, batch, heads, num_tokens, channels)
        self._length = 0

    def append(self, keys: torch.Tensor, values: torch.Tensor) -> None:
        """Add one position, (b, heads, 1, d) twice."""
        self._past[0, :, :, self._length], self._past[1, :, :, self._length] = keys[:, :, 0], values[:, :, 0]
        self._length += 1

    @property
    def keys(self) -> torch.Tensor:
        """(b, heads, n, d) of the tokens so far."""
        return self._past[0, :, :, : self._length]

    @property
    def values(self) -> torch.Tensor:
        """(b, heads, n, d) of the tokens so far."""
        return self._past[1, :, :, : self._length]
