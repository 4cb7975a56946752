"""Decoders from objects back to images, flow or features."""

import math
from typing import Callable, Optional

import torch
from torch import Tensor, nn

from ocl._reconstructions import (  # noqa: F401  configs and plugins look for all of them here
    BBoxOutput,
    DepthReconstructionOutput,
    OpticalFlowPredictionTaskOutput,
    PatchReconstructionOutput,
    ReconstructionAmodalOutput,
    ReconstructionOutput,
    SimpleReconstructionOutput,
)
from ocl._volume_rendering import DensityPredictingSlotAttentionDecoder, volume_rendering  # noqa: F401
from ocl.feature_extractors.utils import grid_positions
from ocl.neural_networks.backbones import (  # noqa: F401  configs look for them here
    StyleGANv2Decoder,
    get_dvae_decoder,
    get_dvae_encoder,
    get_savi_decoder_backbone,
    get_slotattention_decoder_backbone,
)
from ocl.neural_networks.convenience import Activation, get_activation_fn
from ocl.typing import ObjectFeatures
from ocl.utils.resizing import resize_patches_to_image


def build_grid_of_positions(resolution: tuple[int, int]) -> Tensor:
    """Return the coordinates (h, w, 2) of a grid, row before column, each from 0 to 1."""
    return grid_positions(*resolution)


