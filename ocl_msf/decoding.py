"""Decoders that reconstruct guidance from slots. They receive tensors and do not know that a VAE exists."""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, Callable, List, Optional, Protocol, Sequence, Tuple, Union, runtime_checkable

import torch
from einops import rearrange
from torch import nn

from ocl_msf._renamed import refuse_old_keywords, refuse_old_names
from ocl_msf.chunks import evaluate_in_chunks
from ocl_msf.indices import unravel_codes
from ocl_msf.patch_orders import NUM_ORDERS, patch_orders
from ocl_msf.transformer import BlockCache, DecoderBlock, start_as_slate

__getattr__ = refuse_old_names(__name__)


@runtime_checkable
class Decoder(Protocol):
    """A decoder of stage 2: a module with these two methods.

    Its constructor takes `size`, h and w of the guidance, or one number for both. A decoder that predicts code numbers
    has an attribute `lookup`, which it is given (`ocl_msf.composition.guided_models`) to turn them into features.
    """

    def forward(self, slots: torch.Tensor, guidance: torch.Tensor, slot_mask: Optional[torch.Tensor] = None) -> Any:
        """Predict the guidance from slots, for the losses.

        Args:
            slots: (b, k, object_dim).
            guidance: (b, guidance_dim, h, w), continuous codes.
            slot_mask: (b, k), bool, True where a slot is off and takes no part.

        Returns:
            A dataclass of tensors (b, ...), which the losses of this decoder read.
        """

    def generate(
        self,
        slots: torch.Tensor,
        size: Optional[Tuple[int, int]] = None,
        slot_mask: Optional[torch.Tensor] = None,
    ) -> torch.Tensor:
        """Generate guidance from slots alone.

        Args:
            slots: (b, k, object_dim).
            size: h and w of the guidance; by default those that the decoder was built for.
            slot_mask: (b, k), bool, True where a slot is off and takes no part.

        Returns:
            Features (b, guidance_dim, h, w), which the decoder of the VAE takes.
        """


def height_and_width(size: Union[int, Sequence[int]]) -> Tuple[int, int]:
    """h and w of a guidance of that size: both are given, or one number for a square."""
    height, width = (size, size) if isinstance(size, int) else size
    return height, width


def sample_codes(
    logits: torch.Tensor,
    temperature: float = 0.0,
    top_k: Optional[int] = None,
    generator: Optional[torch.Generator] = None,
) -> torch.Tensor:
    """Sample a code for each row of logits (b, m): (b,), int64.

    Args:
        logits: (b, m).
        temperature: 0 for the most probable code, otherwise samples are from softmax(logits / temperature).
        top_k: sample from the k most probable codes only.
        generator: of the random numbers, on the device of the logits.

    Raises:
        ValueError: temperature below 0, or top_k below 1.
    """
    if temperature < 0 or (top_k is not None and top_k < 1):
        raise ValueError(f"temperature must be >= 0 and top_k >= 1, but they are {temperature} and {top_k}.")
    if temperature == 0:
        return logits.argmax(-1)
    best, codes = logits.topk(min(top_k or logits.shape[-1], logits.shape[-1]))
    sampled = torch.multinomial((best.float() / temperature).softmax(-1), 1, generator=generator)
    return codes.gather(-1, sampled)[..., 0]


@dataclass
class TokenDecoderOutput:
    """Predictions for every token, or in training for some of them.

    Attributes:
        logits: g tensors (b, n, m_g), one for each codebook; of a joint head one tensor (b, n, m_1 * ... * m_g).
        indices: (b, g, h, w), int64, the most probable codes; (b, g, n) if only some tokens are predicted.
        tokens: (b, n), int64, which tokens these are, in raster order; None: all.
    """

    logits: Tuple[torch.Tensor, ...]
    indices: torch.Tensor
    tokens: Optional[torch.Tensor] = None


