"""Parts as in the later code of MSF's authors (Genera1Z/MultiScaleFusion), which their checkpoints were trained with.

They differ from the paper's, whose parts stay the default: the variants `msf_tae` and `gdr_tae` and the preset
`authors` put these together, and `ocl-msf import authors` takes checkpoints for them. TAE: the tiny autoencoder.
"""

import math
from typing import Any, List, Optional, Sequence, Tuple, Union

import torch
from torch import nn
from torch.nn.utils import parametrize

from ocl_msf.codebook import Codebook, Schedule
from ocl_msf.decoding import TokenDecoder
from ocl_msf.fusion import MultiScaleFusion
from ocl_msf.perceptual_grouping import SlotCompetition
from ocl_msf.quantization import CodebookQuantizer, Diagnostics, MatchedGroup


def distance_spread(dim: int) -> float:
    """Standard deviation of the length of a Gaussian vector of unit variance, by which distances are standardised."""
    mean = math.sqrt(2) * math.exp(math.lgamma((dim + 1) / 2) - math.lgamma(dim / 2))
    return math.sqrt(dim - mean**2)


class PreciseCodebook(Codebook):
    """A codebook that finds the nearest code by the distances themselves, so that near ties fall as in their code."""

    def nearest(self, features: torch.Tensor) -> torch.Tensor:
        """See Codebook."""
        return self.match(features).indices


def projected_codebook(codebook_size: int, dim: int, table_dim: int, temperature: Schedule = 0.0) -> Codebook:
    """A codebook whose codes are a learned projection of a fixed random table (codebook_size, table_dim).

    Distances are standardised, before codes are sampled and for the confidence (Eq. 1).
    """
    book = PreciseCodebook(codebook_size, table_dim, temperature, spread=distance_spread(dim))
    parametrize.register_parametrization(book, "weight", nn.Linear(table_dim, dim), unsafe=True)
    book.parametrizations.weight.original.requires_grad_(False)  # type: ignore[union-attr, operator]
    return book


class TaeFusion(MultiScaleFusion):
    """Multi-Scale Fusion without projections: both codes of a super-pixel have all channels, and X is their average.

    The losses compare averages of codes with averages of what they are matched with: the winning scale's feature and
    the scale's own.

    Args:
        dim: c, channels of the maps and of the codes.
        codebook_size: m of the scale-invariant codebook and of that of scale 1; scale n has m / 2^(n-1) codes.
        num_scales: N.
        table_dim: channels of the fixed random tables, see `projected_codebook`.
        residual, temperature: see CodebookQuantizer and Codebook.
    """

    share: torch.Tensor

    def __init__(
        self,
        dim: int = 256,
        codebook_size: int = 256,
        num_scales: int = 3,
        table_dim: int = 1024,
        residual: Schedule = 0.0,
        temperature: Schedule = 0.0,
    ):
        super().__init__(dim, codebook_size, num_scales, None, True, True, residual, True, halve_per_scale=True)
        del self.project
        sizes = [len(book.weight) for book in self.list_codebooks()]
        self.codebooks = nn.ModuleList(projected_codebook(size, dim, table_dim, temperature) for size in sizes)
        self.register_buffer("share", torch.eye(dim) / 2, persistent=False)

    def match(self, maps: List[torch.Tensor]) -> Tuple[List[MatchedGroup], Diagnostics]:
        """See MultiScaleFusion."""
        book: Any = self.codebooks[0]
        fused, diagnostics = self.inter_scale(book, maps)
        return [fused, self._quantize_variant(maps)], diagnostics

    def down_weight(self, group: int) -> torch.Tensor:
        """See CodebookQuantizer: half of every channel."""
        return self.share

    def loss_pairs(self, groups: Sequence[MatchedGroup]) -> List[Tuple[torch.Tensor, torch.Tensor]]:
        """See CodebookQuantizer: averages over the two groups."""
        first, second = groups
        features = [(a + b) / 2 for a, b in zip(first.features, second.features)]
        return list(zip(features, [(a + b) / 2 for a, b in zip(first.codes, second.codes)]))


