"""Multi-Scale Fusion: inter- and intra-scale quantised fusion (section 3.3, Algorithm 1).

Read top-down: `MultiScaleFusion.match` projects every scale up into a scale-invariant and a scale-variant part (Eq. 3),
lets all scales vote for the code of every super-pixel of the invariant part (Eq. 4), and quantises the variant part of
every scale with that scale's codebook. The base class projects both down together (Eq. 5). The end of the file has the
alternatives to the vote that the paper compares (Tables 5 and 6). Maps are channels-last (b, h, w, c), with c channels
as in the paper.
"""

from typing import Any, Dict, List, NamedTuple, Optional, Sequence, Tuple, cast

import torch
from einops import rearrange
from torch import nn

from ocl_msf._renamed import refuse_old_arguments, refuse_old_names
from ocl_msf.codebook import Codebook, Schedule
from ocl_msf.projection import InvertibleProjection
from ocl_msf.pyramid import check_grids, pool, upsample
from ocl_msf.quantization import CodebookQuantizer, Diagnostics, MatchedGroup, QuantizerOutput

__getattr__ = refuse_old_names(__name__)


class MultiScaleFusion(CodebookQuantizer):
    """The MSF quantiser (section 3.3, Algorithm 1).

    Args:
        dim: c, channels of the maps and of the codes.
        codebook_size: m, codes in each codebook; two codes together name m * m combinations.
        halve_per_scale: whether the scale-variant codebook of scale n has m / 2^(n-1) codes, as in the authors' later
            recipe.
        num_scales: N.
        inter_scale: module that fuses the scale-invariant parts of all scales, called like `Vote`: `Vote()` (Eq. 4, the
            default), `Separate()`, or the naive fusions `Sum()` and `Concat(dim, num_scales)` (Table 6).
        intra_scale: whether there is a scale-variant part (Table 5, upper left). Without it W is (c, c), and a
            super-pixel has one code, of the scale-invariant codebook.
        per_scale_codebooks: whether every scale has its own scale-variant codebook, or all share one (Table 5, upper
            right).
        residual, anneal_commitment, utilization: see CodebookQuantizer.
        **codebook: temperature, replace_below, usage_decay, relative_confidence of Codebook.

    Attributes:
        project: W, `weight` (2c, c); its first c rows belong to the scale-invariant part.
        codebooks: 1 + N codebooks, `weight` (m, c), the scale-invariant one first, then one for each scale.

    Raises:
        TypeError: an argument is given as in earlier versions; the message says what to write.
    """

    def __init__(
        self,
        dim: int = 256,
        codebook_size: int = 64,
        num_scales: int = 3,
        inter_scale: Optional[nn.Module] = None,
        intra_scale: bool = True,
        per_scale_codebooks: bool = True,
        residual: Schedule = 0.0,
        anneal_commitment: bool = False,
        utilization: bool = False,
        halve_per_scale: bool = False,
        **codebook: Any,
    ):
        refuse_old_arguments("ocl_msf.fusion.MultiScaleFusion", inter_scale=inter_scale, **codebook)
        super().__init__(dim, residual, anneal_commitment, utilization)
        self.num_scales = num_scales
        self.per_scale_codebooks = per_scale_codebooks
        self.project = InvertibleProjection(dim, 2 if intra_scale else 1)
        self.inter_scale = Vote() if inter_scale is None else inter_scale
        variant_codebooks = (num_scales if per_scale_codebooks else 1) if intra_scale else 0
        sizes = [codebook_size] + [codebook_size >> scale * halve_per_scale for scale in range(variant_codebooks)]
        self.codebooks = nn.ModuleList(Codebook(size, dim, **codebook) for size in sizes)

    def match(self, maps: List[torch.Tensor]) -> Tuple[List[MatchedGroup], Diagnostics]:
        """See CodebookQuantizer: the scale-invariant group, then the scale-variant one.

        Diagnostics: those of `inter_scale`.
        """
        invariant, *variant = self.project.up(maps)  # Eq. 3: Z^si, Z^sv, N x (b, h_n, w_n, c) each
        fused, diagnostics = self.inter_scale(self.codebooks[0], invariant)  # Eq. 4: fused X^si, N x (b, h_n, w_n, c)
        groups = [fused] + [self._quantize_variant(v) for v in variant]  # Eq. 1, 2: X^sv, N x (b, h_n, w_n, c)
        return groups, diagnostics

    def _quantize_variant(self, maps: Sequence[torch.Tensor]) -> MatchedGroup:
        """Match every scale with its own codebook, or all with the one they share (Eq. 1 and 2)."""
        books = [self.codebook_of(scale, 1) for scale in range(len(maps))]
        indices = [book.nearest(m) for book, m in zip(books, maps)]  # N x (b, h_n, w_n)
        return MatchedGroup(maps, [book(i) for book, i in zip(books, indices)], indices)

    def codebook_of(self, scale: int, group: int) -> Codebook:
        """See CodebookQuantizer."""
        variant = 1 + scale * self.per_scale_codebooks
        return cast(Codebook, self.codebooks[variant if group else 0])

    def down_weight(self, group: int) -> torch.Tensor:
        """See CodebookQuantizer; intra-scale fusion, concat_c(fused X^si, X^sv) . W, is a sum over groups (Eq. 5)."""
        return self.project.down_weight(group)

    def statistics(self, output: QuantizerOutput) -> Dict[str, torch.Tensor]:
        """See Quantizer; also `won.scale_<n>`, the share of super-pixels whose code is that of scale n (0 to 1)."""
        statistics = super().statistics(output)
        if "winners" in output.diagnostics:
            winners = torch.cat([w.flatten() for w in output.diagnostics["winners"]])
            for scale in range(self.num_scales):
                statistics[f"won.scale_{scale + 1}"] = (winners == scale).float().mean()
        return statistics

    @torch.no_grad()
    def fusion_maps(self, output: QuantizerOutput) -> "FusionMaps":
        """Split an evaluation-mode output into the maps of Figure 3."""
        invariant, *variant = zip(*(i.unbind(1) for i in output.indices))

        def codes(indices: Sequence[torch.Tensor], group: int) -> Tuple[torch.Tensor, ...]:
            books = [self.codebook_of(scale, group) for scale in range(len(indices))]
            return tuple(rearrange(book(i), "b h w c -> b c h w") for book, i in zip(books, indices))

        return FusionMaps(
            unfused=codes(output.diagnostics["unfused"], 0) if "unfused" in output.diagnostics else None,
            invariant=codes(invariant, 0),
            variant=codes(variant[0], 1) if variant else None,
            quantized=output.quantized,
        )

    def _check(self, maps: Sequence[torch.Tensor]) -> None:
        if len(maps) != self.num_scales:
            raise ValueError(f"This quantiser fuses {self.num_scales} scales, got {len(maps)} feature maps.")
        super()._check(maps)
        check_grids(maps)


