"""The VAE of stage 1 as stage 2 sees it: frozen, in evaluation mode, its weights in stage 2's own checkpoints."""

from dataclasses import dataclass
from typing import Optional, Tuple, cast

import torch
from torch import nn
from torch.nn import functional as F

from ocl_msf.autoencoder import VQVAE
from ocl_msf.chunks import evaluate_in_chunks
from ocl_msf.frozen import Frozen


@dataclass
class GuidanceOutput:
    """Target of a decoder.

    Attributes:
        features: continuous codes X_s (b, d, h, w) of the guiding scale, or the encoder's features Z_s before them.
        indices: their code numbers (b, g, h, w), int64.
        all_features: the same of every scale, the finest first.
        all_indices: the same of every scale.
    """

    features: torch.Tensor
    indices: torch.Tensor
    all_features: Tuple[torch.Tensor, ...]
    all_indices: Tuple[torch.Tensor, ...]


class FrozenGuidance(Frozen):
    """The pretrained VAE that guides (section 3.1).

    Args:
        vae: the VAE of stage 1.
        scale: which scale guides, 1 the finest (section 3.2; Table 5 tries 2).
        min_scales: the fewest scales that the decoders need, where several scales guide.
        quantized: the features are continuous codes, X in section 3.1. False takes those before quantisation, which
            SlotDiffusion diffuses (Wu et al., 2023); code numbers are the same.

    Raises:
        ValueError: the VAE has fewer scales.
    """

    vae: VQVAE

    def __init__(self, vae: VQVAE, scale: int = 1, min_scales: int = 1, quantized: bool = True):
        super().__init__(vae, "vae")
        if scale < 1:
            raise ValueError(f"scale must be 1 or more, 1 the finest, got {scale}.")
        if max(scale, min_scales) > vae.pyramid.num_scales:
            raise ValueError(
                f"Guidance from scale {max(scale, min_scales)} needs a VAE with as many scales, but that of variant "
                f"'{vae.variant}' has {vae.pyramid.num_scales}: take msf/guidance=scale_1 or another msf/variant."
            )
        self.scale, self.quantized = scale, quantized

    def missing(self, reason: str) -> str:
        """Say that the weights are missing, why, and where to get them."""
        return (
            f"The guidance VAE has no trained weights: {reason} Train it first (stage 1), then load it with the "
            "callback ocl_msf.training.callbacks.LoadGuidance."
        )

    @torch.no_grad()
    def forward(self, image: torch.Tensor, codes: Optional[torch.Tensor] = None) -> GuidanceOutput:
        """Encode images (b, 3, h, w), values in [-1, 1]; deterministic.

        Args:
            image: images, or frames of videos.
            codes: what `compact` made of them, (b, n), or (videos, frames, n); they are not encoded again.

        Raises:
            RuntimeError: it has no weights.
        """
        self.require_weights()
        return self._encode(image) if codes is None else self._select(codes.flatten(0, -2).long(), *image.shape[2:])

    @torch.no_grad()
    def compact(self, image: torch.Tensor) -> Tuple[torch.Tensor, str]:
        """See Frozen: the code numbers (b, n) of all scales, one behind the other.

        Raises:
            RuntimeError: it has no weights.
            ValueError: it gives features that code numbers do not tell.
        """
        self.require_weights()
        if not self.quantized:
            raise ValueError(
                "Code numbers do not tell features before quantisation (models.guidance.quantized=false): train "
                "without +msf/cache."
            )
        indices = self._encode(image).all_indices  # of every scale: b g h w
        sizes = [self.vae.quantizer.describe_codebook(0, group)[1] for group in range(indices[0].shape[1])]
        codes = torch.cat([i.flatten(1) for i in indices], 1)  # b n
        return codes, "uint8" if max(sizes) <= 256 else "uint16"

    @evaluate_in_chunks
    def _encode(self, image: torch.Tensor) -> GuidanceOutput:
        encoded = self.vae.encode_features(image)  # of every scale: b d h w
        codes = self.vae.quantizer(encoded)  # of every scale: quantized b d h w, indices b g h w
        return self._output(codes.quantized if self.quantized else tuple(encoded), codes.indices)

    def _select(self, codes: torch.Tensor, height: int, width: int) -> GuidanceOutput:
        """The output for images (height, width) with these code numbers (b, n), int64."""
        strides = [cast(int, self.vae.encoder.stride) * 2**scale for scale in range(self.vae.pyramid.num_scales)]
        grids = [(height // stride, width // stride) for stride in strides]
        groups = codes.shape[1] // sum(rows * columns for rows, columns in grids)
        maps = codes.split([groups * rows * columns for rows, columns in grids], 1)
        indices = tuple(map_.unflatten(1, (groups, *grid)) for map_, grid in zip(maps, grids))  # each: b g h w
        return self._output(self.vae.quantizer.lookup(indices), indices)

    def _output(self, features: Tuple[torch.Tensor, ...], indices: Tuple[torch.Tensor, ...]) -> GuidanceOutput:
        return GuidanceOutput(features[self.scale - 1], indices[self.scale - 1], features, indices)

    @torch.no_grad()
    def lookup(self, indices: torch.Tensor, scale: Optional[int] = None) -> torch.Tensor:
        """Code numbers (b, g, h, w) of a scale, by default the guiding one -> features (b, d, h, w)."""
        return self.vae.quantizer.lookup_scale(indices, (scale or self.scale) - 1)

    @torch.no_grad()
    def decode(self, features: torch.Tensor) -> torch.Tensor:
        """Features (b, d, h, w) of the guiding scale -> images (b, 3, h, w) at the size of scale 1."""
        image = self.vae.decode([features])[0]
        size = [side * cast(int, self.vae.encoder.stride) * 2 ** (self.scale - 1) for side in features.shape[2:]]
        return image if list(image.shape[2:]) == size else F.interpolate(image, size)


class GuidanceTokens(nn.Module):
    """The guidance as tokens, for a decoder of patches to reconstruct."""

    def forward(self, guidance: torch.Tensor, beside: Optional[torch.Tensor] = None) -> torch.Tensor:
        """Flatten a feature map, and put it behind other features of the same patches.

        Args:
            guidance: (b, d, h, w).
            beside: (b, n, e), n = h * w, such as the features of a frozen ViT.

        Returns:
            (b, n, d), or (b, n, e + d).
        """
        tokens = guidance.flatten(2).transpose(1, 2)  # b n d
        return tokens if beside is None else torch.cat([beside, tokens], dim=-1)
