"""Fusing the feature maps of an image pyramid onto the finest grid; `ocl_msf.feature_extractors` injects one of these.

A fusion takes N maps (b, d, h_n, w_n), the finest first, and returns a `FusedFeatures`.
"""

from dataclasses import dataclass, field
from functools import reduce
from typing import Dict, List, Sequence

import torch
from torch import nn
from torch.nn import functional as F

from ocl_msf.frozen import Frozen
from ocl_msf.quantization import Quantizer, QuantizerOutput


@dataclass
class FusedFeatures:
    """Output of every fusion.

    Attributes:
        features: (b, d, h_1, w_1), on the finest grid.
        losses: (b,) each, by name: what else has to be minimised, the same number for every image.
    """

    features: torch.Tensor
    losses: Dict[str, torch.Tensor] = field(default_factory=dict)


class FinestScale(nn.Module):
    """No fusion: the features of the finest scale as they are."""

    def forward(self, maps: Sequence[torch.Tensor]) -> FusedFeatures:
        """See the module."""
        return FusedFeatures(maps[0])


class SumScales(nn.Module):
    """The sum of all scales, coarser ones upsampled bilinearly."""

    def forward(self, maps: Sequence[torch.Tensor]) -> FusedFeatures:
        """See the module."""
        return FusedFeatures(reduce(torch.add, onto_finest_grid(maps)))


class ConcatScales(nn.Module):
    """All scales side by side, coarser ones upsampled bilinearly, and projected to the channels of one.

    Args:
        feature_dim: d.
        num_scales: N.
    """

    def __init__(self, feature_dim: int, num_scales: int):
        super().__init__()
        self.project = nn.Conv2d(num_scales * feature_dim, feature_dim, 1)

    def forward(self, maps: Sequence[torch.Tensor]) -> FusedFeatures:
        """See the module."""
        return FusedFeatures(self.project(torch.cat(onto_finest_grid(maps), 1)))


class QuantizedScales(nn.Module):
    """Multi-Scale Fusion (section 3.3): a scale-invariant code by vote of all scales, and a code of the scale's own.

    The gradient passes straight through to the features that win. The losses `codebook_loss` and `commitment_loss` of
    the quantiser have to be among those of the model, the first unless the quantiser is frozen.

    Args:
        feature_dim: d.
        quantizer: of c channels, such as `ocl_msf.fusion.MultiScaleFusion`, or a `FrozenQuantizer`.

    Attributes:
        to_codes, from_codes: linear maps d -> c and c -> d.
    """

    def __init__(self, feature_dim: int, quantizer: nn.Module):
        super().__init__()
        self.to_codes = nn.Conv2d(feature_dim, int(quantizer.dim), 1)  # type: ignore[arg-type]
        self.quantizer = quantizer
        self.from_codes = nn.Conv2d(int(quantizer.dim), feature_dim, 1)  # type: ignore[arg-type]

    def forward(self, maps: Sequence[torch.Tensor]) -> FusedFeatures:
        """See the module.

        Raises:
            ValueError: maps do not halve from scale to scale, or are not as many as the quantiser fuses.
        """
        codes: QuantizerOutput = self.quantizer([self.to_codes(m) for m in maps])
        losses = {"codebook_loss": codes.codebook_loss, "commitment_loss": codes.commitment_loss}
        batch = len(maps[0])
        return FusedFeatures(self.from_codes(codes.quantized[0]), {k: x.expand(batch) for k, x in losses.items()})


class FrozenQuantizer(Frozen):
    """The quantiser of a VAE of stage 1, which never learns. `ocl_msf.training.callbacks.LoadGuidance` loads it.

    Args:
        quantizer: one like that of the VAE.
    """

    quantizer: Quantizer

    def __init__(self, quantizer: Quantizer):
        super().__init__(quantizer, "quantizer")
        self.dim = quantizer.dim

    def missing(self, reason: str) -> str:
        """Say that the weights are missing, why, and where to get them."""
        return f"The frozen quantiser has no weights: {reason} Train stage 1, and load it with LoadGuidance."

    def forward(self, maps: Sequence[torch.Tensor]) -> QuantizerOutput:
        """Quantise N maps (b, c, h_n, w_n); see `ocl_msf.quantization.Quantizer`.

        Raises:
            RuntimeError: it has no weights.
        """
        self.require_weights()
        return self.quantizer(maps)


def onto_finest_grid(maps: Sequence[torch.Tensor]) -> List[torch.Tensor]:
    """Upsample maps (b, d, h_n, w_n) to the first one's grid bilinearly: N maps (b, d, h_1, w_1)."""
    size = maps[0].shape[-2:]
    finer = [F.interpolate(m, size, mode="bilinear", align_corners=False) for m in maps[1:]]  # N-1 x (b, d, h_1, w_1)
    return [maps[0], *finer]
