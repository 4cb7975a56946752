"""Finite scalar quantisation, which has no codebook (Mentzer et al., 2024)."""

import math
from typing import List, Sequence, Tuple

import torch
from einops import rearrange
from torch import nn

from ocl_msf.indices import ravel_codes, unravel_codes
from ocl_msf.quantization import Quantizer, QuantizerOutput


class FiniteScalarQuantizer(Quantizer):
    """Project to a few channels and round each of them to one of a few levels; codes are combinations of levels.

    Mentzer et al., "Finite Scalar Quantization: VQ-VAE Made Simple", ICLR 2024, section 3.1 and appendix A.1. No
    codebook has to be learnt or kept in use, so both losses are 0. The listing of the appendix multiplies (L - 1) / 2
    by 0.999; without that margin, left out here, the levels are the same.

    Args:
        dim: d, channels of the maps.
        levels: L_1 ... L_l, numbers of levels of the l channels, each at least 2 (the paper recommends at least 5).

    Attributes:
        to_latent: linear map d -> l.
        from_latent: linear map l -> d.

    Raises:
        ValueError: there is no channel, or one with fewer than 2 levels.
    """

    sizes: torch.Tensor  # (l,), `levels` on the device of the module

    def __init__(self, dim: int, levels: Sequence[int] = (8, 8, 8, 8)):
        super().__init__(dim)
        if not levels or min(levels) < 2:
            raise ValueError(f"levels must be at least one number, and none below 2, got {list(levels)}.")
        self.levels = tuple(levels)
        self.register_buffer("sizes", torch.tensor(self.levels, dtype=torch.float32), persistent=False)
        self.to_latent = nn.Linear(dim, len(levels))
        self.from_latent = nn.Linear(len(levels), dim)

    def quantize(self, maps: List[torch.Tensor]) -> QuantizerOutput:
        """See Quantizer."""
        quantized, indices = [], []
        for features in maps:  # (b, h, w, d)
            bounded = self.bound(self.to_latent(features))  # (b, h, w, l)
            rounded = bounded.detach().round()  # (b, h, w, l), integers from -floor(L / 2) on
            indices.append(self._to_indices(rounded))  # (b, 1, h, w)
            passed = bounded + (rounded - bounded).detach()  # (b, h, w, l), straight through
            quantized.append(rearrange(self._from_rounded(passed), "b h w d -> b d h w"))
        zero = maps[0].new_zeros(())
        return QuantizerOutput(tuple(quantized), tuple(indices), codebook_loss=zero, commitment_loss=zero)

    def bound(self, latent: torch.Tensor) -> torch.Tensor:
        """Bound a latent (..., l) so that rounding gives every channel L values: (..., l).

        f(z) = (L - 1) / 2 * tanh(z + tan(2 o / (L - 1))) - o, where the offset o is 1/2 for even L and 0 for odd L, so
        that f(0) is about 0.
        """
        half = (self.sizes - 1) / 2  # (l,)
        offset = (1 - self.sizes % 2) / 2  # (l,)
        return half * torch.tanh(latent + torch.tan(offset / half)) - offset

    def select(self, indices: torch.Tensor, scale: int) -> torch.Tensor:
        """See Quantizer."""
        codes = unravel_codes(indices[:, 0], self.levels)  # (b, l, h, w)
        return self._from_rounded(rearrange(codes, "b l h w -> b h w l") - self.sizes // 2)

    def describe_codebook(self, scale: int, group: int) -> Tuple[str, int]:
        """See Quantizer; the implied codebook has all combinations of levels."""
        return "codebook", math.prod(self.levels)

    def _to_indices(self, rounded: torch.Tensor) -> torch.Tensor:
        """Number rounded latents: (b, h, w, l) -> (b, 1, h, w), int64."""
        codes = rearrange((rounded + self.sizes // 2).long(), "b h w l -> b l h w")
        return ravel_codes(codes, self.levels).unsqueeze(1)

    def _from_rounded(self, rounded: torch.Tensor) -> torch.Tensor:
        """Scale rounded latents to [-1, 1] and project them: (b, h, w, l) -> (b, h, w, d)."""
        return self.from_latent(rounded / (self.sizes // 2))