class _SpatialBroadcastDecoder(nn.Module):
    """Decode every object on its own from an 8x8 map, and mix the results."""

    grid: Tensor

    def __init__(self, decoder: nn.Module, positional_embedding: Optional[nn.Module] = None):
        super().__init__()
        self.decoder, self.positional_embedding = decoder, positional_embedding
        if positional_embedding is not None:
            self.register_buffer("grid", build_grid_of_positions((8, 8)))

    def decode(
        self, objects: ObjectFeatures, activation: Callable[[Tensor], Tensor] = nn.Identity()
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Turn objects (..., k, d) into a mixture (..., c, h, w) of contents (..., k, c, h, w).

        The last two results are the masks (..., k, h, w) and their logits.
        """
        if objects.dim() < 3:
            raise ValueError(f"Expected objects (b, k, d) or (b, t, k, d), got shape {tuple(objects.shape)}.")
        maps = objects.flatten(0, -2)[:, :, None, None].expand(-1, -1, 8, 8)
        if self.positional_embedding is not None:
            maps = self.positional_embedding(maps, self.grid.unsqueeze(0))
        decoded = self.decoder(maps).unflatten(0, objects.shape[:-1])
        contents, logits = decoded.split([decoded.shape[-3] - 1, 1], dim=-3)
        contents, masks = activation(contents), logits.softmax(dim=-4)
        return (contents * masks).sum(dim=-4), contents, masks.squeeze(-3), logits.squeeze(-3)


class SlotAttentionDecoder(_SpatialBroadcastDecoder):
    """The mixture decoder of slot attention (Locatello et al., 2020).

    Args:
        decoder: maps (b*k, d, 8, 8) to colors and one mask logit, (b*k, c+1, h, w).
        final_activation: activation of the colors.
        positional_embedding: called with maps (b*k, d, 8, 8) and their positions (1, 8, 8, 2).
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
        """Decode objects (b, k, d) or (b, t, k, d).

        Raises:
            ValueError: if the objects have fewer than 3 axes.
        """
        return ReconstructionOutput(*self.decode(object_features, self.final_activation)[:3])


class SlotAttentionAmodalDecoder(SlotAttentionDecoder):
    """The same mixture, which also tells the whole of objects that others hide in part."""

    def forward(self, object_features: ObjectFeatures) -> ReconstructionAmodalOutput:  # type: ignore[override]
        """Decode objects (b, k, d) or (b, t, k, d); one whose channels sum to 0 is none.

        Raises:
            ValueError: if the objects have fewer than 3 axes.
        """
        mixture, contents, visible, logits = self.decode(object_features, self.final_activation)
        low, high = visible.amin((-2, -1), keepdim=True), visible.amax((-2, -1), keepdim=True)
        stretched = (visible - low) / (high - low).clamp(min=torch.finfo(visible.dtype).tiny)
        is_object = (object_features.sum(dim=-1) != 0)[..., None, None]
        return ReconstructionAmodalOutput(mixture, contents, logits.sigmoid(), visible, stretched.where(is_object, 0))


class SlotAttentionOpticalFlowDecoder(_SpatialBroadcastDecoder):
    """The same mixture for optical flow; `decoder` gives two channels and one mask logit."""

    def forward(self, object_features: ObjectFeatures) -> OpticalFlowPredictionTaskOutput:
        """Decode objects (b, k, d)."""
        return OpticalFlowPredictionTaskOutput(*self.decode(object_features)[:3])


class DVAEDecoder(nn.Module):
    """The decoder of a discrete VAE.

    Args:
        decoder: maps codes (b, m, h', w') to images.
        patch_size: ratio of the sides of image and codes; only informative.
    """

    def __init__(self, decoder: nn.Module, patch_size: int = 4):
        super().__init__()
        self.decoder, self.patch_size = decoder, patch_size

    def forward(self, features: Tensor) -> SimpleReconstructionOutput:
        """Decode codes (b, m, h', w'), or (b, t, m, h', w') of videos."""
        images = self.decoder(features.flatten(0, -4))
        return SimpleReconstructionOutput(images.unflatten(0, features.shape[:-3]))


def _upsample_target(target: Tensor, scale_factor: float, mode: str) -> Tensor:
    """Resize the features (..., n, d) of a square image; no gradients flow back."""
    patches = target.detach().transpose(-1, -2)
    resized = resize_patches_to_image(patches, scale_factor=scale_factor, resize_mode=mode)
    return resized.flatten(-2).transpose(-1, -2)


def _masks_as_image(masks: Tensor, image: Optional[Tensor], mode: str) -> Optional[Tensor]:
    return None if image is None else resize_patches_to_image(masks, image.shape[-1], resize_mode=mode)


class PatchDecoder(nn.Module):
    """The broadcast decoder of DINOSAUR (Seitzer et al., 2023), which reconstructs features.

    Args:
        object_dim: channels of the objects.
        output_dim: channels d of the features.
        num_patches: number of patches n.
        decoder: builds the backbone from its numbers of input and output channels.
        decoder_input_dim: project objects to this number of channels first.
        upsample_target: enlarge the target by this factor.
        resize_mode: how the target is enlarged and the masks are brought to the size of the image.
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
        self.upsample_target, self.resize_mode = upsample_target, resize_mode
        dim = object_dim if decoder_input_dim is None else decoder_input_dim
        self.inp_transform = nn.Identity() if decoder_input_dim is None else nn.Linear(object_dim, dim)
        self.pos_embed = nn.Parameter(0.02 * torch.randn(1, num_patches, dim))
        self.decoder = decoder(dim, output_dim + 1)

    def forward(
        self, object_features: ObjectFeatures, target: Optional[Tensor] = None, image: Optional[Tensor] = None
    ) -> PatchReconstructionOutput:
        """Decode objects.

        Args:
            object_features: (b, k, object_dim) or (b, t, k, object_dim).
            target: features (b, n, d) or (b, t, n, d), handed on in the output.
            image: square images; only their width counts, as the size of `masks_as_image`.
        """
        if target is not None and self.upsample_target is not None:
            target = _upsample_target(target, self.upsample_target, self.resize_mode)
        objects = self.inp_transform(object_features).unsqueeze(-2)
        objects = objects + self.pos_embed.squeeze(0)  # ... k p d
        decoded = self.decoder(objects.flatten(0, -3)).unflatten(0, objects.shape[:-2])  # ... k p d+1
        features, logits = decoded.split([decoded.shape[-1] - 1, 1], dim=-1)
        weights = logits.softmax(dim=-3)
        reconstruction, masks = (features * weights).sum(dim=-3), weights.squeeze(-1)
        return PatchReconstructionOutput(reconstruction, masks, _masks_as_image(masks, image, self.resize_mode), target)


class AutoregressivePatchDecoder(nn.Module):
    """A transformer that predicts every patch from objects and from the patches before it.

    This is the decoder of SLATE (Singh et al., 2022) and of DINOSAUR (Seitzer et al., 2023).

    Args:
        object_dim: channels of the objects.
        output_dim: channels of the output.
        num_patches: number of patches n.
        decoder: builds the transformer from two equal numbers of channels; it is called with the target
            (b, n, d), the objects (b, k, c), a causal mask (n, n) and optionally `memory_key_padding_mask`.
        decoder_dim: channels d of the transformer, by default `output_dim`.
        decoder_cond_dim: project objects to c channels; by default they are only normalized.
        upsample_target: enlarge the target by this factor.
        resize_mode: how the target is enlarged and the masks are brought to the size of the image.
        use_decoder_masks: the transformer also returns masks (b, k, n), which replace the given ones.
        use_bos_token: shift the target behind a learned first token; otherwise it is shifted already.
        use_input_transform: project the target from `output_dim` to d channels and normalize it.
        use_input_norm: only normalize the target.
        use_output_transform: project the output of the transformer to `output_dim` channels.
        use_positional_embedding: add learned positions to the target.
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
        self.upsample_target, self.resize_mode = upsample_target, resize_mode
        self.use_decoder_masks = use_decoder_masks
        dim = output_dim if decoder_dim is None else decoder_dim
        target_dim = output_dim if use_input_transform else dim
        self.cond_transform = _projection(object_dim, decoder_cond_dim)
        self.bos_token = nn.Parameter(0.02 * torch.randn(1, 1, target_dim)) if use_bos_token else None
        if use_input_transform:
            self.inp_transform = _projection(target_dim, dim)
        else:
            self.inp_transform = nn.LayerNorm(dim) if use_input_norm else nn.Identity()
        self.pos_embed = nn.Parameter(0.02 * torch.randn(1, num_patches, dim)) if use_positional_embedding else None
        self.register_buffer("mask", torch.full((num_patches, num_patches), -math.inf).triu(diagonal=1))
        self.decoder = decoder(dim, dim)
        self.outp_transform = nn.Linear(dim, output_dim) if use_output_transform else nn.Identity()

    def forward(
        self,
        object_features: ObjectFeatures,
        masks: Tensor,
        target: Tensor,
        image: Optional[Tensor] = None,
        empty_objects: Optional[Tensor] = None,
    ) -> PatchReconstructionOutput:
        """Predict the patches of the target; of videos all inputs have a further axis t behind b.

        Args:
            object_features: (b, k, object_dim).
            masks: (b, k, n), handed on in the output.
            target: (b, n, d).
            image: square images; only their width counts, as the size of `masks_as_image`.
            empty_objects: (b, k) bool, true where the transformer must not look.
        """
        if self.upsample_target is not None:
            target = _upsample_target(target, self.upsample_target, self.resize_mode)
        lead, inputs = object_features.shape[:-2], target.flatten(0, -3)
        if self.bos_token is not None:
            # No gradients: otherwise learned targets could be made easy to predict.
            inputs = torch.cat([self.bos_token.expand(len(inputs), -1, -1), inputs[:, :-1].detach()], dim=1)
        inputs = self.inp_transform(inputs)
        if self.pos_embed is not None:
            inputs = inputs + self.pos_embed
        conditioning = self.cond_transform(object_features.flatten(0, -3))
        options = {} if empty_objects is None else {"memory_key_padding_mask": empty_objects.flatten(0, -2)}
        outputs = self.decoder(inputs, conditioning, self.mask, **options)
        if self.use_decoder_masks:
            outputs, masks = outputs[0], outputs[1].unflatten(0, lead)
        outputs = self.outp_transform(outputs).unflatten(0, lead)
        return PatchReconstructionOutput(outputs, masks, _masks_as_image(masks, image, self.resize_mode), target)


def _projection(in_dim: int, out_dim: Optional[int]) -> nn.Module:
    """Build a normalization, behind a linear layer if there is a number of output channels."""
    if out_dim is None:
        return nn.LayerNorm(in_dim)
    return nn.Sequential(nn.Linear(in_dim, out_dim, bias=False), nn.LayerNorm(out_dim))
