"""The VAE of stage 1 as stage 2 sees it: frozen, in evaluation mode, its weights in stage 2's own checkpoints."""

from dataclasses import dataclass
from typing import Dict, Tuple

import torch
from torch import nn
from torch.nn import functional as F

from ocl_msf.autoencoder import VQVAE


@dataclass
class GuidanceOutput:
    """What a decoder is to reconstruct.

    Attributes:
        features: continuous codes X_s (b, d, h, w) of the guiding scale.
        indices: their code numbers (b, g, h, w), int64.
        all_features: the same of every scale, the finest first.
        all_indices: the same of every scale.
    """

    features: torch.Tensor
    indices: torch.Tensor
    all_features: Tuple[torch.Tensor, ...]
    all_indices: Tuple[torch.Tensor, ...]


class FrozenGuidance(nn.Module):
    """A pretrained VAE that guides and never learns (section 3.1).

    Until `load` has given it weights, or a checkpoint of stage 2 has restored them, it refuses to run: training
    against random guidance would look like training.

    Args:
        vae: the VAE of stage 1.
        scale: which scale guides, 1 the finest (section 3.2; Table 5 tries 2).
        min_scales: the fewest scales that the decoders can do with, where several scales guide.

    Raises:
        ValueError: the VAE has not so many scales.
    """

    def __init__(self, vae: VQVAE, scale: int = 1, min_scales: int = 1):
        super().__init__()
        if scale < 1:
            raise ValueError(f"scale must be 1 or more, 1 the finest, got {scale}.")
        if max(scale, min_scales) > vae.pyramid.num_scales:
            raise ValueError(
                f"Guidance from scale {max(scale, min_scales)} needs a VAE with as many scales, but that of variant "
                f"'{vae.variant}' has {vae.pyramid.num_scales}: take msf/guidance=scale_1 or another msf/variant."
            )
        self.vae = vae.requires_grad_(False)
        self.scale = scale
        self.register_buffer("loaded", torch.tensor(0, dtype=torch.uint8))  # gloo of torch 2.0 sends no bool
        self.train(False)

    def train(self, mode: bool = True) -> "FrozenGuidance":
        """Stay in evaluation mode, whatever the model around does."""
        return super().train(False)

    def load(self, weights: Dict[str, torch.Tensor]) -> None:
        """Take the weights of a stage-1 VAE.

        Raises:
            ValueError: they are of another variant or shape.
        """
        self.vae.load_state_dict(weights)
        self.loaded.fill_(True)

    @torch.no_grad()
    def forward(self, image: torch.Tensor) -> GuidanceOutput:
        """Encode images (b, 3, h, w), values in [-1, 1]; deterministic."""
        if not self.loaded:
            raise RuntimeError(
                "The guidance VAE has no trained weights yet. Train it first (stage 1), then load it with the callback "
                "ocl_msf.training.callbacks.LoadGuidance."
            )
        codes = self.vae.encode(image)
        guiding = self.scale - 1
        return GuidanceOutput(codes.quantized[guiding], codes.indices[guiding], codes.quantized, codes.indices)

    @torch.no_grad()
    def lookup(self, indices: torch.Tensor) -> torch.Tensor:
        """Code numbers (b, g, h, w) of the guiding scale -> features (b, d, h, w)."""
        return self.vae.quantizer.lookup_scale(indices, self.scale - 1)

    @torch.no_grad()
    def decode(self, features: torch.Tensor) -> torch.Tensor:
        """Features of the guiding scale (b, d, h, w) -> images at the size of scale 1."""
        image = self.vae.decode([features])[0]
        return F.interpolate(image, scale_factor=2 ** (self.scale - 1)) if self.scale > 1 else image
