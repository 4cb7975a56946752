"""Decoders that reconstruct guidance from slots. They receive tensors and do not know that a VAE exists."""

import math
from dataclasses import dataclass
from typing import Callable, List, Optional, Sequence, Tuple

import torch
from einops import rearrange
from torch import nn
from torch.nn import functional as F

from ocl_msf._renamed import refuse_old_names
from ocl_msf.indices import unravel_codes

__getattr__ = refuse_old_names(__name__)

ROWS = 128  # queries that a CPU takes at a time: few enough for their weights to stay in its caches


def attend_to_past(queries, keys, values, dropout: float = 0.0) -> torch.Tensor:
    """Attention among (b, heads, n, d) in which position i sees up to i alone; `dropout` is that of the weights.

    For CPUs torch has no fused kernel with dropout, and what stands in for it forms all n * n weights. There the
    queries go in blocks, each to the past of its last one: the same distribution without most of the hidden half.
    """
    if not dropout or queries.device.type != "cpu":
        return F.scaled_dot_product_attention(queries, keys, values, dropout_p=dropout, is_causal=True)
    answers = []
    for start in range(0, queries.shape[2], ROWS):
        block = queries[:, :, start : start + ROWS]
        stop = start + block.shape[2]
        seen = torch.ones(block.shape[2], stop, dtype=torch.bool).tril(start)
        past = keys[:, :, :stop], values[:, :, :stop]
        answers.append(F.scaled_dot_product_attention(block, *past, seen, dropout_p=dropout))
    return torch.cat(answers, 2)


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

    def forward(self, x, keys, values, seen: Optional[torch.Tensor] = None, causal: bool = False) -> torch.Tensor:
        """Attend from x (b, n, d) to the `seen` (b, 1, 1, l), bool; with `causal` position i sees up to i alone."""
        queries = rearrange(self.to_query(x), "b n (h d) -> b h n d", h=self.num_heads)
        dropout = self.dropout if self.training else 0.0
        if causal:
            answer = attend_to_past(queries, keys, values, dropout)
        else:
            answer = F.scaled_dot_product_attention(queries, keys, values, seen, dropout_p=dropout)
        return self.to_output(rearrange(answer, "b h n d -> b n (h d)"))


class DecoderBlock(nn.Module):
    """Pre-norm transformer block: causal self-attention, cross-attention to slots, MLP."""

    def __init__(self, dim: int, num_heads: int, dropout: float):
        super().__init__()
        self.norm_self, self.norm_cross, self.norm_mlp = (nn.LayerNorm(dim) for _ in range(3))
        self.self_attention = Attention(dim, dim, num_heads, dropout)
        self.cross_attention = Attention(dim, dim, num_heads, dropout)
        self.mlp = nn.Sequential(nn.Linear(dim, 4 * dim), nn.ReLU(inplace=True), nn.Linear(4 * dim, dim))
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: torch.Tensor, slots: torch.Tensor, seen: Optional[torch.Tensor] = None) -> torch.Tensor:
        """x (b, n, d), slots (b, k, d), `seen` (b, 1, 1, k) -> (b, n, d)."""
        normed = self.norm_self(x)
        x = x + self.dropout(self.self_attention(normed, *self.self_attention.key_value(normed), causal=True))
        return self._after_self_attention(x, (*self.cross_attention.key_value(slots), seen))

    def step(self, x: torch.Tensor, cache: "BlockCache") -> torch.Tensor:
        """The same for the next position x (b, 1, d) alone, the past being in the cache."""
        normed = self.norm_self(x)
        cache.append(*self.self_attention.key_value(normed))
        x = x + self.self_attention(normed, cache.keys, cache.values)
        return self._after_self_attention(x, cache.slots)

    def _after_self_attention(self, x, slots):
        x = x + self.dropout(self.cross_attention(self.norm_cross(x), *slots))
        return x + self.dropout(self.mlp(self.norm_mlp(x)))