class CodeDecoder(nn.Module, ABC):
    """Shared by decoders that predict code numbers.

    Attributes:
        lookup: turns code numbers (b, g, h, w) into features (b, guidance_dim, h, w). Only `generate` needs it.
        size: h and w of the guidance.
        joint_sizes: the number of codes of each codebook if one head predicts all combinations of them, otherwise None.
    """

    lookup: Optional[Callable[[torch.Tensor], torch.Tensor]] = None
    size: Tuple[int, int]
    joint_sizes: Optional[Tuple[int, ...]]

    @abstractmethod
    def generate_codes(
        self,
        slots: torch.Tensor,
        size: Optional[Tuple[int, int]] = None,
        slot_mask: Optional[torch.Tensor] = None,
        **sampling: Any,
    ) -> torch.Tensor:
        """Write the code numbers (b, g, h, w), int64, of the guidance, without gradients.

        Args:
            slots, size, slot_mask: as for `Decoder.generate`.
            **sampling: temperature, top_k, generator: how each code is sampled, see `sample_codes`.

        Raises:
            ValueError: size has another number of tokens, temperature is below 0, or top_k below 1.
        """

    def generate(
        self,
        slots: torch.Tensor,
        size: Optional[Tuple[int, int]] = None,
        slot_mask: Optional[torch.Tensor] = None,
        **sampling: Any,
    ) -> torch.Tensor:
        """Write guidance from slots alone, by default always the most probable code.

        Arguments as for `Decoder.generate`; `sampling` as for `generate_codes`, which raises the rest.

        Returns:
            Features (b, guidance_dim, h, w), those of codes.

        Raises:
            RuntimeError: the decoder has no `lookup`.
        """
        return self._lookup(self.generate_codes(slots, size, slot_mask, **sampling))

    def _lookup(self, indices: torch.Tensor) -> torch.Tensor:
        if self.lookup is None:
            raise RuntimeError("To generate, set the decoder's `lookup`, which turns code numbers into features.")
        return self.lookup(indices)

    def _check_size(self, height: int, width: int) -> None:
        if height * width != math.prod(self.size):
            raise ValueError(
                f"The guidance has {height * width} tokens ({height}x{width}), but the decoder was built for "
                f"{math.prod(self.size)} ({self.size[0]}x{self.size[1]}): its size must be that of the guidance."
            )

    def _to_codes(self, choices: List[torch.Tensor]) -> torch.Tensor:
        """Code numbers (b, ...) of each head -> (b, g, ...)."""
        return unravel_codes(choices[0], self.joint_sizes) if self.joint_sizes else torch.stack(choices, 1)


