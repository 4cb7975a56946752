"""Multi-Scale Fusion: inter- and intra-scale quantised fusion (section 3.3, Algorithm 1).

Read top-down: project every scale up into a scale-invariant and a scale-variant part (Eq. 3), let the scales vote
for the code of every super-pixel of the invariant part (Eq. 4), quantise the variant part scale by scale, and
project the two back down together (Eq. 5). The end of the file has what the paper compares the vote with (Tables 5
and 6). Maps are channels-last (b, h, w, c) between the doors, c channels as in the paper.
"""

from typing import Dict, List, NamedTuple, Optional, Sequence, Tuple

import torch
from einops import rearrange
from torch import nn

from ocl_msf._renamed import refuse_old_keywords
from ocl_msf.codebook import Codebook, Schedule
from ocl_msf.pyramid import check_grids, pool, upsample
from ocl_msf.quantization import InvertibleProjection, Part, Quantizer, QuantizerOutput


class MultiScaleFusion(Quantizer):
    """The MSF quantiser (section 3.3, Algorithm 1).

    Args:
        dim: c, channels of the maps and of the codes.
        codebook_size: m, codes in each codebook; two codes together name m * m combinations.
        num_scales: N.
        inter_scale: what the invariant parts of the scales do with each other: "vote" (Eq. 4), "none", or the naive
            fusions "sum" and "concat" (Table 6).
        intra_scale: whether there is a scale-variant part (Table 5, upper left). Without it W is (c, c), and a
            super-pixel names one code, of the scale-invariant codebook.
        per_scale_codebooks: whether every scale has its own scale-variant codebook, or all share one (Table 5, upper
            right).
        residual: see Quantizer.
        **codebook: temperature, replace_below, usage_decay of Codebook.

    Attributes:
        project: W, `weight` (2c, c); its first c rows belong to the scale-invariant part.
        codebooks: 1 + N codebooks, `weight` (m, c): the scale-invariant one first, then one for each scale.

    Raises:
        ValueError: inter_scale is not one of the four.
    """

    def __init__(
        self,
        dim: int = 256,
        codebook_size: int = 64,
        num_scales: int = 3,
        inter_scale: str = "vote",
        intra_scale: bool = True,
        per_scale_codebooks: bool = True,
        residual: Schedule = 0.0,
        **codebook,
    ):
        refuse_old_keywords("ocl_msf.fusion.MultiScaleFusion", codebook)
        super().__init__(dim, residual)
        if inter_scale not in INTER_SCALE:
            raise ValueError(f"inter_scale must be one of {', '.join(INTER_SCALE)}, got {inter_scale!r}.")
        self.num_scales = num_scales
        self.intra_scale = intra_scale
        self.per_scale_codebooks = per_scale_codebooks
        self.project = InvertibleProjection(dim, 2 if intra_scale else 1)
        self.inter_scale = INTER_SCALE[inter_scale](dim, num_scales)
        variant_codebooks = (num_scales if per_scale_codebooks else 1) if intra_scale else 0
        self.codebooks = nn.ModuleList(Codebook(codebook_size, dim, **codebook) for _ in range(1 + variant_codebooks))

    def quantize(self, maps):
        """See Quantizer: the scale-invariant part, whose features are the winning sources', then the variant part.

        Readouts: `winners`, the scale that won every super-pixel, and `unfused`, the scale-invariant code that the
        scale itself would have chosen.
        """
        invariant, *variant = self.project.up(maps)  # Eq. 3
        fused, readouts = self.inter_scale(self.codebooks[0], invariant)  # Eq. 4
        return [fused] + [self._quantize_variant(v) for v in variant], readouts

    def _quantize_variant(self, maps: Sequence[torch.Tensor]) -> Part:
        """Match every scale with its own codebook, or all with the one they share (Eq. 1 and 2)."""
        books = [self.codebook_of(scale, 1) for scale in range(len(maps))]
        indices = [book.nearest(m) for book, m in zip(books, maps)]
        return Part(maps, [book(i) for book, i in zip(books, indices)], indices)

    def rows(self, group):
        """Intra-scale fusion: concat_c(fused invariant code, variant code) . W (Eq. 5), W_g by W_g."""
        return self.project.rows(group)

    def codebook_of(self, scale, group):
        """See Quantizer."""
        return self.codebooks[group * (1 + scale * self.per_scale_codebooks)]

    def statistics(self, output: QuantizerOutput) -> Dict[str, torch.Tensor]:
        """See Quantizer; also `won.scale_<n>`, the share of all super-pixels whose code scale n gave (0 to 1)."""
        answer = super().statistics(output)
        if "winners" in output.readouts:
            winners = torch.cat([w.flatten() for w in output.readouts["winners"]])
            for scale in range(self.num_scales):
                answer[f"won.scale_{scale + 1}"] = (winners == scale).float().mean()
        return answer

    @torch.no_grad()
    def parts(self, output: QuantizerOutput) -> "Parts":
        """Take an answer, given in evaluation mode, apart into the maps of Figure 3."""
        invariant, *variant = zip(*(i.unbind(1) for i in output.indices))

        def codes(maps, group):
            books = [self.codebook_of(scale, group) for scale in range(len(maps))]
            return tuple(rearrange(book(m), "b h w c -> b c h w") for book, m in zip(books, maps))

        return Parts(
            unfused=codes(output.readouts["unfused"], 0) if "unfused" in output.readouts else None,
            invariant=codes(invariant, 0),
            variant=codes(variant[0], 1) if variant else None,
            quantized=output.quantized,
        )

    def _check(self, maps: Sequence[torch.Tensor]) -> None:
        if len(maps) != self.num_scales:
            raise ValueError(f"This quantiser fuses {self.num_scales} scales, got {len(maps)} feature maps.")
        super()._check(maps)
        check_grids(maps)