class BlockCache:
    """Keys and values of one block during generation: those of the slots, and those of the tokens so far."""

    def __init__(self, block: DecoderBlock, slots: torch.Tensor, seen: Optional[torch.Tensor], num_tokens: int):
        self.slots = (*block.cross_attention.key_value(slots), seen)
        batch, heads, _, channels = self.slots[0].shape
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


def choose(
    logits: torch.Tensor,
    temperature: float = 0.0,
    top_k: Optional[int] = None,
    generator: Optional[torch.Generator] = None,
) -> torch.Tensor:
    """Choose a code in each row of logits (b, m): (b,), int64.

    Args:
        logits: (b, m).
        temperature: 0 for the most probable code, otherwise drawn from softmax(logits / temperature).
        top_k: draw from the k most probable codes alone.
        generator: of the random numbers, on the device of the logits.

    Raises:
        ValueError: temperature below 0, or top_k below 1.
    """
    if temperature < 0 or (top_k is not None and top_k < 1):
        raise ValueError(f"temperature must be >= 0 and top_k >= 1, but they are {temperature} and {top_k}.")
    if temperature == 0:
        return logits.argmax(-1)
    best, codes = logits.topk(min(top_k or logits.shape[-1], logits.shape[-1]))
    drawn = torch.multinomial((best.float() / temperature).softmax(-1), 1, generator=generator)
    return codes.gather(-1, drawn)[..., 0]


@dataclass
class TokenDecoderOutput:
    """Predictions for every token given the ones before it.

    Attributes:
        logits: g tensors (b, n, m_g), one for each codebook; of a joint head one tensor (b, n, m_1 * ... * m_g).
        indices: (b, g, h, w), int64, the most probable codes.
    """

    logits: Tuple[torch.Tensor, ...]
    indices: torch.Tensor


