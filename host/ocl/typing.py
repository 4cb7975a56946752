"""Names and containers for what modules hand to each other."""

import dataclasses
from collections.abc import Iterator
from typing import Any, Optional

from torch import Tensor

ImageData = Tensor  # (B, C, H, W)
VideoData = Tensor  # (B, T, C, H, W)
ImageOrVideoData = TextData = Tensor

CNNImageFeatures = Tensor  # (B, D, H, W)
TransformerImageFeatures = ImageFeatures = Tensor  # (B, N, D)
VideoFeatures = Tensor  # (B, T, N, D)
ImageOrVideoFeatures = Tensor
Positions = Tensor  # (N, 2)
PooledFeatures = Tensor  # (B, D)

ObjectFeatures = ConditioningOutput = Tensor  # (B, K, D)
EmptyIndicator = Tensor  # (B, K)
ObjectFeatureAttributions = Tensor  # (B, K, N)


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
