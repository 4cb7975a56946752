"""Multi-Scale Fusion: inter- and intra-scale quantised fusion (section 3.3, Algorithm 1).

Read top-down: project every scale up into a scale-invariant and a scale-variant part (Eq. 3), let the scales vote
for the code of every super-pixel of the invariant part (Eq. 4), quantise the variant part scale by scale, and
project the two back down together (Eq. 5). Maps are channels-last (b, h, w, c) between the doors.
"""

from typing import List, NamedTuple, Sequence, Tuple

import torch
from torch import nn

from ocl_msf.pyramid import check_grids, pool, upsample
from ocl_msf.quantization import Codebook, InvertibleProjection, Quantizer, Schedule


class MultiScaleFusion(Quantizer):
    """The MSF quantiser (section 3.3, Algorithm 1).

    Args:
        dim: c, channels of the maps and of the codes.
        codebook_size: m, codes in each codebook; two codes together name m * m combinations.
        num_scales: N.
        residual: see Quantizer.
        **codebook: temperature, replace_below, usage_decay of Codebook.

    Attributes:
        project: W, `weight` (2c, c); its first c rows belong to the scale-invariant part.
        codebooks: 1 + N codebooks, `weight` (m, c): the scale-invariant one first, then one for each scale.
    """

    def __init__(
        self, dim: int = 256, codebook_size: int = 64, num_scales: int = 3, residual: Schedule = 0.0, **codebook
    ):
        super().__init__(dim, residual)
        self.num_scales = num_scales
        self.project = InvertibleProjection(dim, 2 * dim)
        self.codebooks = nn.ModuleList(Codebook(codebook_size, dim, **codebook) for _ in range(1 + num_scales))

    def quantize(self, maps):
        """See Quantizer: u = 2c, features hold the winning source's invariant part; g = 2, invariant then variant."""
        shared, *specific = self.codebooks
        invariant, variant = zip(*(u.chunk(2, -1) for u in self.project.up(maps)))  # Eq. 3
        fused = inter_scale_fusion(shared, invariant)  # Eq. 4
        details = [book.quantize([v]) for book, v in zip(specific, variant)]  # Eq. 1 and 2
        return (
            [torch.cat([f.features, v], -1) for f, v in zip(fused, variant)],
            [torch.cat([f.codes, codes], -1) for f, ((codes,), _) in zip(fused, details)],
            [torch.stack([f.indices, numbers], -1) for f, (_, (numbers,)) in zip(fused, details)],
        )

    def select(self, indices, scale):
        """See Quantizer."""
        shared, *specific = self.codebooks
        return torch.cat([shared(indices[..., 0]), specific[scale](indices[..., 1])], -1)

    def combine(self, codes):
        """Intra-scale fusion: concat_c(fused invariant code, variant code) . W (Eq. 5)."""
        return self.project.down(codes)

    def _check(self, maps: Sequence[torch.Tensor]) -> None:
        if len(maps) != self.num_scales:
            raise ValueError(f"This quantiser fuses {self.num_scales} scales, got {len(maps)} feature maps.")
        super()._check(maps)
        check_grids(maps)


class Fused(NamedTuple):
    """The invariant part of one scale after inter-scale fusion, every field over its grid (b, h, w).

    Attributes:
        features: (b, h, w, c), what the winning source encoded there.
        codes: (b, h, w, c), the winning source's code.
        indices: (b, h, w), its number.
        winners: (b, h, w), which scale won, counted from 0.
    """

    features: torch.Tensor
    codes: torch.Tensor
    indices: torch.Tensor
    winners: torch.Tensor


def inter_scale_fusion(codebook: Codebook, maps: Sequence[torch.Tensor]) -> List[Fused]:
    """For every super-pixel of every scale, take the code of the scale that matches with most confidence (Eq. 4).

    Everything that is ever compared is one row of one matrix, so one matching serves all scales: a super-pixel
    upsampled to a finer grid has the same match, and only its row number is repeated.

    Args:
        codebook: the shared scale-invariant codebook.
        maps: Z^si, N maps (b, h_n, w_n, c), the finest first, halving.

    Returns:
        N answers. Equally confident sources: the finer scale.
    """
    rows, addresses = source_rows(maps)
    match = codebook.match(rows)
    fused = []
    for sources in addresses:  # (s, b, h, w): the row of every source at every super-pixel of this scale
        winners = match.confidence[sources].argmax(0)
        chosen = sources.gather(0, winners.unsqueeze(0)).squeeze(0)
        indices = match.indices[chosen]
        fused.append(Fused(rows[chosen], codebook(indices), indices, winners))
    if codebook.training:
        codebook.replace_dead_codes(rows, torch.cat([f.indices.flatten() for f in fused]))
    return fused


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
    total = 0

    def add(block):
        nonlocal total
        count = block.shape[:-1].numel()
        blocks.append(block.flatten(0, -2))
        numbers.append(torch.arange(total, total + count, device=block.device).view(block.shape[:-1]))
        total += count
        return numbers[-1]

    own = [add(m) for m in maps]
    addresses = [
        torch.stack(
            [
                add(pool(source, 2 ** (target - scale))) if scale < target
                else upsample(own[scale], 2 ** (scale - target))
                for scale, source in enumerate(maps)
            ]
        )
        for target in range(len(maps))
    ]  # fmt: skip
    return torch.cat(blocks), addresses
