"""Objects as colours and densities along the rays of a camera."""

import math
from typing import Optional, Union

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ocl._reconstructions import DepthReconstructionOutput, ReconstructionOutput
from ocl.feature_extractors.utils import grid_positions
from ocl.neural_networks.positional_embedding import SoftPositionEmbed
from ocl.typing import ObjectFeatures


def volume_rendering(
    densities: Tensor,
    colors: Tensor,
    distances: Optional[Union[float, Tensor]] = None,
    background: Optional[Tensor] = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Composite z points along each ray, front to back (Mildenhall et al., 2020, eq. 3).

    Args:
        densities: (b, z, 1, ...), not negative.
        colors: (b, z, c, ...).
        distances: from each point to the next, one number or (b, z, 1, ...); 1 by default.
        background: (b, c, ...), one more point, which reflects all light.

    Returns:
        The image (b, c, ...), what each point reflects (b, z, c, ...), the fraction of light that it reflects
        (b, z, 1, ...), and the fraction that reaches it (b, z, 1, ...). The background is the last point.
    """
    depths = densities if distances is None else densities * distances
    reflected = -torch.expm1(-depths)
    behind = depths.cumsum(dim=1)
    reaching = torch.exp(-(torch.cat([torch.zeros_like(behind[:, :1]), behind], dim=1)))
    if background is None:
        reaching = reaching[:, :-1]
    else:
        reflected = torch.cat([reflected, torch.ones_like(reflected[:, :1])], dim=1)
        colors = torch.cat([colors, background.unsqueeze(1)], dim=1)
    points = reflected * colors
    return (reaching * points).sum(dim=1), points, reflected, reaching


class DensityPredictingSlotAttentionDecoder(nn.Module):
    """Decode objects into one colour and z densities per pixel, and render them together.

    Args:
        object_dim: channels d of the objects.
        decoder: maps (b*k, d, 8, 8) to three channels of colour and z of density, (b*k, 3+z, h, w).
        depth_positions: number of points z along each ray.
        white_background: render on white, which gets the last mask.
        normalize_densities_along_slots: weight densities by their softmax over objects, and keep their sum.
        initial_alpha: fraction of light that each point reflects while the decoder gives zeros (Sun et al., 2022).
    """

    grid: Tensor

    def __init__(
        self,
        object_dim: int,
        decoder: nn.Module,
        depth_positions: int,
        white_background: bool = False,
        normalize_densities_along_slots: bool = False,
        initial_alpha: Optional[float] = None,
    ):
        super().__init__()
        self.depth_positions, self.white_background = depth_positions, white_background
        self.normalize_densities_along_slots = normalize_densities_along_slots
        self.register_buffer("grid", grid_positions(8, 8))
        self.pos_embedding = SoftPositionEmbed(2, object_dim, cnn_channel_order=True)
        self.decoder = decoder
        if isinstance(decoder, nn.Sequential) and getattr(decoder[-1], "bias", None) is not None:
            nn.init.zeros_(decoder[-1].get_parameter("bias"))
        # softplus(offset) = -log(1 - alpha)
        self.offset = 0.0 if initial_alpha is None else math.log(1 / (1 - initial_alpha) - 1)

    def forward(self, object_features: ObjectFeatures) -> ReconstructionOutput:
        """Decode objects (b, k, d).

        In training, masks are the light that the densest point reflects; in evaluation they are one-hot, the nearest
        object, and the result is a `DepthReconstructionOutput`. With a white background there are k + 1 of them.
        """
        colors, densities = self._decode(object_features)
        density = densities.sum(dim=1).unsqueeze(2)  # b z 1 h w
        color = torch.einsum("bkzhw,bkchw->bzchw", densities, colors) / density
        background = torch.ones_like(color[:, 0]) if self.white_background else None
        image, _, _, reaching = volume_rendering(density, color, background=background)
        if not self.training:
            return self._render_each(image, colors, densities, background)
        masks = -torch.expm1(-densities.detach().amax(dim=2))
        objects = colors.detach() * masks.unsqueeze(2)
        if background is not None:
            masks = torch.cat([masks, reaching[:, -1:, 0]], dim=1)
        return ReconstructionOutput(image, _append(objects, background), masks)

    def _decode(self, objects: Tensor) -> tuple[Tensor, Tensor]:
        """Return colours (b, k, 3, h, w) and densities (b, k, z, h, w)."""
        maps = objects.flatten(0, 1)[:, :, None, None].expand(-1, -1, 8, 8)
        decoded = self.decoder(self.pos_embedding(maps, self.grid.unsqueeze(0))).unflatten(0, objects.shape[:2])
        colors, densities = decoded.split([3, self.depth_positions], dim=2)
        densities = F.softplus(densities + self.offset)
        if self.normalize_densities_along_slots:
            weighted = densities * densities.softmax(dim=1)
            densities = weighted * densities.sum(dim=1, keepdim=True) / weighted.sum(dim=1, keepdim=True)
        return colors.sigmoid(), densities

    def _render_each(
        self, image: Tensor, colors: Tensor, densities: Tensor, background: Optional[Tensor]
    ) -> DepthReconstructionOutput:
        depth_colors = colors.unsqueeze(2).expand(-1, -1, self.depth_positions, -1, -1, -1)
        ground = None if background is None else torch.ones_like(colors.flatten(0, 1))
        rendered = volume_rendering(densities.flatten(0, 1).unsqueeze(2), depth_colors.flatten(0, 1), background=ground)
        objects, _, reflected, reaching = (part.unflatten(0, colors.shape[:2]) for part in rendered)
        amodal, object_depths = (reflected * reaching).squeeze(3).max(dim=2)
        depths, nearest = object_depths.min(dim=1)
        if background is not None:
            nearest = nearest.masked_fill(depths == self.depth_positions, colors.shape[1])
        masks = F.one_hot(nearest, colors.shape[1] + int(background is not None)).movedim(-1, 1).contiguous()
        objects = _append(objects, background)
        return DepthReconstructionOutput(image, objects, masks, amodal, depths, object_depths, densities, depth_colors)


def _append(objects: Tensor, background: Optional[Tensor]) -> Tensor:
    return objects if background is None else torch.cat([objects, background.unsqueeze(1)], dim=1)
