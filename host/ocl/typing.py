"""Names and containers for what modules hand to each other."""

import dataclasses
from collections.abc import Iterator
from typing import Any, Optional

import torch

ImageData = torch.Tensor  # (B, C, H, W)
VideoData = torch.Tensor  # (B, T, C, H, W)
ImageOrVideoData = torch.Tensor
TextData = torch.Tensor

CNNImageFeatures = torch.Tensor  # (B, D, H, W)
TransformerImageFeatures = torch.Tensor  # (B, N, D)
ImageFeatures = torch.Tensor  # (B, N, D)
VideoFeatures = torch.Tensor  # (B, T, N, D)
ImageOrVideoFeatures = torch.Tensor
Positions = torch.Tensor  # (N, 2)
PooledFeatures = torch.Tensor  # (B, D)

ObjectFeatures = torch.Tensor  # (B, K, D)
EmptyIndicator = torch.Tensor  # (B, K)
ObjectFeatureAttributions = torch.Tensor  # (B, K, N)
ConditioningOutput = torch.Tensor  # (B, K, D)


@dataclasses.dataclass
class FrameFeatures:
    """Features of one image or of one frame.

    Attributes:
        features: (B, N, D).
        positions: (N, 2) in [0, 1], row before column, or None where features have no place.
    """

    features: ImageFeatures
    positions: Optional[Positions]


@dataclasses.dataclass
class FeatureExtractorOutput:
    """Features of images or videos; iterating yields one `FrameFeatures` per frame.

    Attributes:
        features: (B, N, D) for images, (B, T, N, D) for videos.
        positions: (N, 2) in [0, 1], row before column, or None where features have no place.
        aux_features: Further results of the extractor by name.
    """

    features: ImageOrVideoFeatures
    positions: Optional[Positions]
    aux_features: Optional[dict[str, Any]] = None

    def __iter__(self) -> Iterator[FrameFeatures]:
        frames = self.features.unbind(1) if self.features.dim() == 4 else (self.features,)
        return (FrameFeatures(frame, self.positions) for frame in frames)


@dataclasses.dataclass
class PerceptualGroupingOutput:
    """Objects found in features.

    Attributes:
        objects: (B, K, D).
        is_empty: (B, K), true or 1 where a slot holds no object.
        feature_attributions: (B, K, N), how much of each feature belongs to each object.
    """

    objects: ObjectFeatures
    is_empty: Optional[EmptyIndicator] = None
    feature_attributions: Optional[ObjectFeatureAttributions] = None