@refuse_old_keywords
class TokenDecoder(CodeDecoder):
    """SLATE's autoregressive transformer decoder with one head for each codebook (sections 3.1 and A.3).

    Args:
        object_dim: channels of a slot.
        guidance_dim: channels of the guidance.
        codebook_sizes: number of codes of each codebook that a token names.
        size: h and w of the guidance, or one number for both.
        dim: channels of the transformer.
        num_layers, num_heads: of the transformer.
        dropout: on attention weights and residual branches.
        token_dropout: in training, the probability that a past token is hidden (word dropout, Bowman et al., 2016,
            section 3.1). Neighbouring tokens explain textures so well that a short training never uses the slots;
            with few visible tokens it has to. 0 in the paper.
        joint: one head for all combinations of codes instead of one for each codebook.
        start: "plain" or "slate". As in SLATE (Singh et al., 2022), tokens and positions start with about unit
            variance, the first block's input is normalised, and layers start as `start_as_slate` says; embeddings of
            codes are features of unit variance here, behind a map. With the plain start positions have a deviation of
            0.02, features the scale that the VAE gives them, and layers start as torch's do.
        permutations: in training, tokens of each batch are written in one of nine orders, drawn at random, so that
            neighbours that have been written explain less and slots more (patch-order permutation, SPOT, Kakogeorgiou
            et al., 2024). Each order has a beginning of its own; a token keeps its place's positional embedding.
            Evaluation and generation are in raster order.

    Raises:
        ValueError: start is neither of the two.
    """

    orders: torch.Tensor

    def __init__(
        self,
        object_dim: int,
        guidance_dim: int,
        codebook_sizes: Sequence[int],
        size: Union[int, Sequence[int]],
        dim: int = 256,
        num_layers: int = 8,
        num_heads: int = 8,
        dropout: float = 0.1,
        token_dropout: float = 0.0,
        joint: bool = False,
        start: str = "plain",
        permutations: bool = False,
    ):
        super().__init__()
        if start not in ("plain", "slate"):
            raise ValueError(f"start must be plain or slate, got {start!r}.")
        self.size = height_and_width(size)
        self.token_dropout = token_dropout
        self.project_slots = nn.Linear(object_dim, dim, bias=False)
        self.project_tokens = nn.Linear(guidance_dim, dim, bias=False)
        self.begin = nn.Parameter(torch.randn(1, 1, dim) * 0.02)
        self.positions = nn.Parameter(torch.randn(1, math.prod(self.size), dim) * 0.02)
        self.dropout = nn.Dropout(dropout)
        self.blocks = nn.ModuleList(DecoderBlock(dim, num_heads, dropout) for _ in range(num_layers))
        self.norm = nn.LayerNorm(dim)
        self.joint_sizes = tuple(codebook_sizes) if joint else None
        outputs = [math.prod(codebook_sizes)] if joint else codebook_sizes
        self.heads = nn.ModuleList(nn.Linear(dim, size, bias=False) for size in outputs)
        self.norm_input: nn.Module = nn.Identity()
        self.normalize_tokens = start == "slate"
        if start == "slate":
            self._start_as_slate()
        self.further_begins: Optional[nn.Parameter] = None
        if permutations:
            self.further_begins = nn.Parameter(self.begin.detach().repeat(NUM_ORDERS - 1, 1, 1))
            self.register_buffer("orders", patch_orders(*self.size), persistent=False)

    @evaluate_in_chunks
    def forward(
        self, slots: torch.Tensor, guidance: torch.Tensor, slot_mask: Optional[torch.Tensor] = None
    ) -> TokenDecoderOutput:
        """Predict every token of the guidance from the slots and the tokens before it.

        Arguments as for `Decoder.forward`.

        Raises:
            ValueError: the guidance has another number of tokens than the decoder.
        """
        height, width = guidance.shape[2:]
        self._check_size(height, width)
        tokens = self._embed(rearrange(guidance, "b d h w -> b (h w) d"))  # b n d
        begin: torch.Tensor = self.begin  # 1 1 d
        positions: torch.Tensor = self.positions  # 1 n d
        order = None  # n
        if self.further_begins is not None and self.training:
            drawn = int(torch.randint(NUM_ORDERS, ()))
            begin, order = torch.cat([begin, self.further_begins])[drawn : drawn + 1], self.orders[drawn]
            tokens, positions = tokens[:, order], positions[:, order]  # b n d, 1 n d
        x = torch.cat([begin.expand(len(tokens), -1, -1), self._hide(tokens[:, :-1])], 1)  # b n d
        x = self.norm_input(self.dropout(x + positions))  # b n d
        slots, visible = self._project_slots(slots, slot_mask)  # b k d, b 1 1 k
        for block in self.blocks:
            x = block(x, slots, visible)  # b n d
        if order is not None:
            x = x[:, order.argsort()]  # b n d, in raster order again
        logits = self._predict(x)  # g times b n m
        indices = self._to_codes([p.argmax(-1) for p in logits])  # b g n
        tokens = torch.arange(height * width, device=x.device).expand(len(x), -1)  # b n
        return TokenDecoderOutput(logits, indices.unflatten(-1, (height, width)), tokens)

    @torch.no_grad()
    def generate_codes(
        self,
        slots: torch.Tensor,
        size: Optional[Tuple[int, int]] = None,
        slot_mask: Optional[torch.Tensor] = None,
        **sampling: Any,
    ) -> torch.Tensor:
        """See CodeDecoder; token by token, keys and values of past tokens are cached: each costs the work of one."""
        height, width = size or self.size
        self._check_size(height, width)
        slots, visible = self._project_slots(slots, slot_mask)  # b k d, b 1 1 k
        blocks: List[Any] = list(self.blocks)
        caches = [BlockCache(block, slots, visible, height * width) for block in blocks]
        token = self.begin.expand(len(slots), -1, -1)  # b 1 d
        written: List[torch.Tensor] = []
        for position in range(height * width):
            x = self.norm_input(token + self.positions[:, position : position + 1])  # b 1 d
            for block, cache in zip(blocks, caches):
                x = block.step(x, cache)  # b 1 d
            logits = self._predict(x[:, 0])  # g times b m
            written.append(self._to_codes([sample_codes(p, **sampling) for p in logits]))  # b g
            features = self._lookup(written[-1][..., None, None])  # b d 1 1
            token = self._embed(features.flatten(2).transpose(1, 2))  # b 1 d
        return torch.stack(written, -1).unflatten(-1, (height, width))

    @torch.no_grad()
    def _start_as_slate(self) -> None:
        guidance_dim, dim = self.project_tokens.in_features, self.project_tokens.out_features
        self.norm_input = nn.LayerNorm(dim)
        start_as_slate(list(self.blocks))
        self.blocks[0].norm_self = nn.Identity()  # both its branch and the residual stream take the normalised input
        nn.init.normal_(self.project_tokens.weight, std=guidance_dim**-0.5)
        nn.init.normal_(self.begin)
        nn.init.trunc_normal_(self.positions)
        for layer in (self.project_slots, *self.heads):
            nn.init.xavier_uniform_(layer.weight)

    def _embed(self, features: torch.Tensor) -> torch.Tensor:
        """Features (b, n, guidance_dim) -> tokens (b, n, d)."""
        if self.normalize_tokens:
            features = nn.functional.normalize(features, dim=-1) * features.shape[-1] ** 0.5
        return self.project_tokens(features)

    def _project_slots(
        self, slots: torch.Tensor, slot_mask: Optional[torch.Tensor]
    ) -> Tuple[torch.Tensor, Optional[torch.Tensor]]:
        if slot_mask is None:
            return self.project_slots(slots), None
        slots = self.project_slots(slots.masked_fill(slot_mask[..., None], 0.0))
        # A softmax over nothing is NaN: where all slots are masked, attend to them; their values are zero.
        all_masked = slot_mask.all(1, keepdim=True)
        return slots, (~slot_mask | all_masked)[:, None, None]

    def _hide(self, tokens: torch.Tensor) -> torch.Tensor:
        if not (self.training and self.token_dropout):
            return tokens
        return tokens * (torch.rand(tokens.shape[:2], device=tokens.device) >= self.token_dropout).unsqueeze(-1)

    def _predict(self, x: torch.Tensor) -> Tuple[torch.Tensor, ...]:
        x = self.norm(x)
        return tuple(head(x) for head in self.heads)
