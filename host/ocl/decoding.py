"""Decoders from objects back to images, flow or features."""

import dataclasses
import math
from typing import Callable, Optional

import torch
from torch import nn

from ocl.feature_extractors.utils import grid_positions
from ocl.neural_networks.backbones import (
    get_dvae_decoder,
    get_dvae_encoder,
    get_savi_decoder_backbone,
    get_slotattention_decoder_backbone,
)
from ocl.neural_networks.convenience import Activation, get_activation_fn
from ocl.typing import ObjectFeatures
from ocl.utils.resizing import resize_patches_to_image

__all__ = [
    "AutoregressivePatchDecoder",
    "DVAEDecoder",
    "OpticalFlowPredictionTaskOutput",
    "PatchDecoder",
    "PatchReconstructionOutput",
    "ReconstructionOutput",
    "SimpleReconstructionOutput",
    "SlotAttentionDecoder",
    "SlotAttentionOpticalFlowDecoder",
    "build_grid_of_positions",
    "get_dvae_decoder",
    "get_dvae_encoder",
    "get_savi_decoder_backbone",
    "get_slotattention_decoder_backbone",
]


@dataclasses.dataclass
class SimpleReconstructionOutput:
    """A reconstruction (B, C, H, W)."""

    reconstruction: torch.Tensor


@dataclasses.dataclass
class ReconstructionOutput:
    """An image as a mixture of objects; videos have a further axis T behind B.

    Attributes:
        reconstruction: (B, C, H, W).
        object_reconstructions: (B, K, C, H, W).
        masks: (B, K, H, W), summing to 1 over K.
    """

    reconstruction: torch.Tensor
    object_reconstructions: torch.Tensor
    masks: torch.Tensor


@dataclasses.dataclass
class PatchReconstructionOutput:
    """Reconstructed features of patches; videos have a further axis T behind B.

    Attributes:
        reconstruction: (B, P, D).
        masks: (B, K, P).
        masks_as_image: (B, K, S, S), the masks in the size of the image.
        target: (B, P, D), what is to be reconstructed.
    """

    reconstruction: torch.Tensor
    masks: torch.Tensor
    masks_as_image: Optional[torch.Tensor] = None
    target: Optional[torch.Tensor] = None


@dataclasses.dataclass
class OpticalFlowPredictionTaskOutput:
    """Optical flow as a mixture of objects.

    Attributes:
        predicted_flow: (B, 2, H, W).
        object_flows: (B, K, 2, H, W).
        masks: (B, K, H, W), summing to 1 over K.
    """

    predicted_flow: torch.Tensor
    object_flows: torch.Tensor
    masks: torch.Tensor


def build_grid_of_positions(resolution: tuple[int, int]) -> torch.Tensor:
    """Return the coordinates (H, W, 2) of a grid, row before column, each from 0 to 1."""
    return grid_positions(*resolution)


class _SpatialBroadcastDecoder(nn.Module):
    """Decode every object on its own from an 8x8 map, and mix the results."""

    def __init__(self, decoder: nn.Module, positional_embedding: Optional[nn.Module] = None):
        super().__init__()
        self.decoder = decoder
        self.positional_embedding = positional_embedding
        if positional_embedding is not None:
            self.register_buffer("grid", build_grid_of_positions((8, 8)).unsqueeze(0))

    def decode(self, objects: ObjectFeatures) -> tuple[torch.Tensor, torch.Tensor]:
        """Turn objects (..., K, D) into their contents (..., K, C, H, W) and masks (..., K, 1, H, W)."""
        if objects.dim() < 3:
            raise ValueError(f"Expected objects (B, K, D) or (B, T, K, D), got shape {tuple(objects.shape)}.")
        maps = objects.flatten(0, -2)[:, :, None, None].expand(-1, -1, 8, 8)
        if self.positional_embedding is not None:
            maps = self.positional_embedding(maps, self.grid)
        decoded = self.decoder(maps).unflatten(0, objects.shape[:-1])
        contents, logits = decoded.split([decoded.shape[-3] - 1, 1], dim=-3)
        return contents, logits.softmax(dim=-4)


class SlotAttentionDecoder(_SpatialBroadcastDecoder):
    """The mixture decoder of slot attention (Locatello et al., 2020).

    Args:
        decoder: Maps (B*K, D, 8, 8) to colors and one mask logit, (B*K, C+1, H, W).
        final_activation: Activation of the colors.
        positional_embedding: Called with maps (B*K, D, 8, 8) and their positions (1, 8, 8, 2).
    """

    def __init__(
        self,
        decoder: nn.Module,
        final_activation: Activation = "identity",
        positional_embedding: Optional[nn.Module] = None,
    ):
        super().__init__(decoder, positional_embedding)
        self.final_activation = get_activation_fn(final_activation, inplace=False)

    def forward(self, object_features: ObjectFeatures) -> ReconstructionOutput:
        """Decode objects (B, K, D) or (B, T, K, D).

        Raises:
            ValueError: If the objects have fewer than 3 axes.
        """
        colors, masks = self.decode(object_features)
        colors = self.final_activation(colors)
        return ReconstructionOutput((colors * masks).sum(dim=-4), colors, masks.squeeze(-3))


