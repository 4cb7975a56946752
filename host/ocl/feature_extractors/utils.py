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
    """Return (h, w, 2) coordinates, row before column, each running from 0 to 1."""
    axes = (torch.linspace(0, 1, size, device=device) for size in (height, width))
    return torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1)


def cnn_compute_positions_and_flatten(features: Tensor) -> tuple[Tensor, Tensor]:
    """Flatten feature maps row by row.

    Args:
        features: (b, d, h, w).

    Returns:
        Features (b, h*w, d) and their positions (h*w, 2) in [0, 1].
    """
    height, width = features.shape[-2:]
    positions = grid_positions(height, width, features.device)
    return features.flatten(2).transpose(1, 2), positions.flatten(0, 1)


def transformer_compute_positions(features: Tensor) -> Tensor:
    """Return the positions (n, 2) in [0, 1] of tokens (b, n, d) that cover a square grid row by row.

    Raises:
        ValueError: if the number of tokens is not a square.
    """
    side = square_side(features.shape[1])
    return grid_positions(side, side, features.device).flatten(0, 1)


class FeatureExtractor(nn.Module, abc.ABC):
    """A module from images or videos to features."""

    @abc.abstractmethod
    def forward(self, video: ImageOrVideoData) -> FeatureExtractorOutput:
        """Extract features from images (b, c, h, w) or videos (b, t, c, h, w)."""


class ImageFeatureExtractor(FeatureExtractor):
    """A feature extractor that looks at every frame on its own."""

    @abc.abstractmethod
    def forward_images(self, images: ImageData) -> ForwardOutput:
        """Extract features from images.

        Args:
            images: (b, c, h, w); the frames of videos arrive here as one large batch.

        Returns:
            Features (b, n, d); or features and positions (n, 2); or both and a dict of further results.
        """

    def forward(self, video: ImageOrVideoData) -> FeatureExtractorOutput:
        """Extract features from images (b, c, h, w) or videos (b, t, c, h, w).

        Raises:
            ValueError: if the input is neither.
        """
        if video.dim() not in (4, 5):
            raise ValueError(
                f"Expected images (b, c, h, w) or videos (b, t, c, h, w), but the input has shape {tuple(video.shape)}."
            )
        output = self.forward_images(video.flatten(0, -4))
        output = (output, None) if isinstance(output, Tensor) else output
        if len(output) not in (2, 3):
            raise RuntimeError(
                "forward_images has to return features, (features, positions) or (features, positions, "
                f"auxiliary features), not {len(output)} values."
            )
        features, positions, aux = (*output, None)[:3]

        def unfold(value: Any) -> Any:
            return value.unflatten(0, video.shape[:2]) if isinstance(value, Tensor) and value.dim() else value

        if video.dim() == 5:
            features, aux = unfold(features), map_tree(aux, unfold)
        return FeatureExtractorOutput(features, positions, aux)
