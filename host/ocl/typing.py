"""Names and containers for what modules hand to each other."""

import dataclasses
from collections.abc import Iterator
from typing import Any, Optional

from torch import Tensor

ImageData = Tensor  # (b, c, h, w)
VideoData = Tensor  # (b, t, c, h, w)
ImageOrVideoData = Tensor
TextData = Tensor

CNNImageFeatures = Tensor  # (b, d, h, w)
TransformerImageFeatures = Tensor  # (b, n, d)
ImageFeatures = Tensor  # (b, n, d)
VideoFeatures = Tensor  # (b, t, n, d)
ImageOrVideoFeatures = Tensor
Positions = Tensor  # (n, 2)
PooledFeatures = Tensor  # (b, d)

ObjectFeatures = Tensor  # (b, k, d)
ConditioningOutput = Tensor  # (b, k, d)
EmptyIndicator = Tensor  # (b, k)
ObjectFeatureAttributions = Tensor  # (b, k, n)


@dataclasses.dataclass
class FrameFeatures:
    """Features of one image or of one frame.

    Attributes:
        features: (b, n, d).
        positions: (n, 2) in [0, 1], row before column, or None where features have no place.
    """

    features: ImageFeatures
    positions: Optional[Positions]


@dataclasses.dataclass
class FeatureExtractorOutput:
    """Features of images or videos; iterating yields one `FrameFeatures` per frame.

    Attributes:
        features: (b, n, d) for images, (b, t, n, d) for videos.
        positions: (n, 2) in [0, 1], row before column, or None where features have no place.
        aux_features: further results of the extractor by name.
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
        objects: (b, k, d).
        is_empty: (b, k), true or 1 where a slot holds no object.
        feature_attributions: (b, k, n), how much of each feature belongs to each object.
    """

    objects: ObjectFeatures
    is_empty: Optional[EmptyIndicator] = None
    feature_attributions: Optional[ObjectFeatureAttributions] = None