class SlotAttentionOpticalFlowDecoder(_SpatialBroadcastDecoder):
    """The same mixture for optical flow; `decoder` gives two channels and one mask logit."""

    def forward(self, object_features: ObjectFeatures) -> OpticalFlowPredictionTaskOutput:
        """Decode objects (B, K, D)."""
        flows, masks = self.decode(object_features)
        return OpticalFlowPredictionTaskOutput((flows * masks).sum(dim=-4), flows, masks.squeeze(-3))


class DVAEDecoder(nn.Module):
    """The decoder of a discrete VAE.

    Args:
        decoder: Maps codes (B, V, h, w) to images.
        patch_size: Ratio of the sides of image and codes; only informative.
    """

    def __init__(self, decoder: nn.Module, patch_size: int = 4):
        super().__init__()
        self.decoder = decoder
        self.patch_size = patch_size

    def forward(self, features: torch.Tensor) -> SimpleReconstructionOutput:
        """Decode codes (B, V, h, w), or (B, T, V, h, w) of videos."""
        if features.dim() == 5:
            frames = self.decoder(features.flatten(0, 1))
            return SimpleReconstructionOutput(frames.unflatten(0, features.shape[:2]))
        return SimpleReconstructionOutput(self.decoder(features))


def _upsample_target(target: torch.Tensor, scale_factor: float, mode: str) -> torch.Tensor:
    """Resize the features (..., P, D) of a square image; no gradients flow back."""
    resized = resize_patches_to_image(
        target.detach().transpose(-1, -2), scale_factor=scale_factor, resize_mode=mode
    )
    return resized.flatten(-2).transpose(-1, -2)


class PatchDecoder(nn.Module):
    """The broadcast decoder of DINOSAUR (Seitzer et al., 2023), which reconstructs features.

    Args:
        object_dim: Channels of the objects.
        output_dim: Channels D of the features.
        num_patches: Number of patches P.
        decoder: Builds the backbone from its numbers of input and output channels.
        decoder_input_dim: Project objects to this number of channels first.
        upsample_target: Enlarge the target by this factor.
        resize_mode: How the target is enlarged and the masks are brought to the size of the image.
    """

    def __init__(
        self,
        object_dim: int,
        output_dim: int,
        num_patches: int,
        decoder: Callable[[int, int], nn.Module],
        decoder_input_dim: Optional[int] = None,
        upsample_target: Optional[float] = None,
        resize_mode: str = "bilinear",
    ):
        super().__init__()
        self.upsample_target = upsample_target
        self.resize_mode = resize_mode
        self.inp_transform = None
        if decoder_input_dim is not None:
            self.inp_transform = nn.Linear(object_dim, decoder_input_dim)
            object_dim = decoder_input_dim
        self.pos_embed = nn.Parameter(0.02 * torch.randn(1, num_patches, object_dim))
        self.decoder = decoder(object_dim, output_dim + 1)

    def forward(
        self,
        object_features: ObjectFeatures,
        target: Optional[torch.Tensor] = None,
        image: Optional[torch.Tensor] = None,
    ) -> PatchReconstructionOutput:
        """Decode objects.

        Args:
            object_features: (B, K, object_dim) or (B, T, K, object_dim).
            target: Features (B, P, D) or (B, T, P, D), handed on in the output.
            image: Square images; only their width counts, as the size of `masks_as_image`.
        """
        if target is not None and self.upsample_target is not None:
            target = _upsample_target(target, self.upsample_target, self.resize_mode)
        objects = object_features if self.inp_transform is None else self.inp_transform(object_features)
        decoded = self.decoder(objects.unsqueeze(-2) + self.pos_embed.squeeze(0))  # ... k p d+1
        features, logits = decoded.split([decoded.shape[-1] - 1, 1], dim=-1)
        masks = logits.softmax(dim=-3)
        reconstruction = (features * masks).sum(dim=-3)
        masks = masks.squeeze(-1)
        return PatchReconstructionOutput(
            reconstruction, masks, _masks_as_image(masks, image, self.resize_mode), target
        )


def _masks_as_image(masks: torch.Tensor, image: Optional[torch.Tensor], mode: str) -> Optional[torch.Tensor]:
    if image is None:
        return None
    return resize_patches_to_image(masks, size=image.shape[-1], resize_mode=mode)