class TokenDecoder(nn.Module):
    """SLATE's autoregressive transformer decoder with one head for each codebook (sections 3.1 and A.3).

    Args:
        object_dim: channels of a slot.
        guidance_dim: channels of the guidance.
        codebook_sizes: number of codes of each codebook that a token names.
        num_tokens: h * w of the guidance.
        dim: channels of the transformer.
        num_layers, num_heads: of the transformer.
        dropout: on attention weights and residual branches.
        token_dropout: in training, the probability that a past token is hidden (word dropout, Bowman et al., 2016,
            section 3.1). Neighbouring tokens explain textures so well that a short training never asks the slots;
            with few of them to see it has to. 0 in the paper.
        joint: one head for all combinations of codes instead of one for each codebook.
    """

    def __init__(
        self,
        object_dim: int,
        guidance_dim: int,
        codebook_sizes: Sequence[int],
        num_tokens: int,
        dim: int = 256,
        num_layers: int = 8,
        num_heads: int = 8,
        dropout: float = 0.1,
        token_dropout: float = 0.0,
        joint: bool = False,
    ):
        super().__init__()
        self.token_dropout = token_dropout
        self.project_slots = nn.Linear(object_dim, dim, bias=False)
        self.project_tokens = nn.Linear(guidance_dim, dim, bias=False)
        self.begin = nn.Parameter(torch.randn(1, 1, dim) * 0.02)
        self.positions = nn.Parameter(torch.randn(1, num_tokens, dim) * 0.02)
        self.dropout = nn.Dropout(dropout)
        self.blocks = nn.ModuleList(DecoderBlock(dim, num_heads, dropout) for _ in range(num_layers))
        self.norm = nn.LayerNorm(dim)
        self.joint_sizes = tuple(codebook_sizes) if joint else None
        outputs = [math.prod(codebook_sizes)] if joint else codebook_sizes
        self.heads = nn.ModuleList(nn.Linear(dim, size, bias=False) for size in outputs)

    def forward(
        self, slots: torch.Tensor, guidance: torch.Tensor, slot_mask: Optional[torch.Tensor] = None
    ) -> TokenDecoderOutput:
        """Predict every token of the guidance from the slots and the tokens before it.

        Args:
            slots: (b, k, object_dim).
            guidance: (b, guidance_dim, h, w), continuous codes in raster order.
            slot_mask: (b, k), bool, True where a slot is off and takes no part.

        Raises:
            ValueError: h * w is not num_tokens.
        """
        tokens = self.project_tokens(rearrange(guidance, "b d h w -> b (h w) d"))
        if tokens.shape[1] != self.positions.shape[1]:
            raise ValueError(
                f"The guidance has {tokens.shape[1]} tokens ({guidance.shape[2]}x{guidance.shape[3]}), but the decoder "
                f"was built for {self.positions.shape[1]}: num_tokens must be (image size / 4)^2."
            )
        x = torch.cat([self.begin.expand(len(tokens), -1, -1), self._hide(tokens[:, :-1])], 1)
        x = self.dropout(x + self.positions)
        slots, seen = self._project_slots(slots, slot_mask)
        for block in self.blocks:
            x = block(x, slots, seen)
        logits = self._predict(x)
        indices = self._to_codes([p.argmax(-1) for p in logits])
        return TokenDecoderOutput(logits, rearrange(indices, "b g (h w) -> b g h w", h=guidance.shape[2]))

    @torch.no_grad()
    def generate(
        self,
        slots: torch.Tensor,
        lookup: Callable[[torch.Tensor], torch.Tensor],
        height: Optional[int] = None,
        slot_mask: Optional[torch.Tensor] = None,
        temperature: float = 0.0,
        top_k: Optional[int] = None,
        generator: Optional[torch.Generator] = None,
    ) -> torch.Tensor:
        """Write an image from slots alone, token by token, by default always the most probable code.

        Keys and values of past tokens are cached, so the cost is linear in the work of one token.

        Args:
            slots: (b, k, object_dim).
            lookup: turns code numbers (b, g, 1, 1) into continuous codes (b, guidance_dim, 1, 1).
            height: h of the guidance; a square by default.
            slot_mask: (b, k), bool, True where a slot is off and takes no part.
            temperature, top_k, generator: how each code is chosen, see `choose`.

        Returns:
            Code numbers (b, g, h, w), int64.

        Raises:
            ValueError: temperature below 0, or top_k below 1.
        """
        num_tokens = self.positions.shape[1]
        height = height or int(num_tokens**0.5)
        slots, seen = self._project_slots(slots, slot_mask)
        caches = [BlockCache(block, slots, seen, num_tokens) for block in self.blocks]
        token = self.begin.expand(len(slots), -1, -1)
        written: List[torch.Tensor] = []
        for position in range(num_tokens):
            x = token + self.positions[:, position : position + 1]
            for block, cache in zip(self.blocks, caches):
                x = block.step(x, cache)
            logits = self._predict(x[:, 0])
            written.append(self._to_codes([choose(p, temperature, top_k, generator) for p in logits]))
            features = lookup(written[-1][..., None, None])
            token = self.project_tokens(features.flatten(2).transpose(1, 2))
        return rearrange(torch.stack(written, -1), "b g (h w) -> b g h w", h=height)

    def _project_slots(self, slots, slot_mask):
        if slot_mask is None:
            return self.project_slots(slots), None
        slots = self.project_slots(slots.masked_fill(slot_mask[..., None], 0.0))
        nobody = slot_mask.all(1, keepdim=True)  # a softmax needs somebody: the off slots, whose values are all zero
        return slots, (~slot_mask | nobody)[:, None, None]

    def _hide(self, tokens: torch.Tensor) -> torch.Tensor:
        if not (self.training and self.token_dropout):
            return tokens
        return tokens * (torch.rand(tokens.shape[:2], device=tokens.device) >= self.token_dropout).unsqueeze(-1)

    def _predict(self, x: torch.Tensor) -> Tuple[torch.Tensor, ...]:
        x = self.norm(x)
        return tuple(head(x) for head in self.heads)

    def _to_codes(self, chosen: List[torch.Tensor]) -> torch.Tensor:
        return unravel_codes(chosen[0], self.joint_sizes) if self.joint_sizes else torch.stack(chosen, 1)
