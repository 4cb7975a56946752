"""Modules that turn images and videos into sets of features."""

from ocl.feature_extractors.misc import DVAEFeatureExtractor, SAViFeatureExtractor, SlotAttentionFeatureExtractor
from ocl.feature_extractors.utils import FeatureExtractor, ImageFeatureExtractor

__all__ = [
    "ClipImageModel",
    "ClipTextModel",
    "DVAEFeatureExtractor",
    "FeatureExtractor",
    "ImageFeatureExtractor",
    "SAViFeatureExtractor",
    "SlotAttentionFeatureExtractor",
    "TimmFeatureExtractor",
]


def __getattr__(name: str) -> type:
    if name == "TimmFeatureExtractor":
        from ocl.feature_extractors.timm import TimmFeatureExtractor  # timm is an optional dependency

        return TimmFeatureExtractor
    if name in ("ClipImageModel", "ClipTextModel"):
        from ocl.feature_extractors import clip

        return getattr(clip, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
