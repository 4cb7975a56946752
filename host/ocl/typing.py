"""Names and containers for what modules hand to each other."""

import dataclasses
from collections.abc import Iterator
from typing import Any, Optional

from torch import Tensor

# Of images (B, C, H, W), of videos (B, T, C, H, W), of either, and of text.
ImageData = VideoData = ImageOrVideoData = TextData = Tensor
# (B, D, H, W) of CNNs, (B, N, D) of transformers and of images in general, (B, T, N, D) of videos, and either.
CNNImageFeatures = TransformerImageFeatures = ImageFeatures = VideoFeatures = ImageOrVideoFeatures = Tensor
Positions = PooledFeatures = Tensor  # (N, 2) and (B, D)
# (B, K, D), (B, K), (B, K, N) and (B, K, D)
ObjectFeatures = EmptyIndicator = ObjectFeatureAttributions = ConditioningOutput = Tensor


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