class Parts(NamedTuple):
    """The maps of section 4.2 and Figure 3, each a tuple of N tensors (b, c, h_n, w_n).

    Attributes:
        unfused: X^si before inter-scale fusion; None where scales are mixed before they are matched.
        invariant: X^si after it.
        variant: X^sv; None without intra-scale fusion.
        quantized: X.
    """

    unfused: Optional[Tuple[torch.Tensor, ...]]
    invariant: Tuple[torch.Tensor, ...]
    variant: Optional[Tuple[torch.Tensor, ...]]
    quantized: Tuple[torch.Tensor, ...]


Readouts = Dict[str, Sequence[torch.Tensor]]  # see MultiScaleFusion.quantize


class Vote(nn.Module):
    """Inter-scale fusion (Eq. 4): every super-pixel takes the code of the scale that is surest of it.

    Everything that is ever compared is one row of one matrix, so one matching serves all scales: a super-pixel
    upsampled to a finer grid has the same match, and only its row number is repeated.
    """

    def __init__(self, dim: int, num_scales: int):
        super().__init__()

    def forward(self, codebook: Codebook, maps: Sequence[torch.Tensor]) -> Tuple[Part, Readouts]:
        """Fuse.

        Args:
            codebook: the shared scale-invariant codebook.
            maps: Z^si, N maps (b, h_n, w_n, c), the finest first, halving.

        Returns:
            What won, where it won, as one group of channels, and the readouts. Equally confident: the finer scale.
        """
        rows, addresses = source_rows(maps)
        match = codebook.match(rows)
        winners = [match.confidence[sources].argmax(0) for sources in addresses]
        chosen = [sources.gather(0, w.unsqueeze(0)).squeeze(0) for sources, w in zip(addresses, winners)]
        indices = [match.indices[c] for c in chosen]
        unfused = [match.indices[sources[scale]] for scale, sources in enumerate(addresses)]
        readouts = {"winners": winners, "unfused": unfused}
        features = rows[torch.cat([c.flatten() for c in chosen])].split([c.numel() for c in chosen])
        features = [f.view(*c.shape, -1) for f, c in zip(features, chosen)]
        return Part(features, [codebook(i) for i in indices], indices, candidates=maps), readouts


def source_rows(maps: Sequence[torch.Tensor]) -> Tuple[torch.Tensor, List[torch.Tensor]]:
    """List what the scales can offer each other: finer maps average-pooled, coarser maps nearest-upsampled.

    Args:
        maps: N maps (b, h_n, w_n, c), the finest first, halving.

    Returns:
        All distinct source vectors (r, c), and for every scale the row numbers (s, b, h_n, w_n) of what each of the
        s = N sources offers to each of its super-pixels.
    """
    blocks: List[torch.Tensor] = []
    numbers: List[torch.Tensor] = []

    def add(block):
        start, grid = sum(n.numel() for n in numbers), block.shape[:-1]
        blocks.append(block.flatten(0, -2))
        numbers.append(torch.arange(start, start + grid.numel(), device=block.device).view(grid))
        return numbers[-1]

    own = [add(m) for m in maps]
    addresses = [
        [
            add(pool(source, 2 ** (target - scale))) if scale < target else upsample(own[scale], 2 ** (scale - target))
            for scale, source in enumerate(maps)
        ]
        for target in range(len(maps))
    ]
    return torch.cat(blocks), [torch.stack(sources) for sources in addresses]


class Separate(nn.Module):
    """No inter-scale fusion: every scale is matched on its own, with the same codebook."""

    def __init__(self, dim: int, num_scales: int):
        super().__init__()

    def forward(self, codebook: Codebook, maps: Sequence[torch.Tensor]) -> Tuple[Part, Readouts]:
        """See Vote."""
        codes, indices = codebook.quantize(maps)
        own = [torch.full_like(i, scale) for scale, i in enumerate(indices)]
        return Part(maps, codes, indices), {"winners": own, "unfused": indices}


class Sum(nn.Module):
    """Naive fusion (Table 6): what the scales offer each other is added up, then matched."""

    def __init__(self, dim: int, num_scales: int):
        super().__init__()

    def forward(self, codebook: Codebook, maps: Sequence[torch.Tensor]) -> Tuple[Part, Readouts]:
        """See Vote."""
        rows, addresses = source_rows(maps)
        mixed = [self.mix(rows[sources]) for sources in addresses]
        return Part(mixed, *codebook.quantize(mixed)), {}

    def mix(self, offers: torch.Tensor) -> torch.Tensor:
        """(s, b, h, w, c) -> (b, h, w, c)."""
        return offers.sum(0)


class Concat(Sum):
    """Naive fusion (Table 6): what the scales offer each other is put side by side and projected, then matched."""

    def __init__(self, dim: int, num_scales: int):
        super().__init__(dim, num_scales)
        self.project = nn.Linear(num_scales * dim, dim, bias=False)

    def mix(self, offers: torch.Tensor) -> torch.Tensor:
        """(s, b, h, w, c) -> (b, h, w, c)."""
        return self.project(rearrange(offers, "s b h w c -> b h w (s c)"))


INTER_SCALE = {"vote": Vote, "none": Separate, "sum": Sum, "concat": Concat}