class TaeGroups(CodebookQuantizer):
    """Grouped quantisation without projections: each group of c / g channels has its codebook.

    Args:
        dim: c, channels of the maps and of the codes.
        codebook_size: m of each group.
        groups: g.
        table_dim: channels of the fixed random tables of all groups together, see `projected_codebook`.
        residual, temperature: see CodebookQuantizer and Codebook.
    """

    shares: torch.Tensor

    def __init__(
        self,
        dim: int = 256,
        codebook_size: int = 256,
        groups: int = 2,
        table_dim: int = 1024,
        residual: Schedule = 0.0,
        temperature: Schedule = 0.0,
    ):
        super().__init__(dim, residual, anneal_commitment=True)
        books = [
            projected_codebook(codebook_size, dim // groups, table_dim // groups, temperature) for _ in range(groups)
        ]
        self.codebooks = nn.ModuleList(books)
        self.register_buffer("shares", torch.eye(dim).view(groups, -1, dim), persistent=False)

    def match(self, maps: List[torch.Tensor]) -> Tuple[List[MatchedGroup], Diagnostics]:
        """See CodebookQuantizer."""
        count = len(self.codebooks)
        parts = zip(*(m.chunk(count, -1) for m in maps))  # g x N x (b, h, w, c / g)
        return [MatchedGroup(p, *self.codebook_of(0, g).quantize(p)) for g, p in enumerate(parts)], {}

    def codebook_of(self, scale: int, group: int) -> Codebook:
        """See CodebookQuantizer."""
        book: Any = self.codebooks[group]
        return book

    def down_weight(self, group: int) -> torch.Tensor:
        """See CodebookQuantizer: the channels of the group."""
        return self.shares[group]


class TaeTokenDecoder(TokenDecoder):
    """The token decoder without maps of tokens and slots, without a norm behind it, and with GELU.

    Arguments as for TokenDecoder; `start` has no effect.

    Raises:
        ValueError: slots, guidance and transformer have not as many channels.
    """

    def __init__(
        self,
        object_dim: int,
        guidance_dim: int,
        codebook_sizes: Sequence[int],
        size: Union[int, Sequence[int]],
        dim: int = 256,
        **options: Any,
    ):
        if not object_dim == guidance_dim == dim:
            raise ValueError(f"Slots, guidance and decoder need as many channels, got {object_dim, guidance_dim, dim}.")
        options["start"] = "slate"
        super().__init__(object_dim, guidance_dim, codebook_sizes, size, dim, **options)
        self.project_slots, self.project_tokens = nn.Identity(), nn.Identity()  # type: ignore[assignment]
        self.norm = nn.Identity()  # type: ignore[assignment]
        self.normalize_tokens = False
        blocks: List[Any] = list(self.blocks)
        for block in blocks:
            hidden, output = nn.Linear(dim, 4 * dim, bias=False), nn.Linear(4 * dim, dim, bias=False)
            block.mlp = nn.Sequential(hidden, nn.GELU(), output)


def build_gelu_mlp(input_dim: int, output_dim: int, features: Sequence[int]) -> nn.Module:
    """A perceptron with GELU between its layers; arguments as for `ocl.neural_networks.build_mlp`."""
    dims = [input_dim, *features, output_dim]
    layers = [x for pair in zip(dims, dims[1:]) for x in (nn.Linear(*pair), nn.GELU())]
    return nn.Sequential(*layers[:-1])


class TaeSlotAttentionGrouping(SlotCompetition):
    """Slot attention whose weights of a slot are divided by their sum + eps, with a GELU MLP with dropout.

    Args:
        feature_dim: channels of the features, behind the positional embedding.
        object_dim: channels of a slot.
        iters: number of iterations.
        ff_mlp: has no effect: the MLP is its own.
        positional_embedding: applied to features.
        gradients: "all", "last" or "straight_through", see `iterations.iterate`.
        later_iters: see `perceptual_grouping.TruncatedSlotAttentionGrouping`.
        eps: see above.
        dropout: in the MLP.
    """

    def __init__(
        self,
        feature_dim: int,
        object_dim: int,
        iters: int = 3,
        ff_mlp: Optional[nn.Module] = None,
        positional_embedding: Optional[nn.Module] = None,
        gradients: str = "straight_through",
        later_iters: Optional[int] = None,
        eps: float = 1e-5,
        dropout: float = 0.01,
    ):
        super().__init__(feature_dim, object_dim, iters, eps, positional_embedding, gradients, later_iters)
        self.gru = nn.GRUCell(object_dim, object_dim)
        nn.init.zeros_(self.gru.bias_ih)
        nn.init.zeros_(self.gru.bias_hh)
        self.norm_mlp = nn.LayerNorm(object_dim)
        hidden, output = nn.Linear(object_dim, 4 * object_dim), nn.Linear(4 * object_dim, object_dim)
        for layer in (hidden, output):
            nn.init.zeros_(layer.bias)
        self.mlp = nn.Sequential(hidden, nn.GELU(), nn.Dropout(dropout), output)

    def weigh(self, attention: torch.Tensor) -> torch.Tensor:
        """See SlotCompetition."""
        return attention / (attention.sum(-1, keepdim=True) + self.eps)

    def update(self, slots: torch.Tensor, updates: torch.Tensor) -> torch.Tensor:
        """See SlotCompetition: a GRU, and an MLP beside it."""
        with torch.autocast(slots.device.type, enabled=False):  # a recurrent state needs full precision
            slots = self.gru(updates.flatten(0, 1).float(), slots.flatten(0, 1).float()).view_as(slots)  # b k d
        return slots + self.mlp(self.norm_mlp(slots))