class FusionMaps(NamedTuple):
    """The maps of section 4.2 and Figure 3, each a tuple of N tensors (b, c, h_n, w_n).

    Attributes:
        unfused: X^si before inter-scale fusion; None if scales are mixed before they are matched.
        invariant: X^si after it.
        variant: X^sv; None without intra-scale fusion.
        quantized: X.
    """

    unfused: Optional[Tuple[torch.Tensor, ...]]
    invariant: Tuple[torch.Tensor, ...]
    variant: Optional[Tuple[torch.Tensor, ...]]
    quantized: Tuple[torch.Tensor, ...]


class Vote(nn.Module):
    """Inter-scale fusion (Eq. 4): every super-pixel takes the code of the scale that is most confident.

    All vectors that are compared are rows of one matrix, so one matching serves all scales: a super-pixel that is
    upsampled to a finer grid has the same match, and only its row number is repeated.
    """

    def forward(self, codebook: Codebook, maps: Sequence[torch.Tensor]) -> Tuple[MatchedGroup, Diagnostics]:
        """Fuse.

        Args:
            codebook: the shared scale-invariant codebook.
            maps: Z^si, N maps (b, h_n, w_n, c), the finest first, halving.

        Returns:
            The fused group, whose features are those of the winning sources, and as diagnostics `winners`, the scale
            (from 0) whose code every super-pixel takes, and `unfused`, the code that its own scale matches. Ties go to
            the finer scale.
        """
        vectors, rows = source_vectors(maps)  # (r, c), N x (s, b, h_n, w_n)
        match = codebook.match(vectors)  # (r,), (r,)
        winners = [match.confidence[sources].argmax(0) for sources in rows]  # N x (b, h_n, w_n)
        winning = [sources.gather(0, w.unsqueeze(0)).squeeze(0) for sources, w in zip(rows, winners)]
        indices = [match.indices[r] for r in winning]  # N x (b, h_n, w_n)
        unfused = [match.indices[sources[scale]] for scale, sources in enumerate(rows)]  # N x (b, h_n, w_n)
        flat = vectors[torch.cat([r.flatten() for r in winning])].split([r.numel() for r in winning])
        features = [f.view(*r.shape, -1) for f, r in zip(flat, winning)]  # N x (b, h_n, w_n, c)
        fused = MatchedGroup(features, [codebook(i) for i in indices], indices, candidates=maps)
        return fused, {"winners": winners, "unfused": unfused}


