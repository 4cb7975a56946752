"""Metrics."""

from ocl.metrics.diagnosis import TensorStatistic
from ocl.metrics.masks import (
    ARIMetric,
    AverageBestOverlapMetric,
    BestOverlapObjectRecoveryMetric,
    MaskCorLocMetric,
    PatchARIMetric,
    UnsupervisedMaskIoUMetric,
)

__all__ = [
    "ARIMetric",
    "AverageBestOverlapMetric",
    "BestOverlapObjectRecoveryMetric",
    "MaskCorLocMetric",
    "PatchARIMetric",
    "TensorStatistic",
    "UnsupervisedMaskIoUMetric",
]
