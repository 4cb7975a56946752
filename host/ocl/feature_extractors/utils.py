"""Base classes and position helpers for feature extractors."""

import abc
from typing import Any, Optional, Union

import torch
from torch import Tensor, nn

from ocl.typing import FeatureExtractorOutput, ImageData, ImageFeatures, ImageOrVideoData, Positions
from ocl.utils.resizing import square_side
from ocl.utils.trees import map_tree

ForwardOutput = Union[
    ImageFeatures,
    tuple[ImageFeatures, Optional[Positions]],
    tuple[ImageFeatures, Optional[Positions], Optional[dict[str, Any]]],
]


def grid_positions(height: int, width: int, device: Optional[torch.device] = None) -> Tensor:
    """Return (H, W, 2) coordinates, row before column, each running from 0 to 1."""
    axes = (torch.linspace(0, 1, size, device=device) for size in (height, width))
    return torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1)


def cnn_compute_positions_and_flatten(features: Tensor) -> tuple[Tensor, Tensor]:
    """Flatten feature maps row by row.

    Args:
        features: (B, D, H, W).

    Returns:
        Features (B, H*W, D) and their positions (H*W, 2) in [0, 1].
    """
    positions = grid_positions(*features.shape[-2:], device=features.device)
    return features.flatten(2).transpose(1, 2), positions.flatten(0, 1)


def transformer_compute_positions(features: Tensor) -> Tensor:
    """Return the positions (N, 2) in [0, 1] of tokens (B, N, D) that cover a square grid row by row.

    Raises:
        ValueError: If the number of tokens is not a square.
    """
    side = square_side(features.shape[1])
    return grid_positions(side, side, device=features.device).flatten(0, 1)


class FeatureExtractor(nn.Module, abc.ABC):
    """A module from images or videos to features."""

    @abc.abstractmethod
    def forward(self, video: ImageOrVideoData) -> FeatureExtractorOutput:
        """Extract features from images (B, C, H, W) or videos (B, T, C, H, W)."""


class ImageFeatureExtractor(FeatureExtractor):
    """A feature extractor that looks at every frame on its own."""

    @abc.abstractmethod
    def forward_images(self, images: ImageData) -> ForwardOutput:
        """Extract features from images.

        Args:
            images: (B, C, H, W); the frames of videos arrive here as one large batch.

        Returns:
            Features (B, N, D); or features and positions (N, 2); or both and a dict of further results.
        """

    def forward(self, video: ImageOrVideoData) -> FeatureExtractorOutput:
        """Extract features from images (B, C, H, W) or videos (B, T, C, H, W).

        Raises:
            ValueError: If the input is neither.
        """
        if video.dim() not in (4, 5):
            raise ValueError(
                f"Expected images (B, C, H, W) or videos (B, T, C, H, W), but the input has shape {tuple(video.shape)}."
            )
        output = self.forward_images(video.flatten(0, -4))
        output = (output, None) if isinstance(output, Tensor) else output
        if len(output) not in (2, 3):
            raise RuntimeError(
                "forward_images has to return features, (features, positions) or (features, positions, "
                f"auxiliary features), not {len(output)} values."
            )
        features, positions, aux = (*output, None)[:3]

        def unfold(value):
            return value.unflatten(0, video.shape[:2]) if isinstance(value, Tensor) and value.dim() else value

        if video.dim() == 5:
            features, aux = unfold(features), map_tree(aux, unfold)
        return FeatureExtractorOutput(features, positions, aux)