def source_vectors(maps: Sequence[torch.Tensor]) -> Tuple[torch.Tensor, List[torch.Tensor]]:
    """Bring every scale to the grid of every other: finer maps by average pooling, coarser ones by nearest upsampling.

    Args:
        maps: N maps (b, h_n, w_n, c), the finest first, halving.

    Returns:
        All distinct vectors (r, c), and for every target scale the row numbers (s, b, h_n, w_n) of the vectors that its
        super-pixels have in each of the s = N source scales.
    """
    blocks: List[torch.Tensor] = []
    numbers: List[torch.Tensor] = []

    def add(block: torch.Tensor) -> torch.Tensor:
        start, grid = sum(n.numel() for n in numbers), block.shape[:-1]
        blocks.append(block.flatten(0, -2))
        numbers.append(torch.arange(start, start + grid.numel(), device=block.device).view(grid))
        return numbers[-1]

    own = [add(m) for m in maps]
    rows = [
        [
            add(pool(source, 2 ** (target - scale))) if scale < target else upsample(own[scale], 2 ** (scale - target))
            for scale, source in enumerate(maps)
        ]
        for target in range(len(maps))
    ]
    return torch.cat(blocks), [torch.stack(sources) for sources in rows]


class Separate(nn.Module):
    """No inter-scale fusion: every scale is matched by itself, with the same codebook."""

    def forward(self, codebook: Codebook, maps: Sequence[torch.Tensor]) -> Tuple[MatchedGroup, Diagnostics]:
        """See Vote."""
        codes, indices = codebook.quantize(maps)  # N x (b, h_n, w_n, c), N x (b, h_n, w_n)
        own = [torch.full_like(i, scale) for scale, i in enumerate(indices)]  # N x (b, h_n, w_n)
        return MatchedGroup(maps, codes, indices), {"winners": own, "unfused": indices}


class Sum(nn.Module):
    """Naive fusion (Table 6): the vectors of all scales are added, then matched."""

    def forward(self, codebook: Codebook, maps: Sequence[torch.Tensor]) -> Tuple[MatchedGroup, Diagnostics]:
        """See Vote; no diagnostics."""
        vectors, rows = source_vectors(maps)  # (r, c), N x (s, b, h_n, w_n)
        mixed = [self.mix(vectors[sources]) for sources in rows]  # N x (b, h_n, w_n, c)
        return MatchedGroup(mixed, *codebook.quantize(mixed)), {}

    def mix(self, sources: torch.Tensor) -> torch.Tensor:
        """Mix the source scales: (s, b, h, w, c) -> (b, h, w, c)."""
        return sources.sum(0)


class Concat(Sum):
    """Naive fusion (Table 6): the vectors of all scales are concatenated and projected, then matched.

    Args:
        dim: c.
        num_scales: N.
    """

    def __init__(self, dim: int, num_scales: int):
        super().__init__()
        self.project = nn.Linear(num_scales * dim, dim, bias=False)

    def mix(self, sources: torch.Tensor) -> torch.Tensor:
        """Mix the source scales: (s, b, h, w, c) -> (b, h, w, c)."""
        return self.project(rearrange(sources, "s b h w c -> b h w (s c)"))