class AutoregressivePatchDecoder(nn.Module):
    """A transformer that predicts every patch from objects and from the patches before it.

    This is the decoder of SLATE (Singh et al., 2022) and of DINOSAUR (Seitzer et al., 2023).

    Args:
        object_dim: Channels of the objects.
        output_dim: Channels of the output.
        num_patches: Number of patches P.
        decoder: Builds the transformer from two equal numbers of channels; it is called with the target
            (B, P, d), the objects (B, K, c), a causal mask (P, P) and optionally `memory_key_padding_mask`.
        decoder_dim: Channels d of the transformer, by default `output_dim`.
        decoder_cond_dim: Project objects to c channels; by default they are only normalized.
        upsample_target: Enlarge the target by this factor.
        resize_mode: How the target is enlarged and the masks are brought to the size of the image.
        use_decoder_masks: The transformer also returns masks (B, K, P), which replace the given ones.
        use_bos_token: Shift the target behind a learned first token; otherwise it is shifted already.
        use_input_transform: Project the target from `output_dim` to d channels and normalize it.
        use_input_norm: Only normalize the target.
        use_output_transform: Project the output of the transformer to `output_dim` channels.
        use_positional_embedding: Add learned positions to the target.
    """

    def __init__(
        self,
        object_dim: int,
        output_dim: int,
        num_patches: int,
        decoder: Callable[[int, int], nn.Module],
        decoder_dim: Optional[int] = None,
        decoder_cond_dim: Optional[int] = None,
        upsample_target: Optional[float] = None,
        resize_mode: str = "bilinear",
        use_decoder_masks: bool = False,
        use_bos_token: bool = True,
        use_input_transform: bool = False,
        use_input_norm: bool = False,
        use_output_transform: bool = False,
        use_positional_embedding: bool = False,
    ):
        super().__init__()
        dim = output_dim if decoder_dim is None else decoder_dim
        target_dim = output_dim if use_input_transform else dim
        self.upsample_target = upsample_target
        self.resize_mode = resize_mode
        self.use_decoder_masks = use_decoder_masks

        self.cond_transform = _projection(object_dim, decoder_cond_dim)
        self.bos_token = nn.Parameter(0.02 * torch.randn(1, 1, target_dim)) if use_bos_token else None
        self.inp_transform = None
        if use_input_transform:
            self.inp_transform = _projection(target_dim, dim)
        elif use_input_norm:
            self.inp_transform = nn.LayerNorm(dim)
        self.pos_embed = None
        if use_positional_embedding:
            self.pos_embed = nn.Parameter(0.02 * torch.randn(1, num_patches, dim))
        self.register_buffer("mask", torch.full((num_patches, num_patches), -math.inf).triu(diagonal=1))
        self.decoder = decoder(dim, dim)
        self.outp_transform = nn.Linear(dim, output_dim) if use_output_transform else None

    def forward(
        self,
        object_features: ObjectFeatures,
        masks: torch.Tensor,
        target: torch.Tensor,
        image: Optional[torch.Tensor] = None,
        empty_objects: Optional[torch.Tensor] = None,
    ) -> PatchReconstructionOutput:
        """Predict the patches of the target; of videos all inputs have a further axis T behind B.

        Args:
            object_features: (B, K, object_dim).
            masks: (B, K, P), handed on in the output.
            target: (B, P, D).
            image: Square images; only their width counts, as the size of `masks_as_image`.
            empty_objects: (B, K) bool, true where the transformer must not look.
        """
        if self.upsample_target is not None:
            target = _upsample_target(target, self.upsample_target, self.resize_mode)
        lead = object_features.shape[:-2]
        options = {}
        if empty_objects is not None:
            options["memory_key_padding_mask"] = empty_objects.flatten(0, -2)
        conditioning = self.cond_transform(object_features.flatten(0, -3))
        outputs = self.decoder(
            self._shift_and_embed(target.flatten(0, -3)), conditioning, self.mask, **options
        )
        if self.use_decoder_masks:
            outputs, masks = outputs[0], outputs[1].unflatten(0, lead)
        if self.outp_transform is not None:
            outputs = self.outp_transform(outputs)
        return PatchReconstructionOutput(
            outputs.unflatten(0, lead), masks, _masks_as_image(masks, image, self.resize_mode), target
        )

    def _shift_and_embed(self, target: torch.Tensor) -> torch.Tensor:
        inputs = target
        if self.bos_token is not None:
            # No gradients: otherwise learned targets could be made easy to predict.
            bos = self.bos_token.expand(len(target), -1, -1)
            inputs = torch.cat([bos, target[:, :-1].detach()], dim=1)
        if self.inp_transform is not None:
            inputs = self.inp_transform(inputs)
        return inputs if self.pos_embed is None else inputs + self.pos_embed


def _projection(in_dim: int, out_dim: Optional[int]) -> nn.Module:
    """Build a normalization, behind a linear layer if there is a number of output channels."""
    if out_dim is None:
        return nn.LayerNorm(in_dim)
    return nn.Sequential(nn.Linear(in_dim, out_dim, bias=False), nn.LayerNorm(out_dim))
