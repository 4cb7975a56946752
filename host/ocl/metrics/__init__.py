"""Metrics."""

from ocl.metrics.masks import (
    ARIMetric,
    AverageBestOverlapMetric,
    BestOverlapObjectRecoveryMetric,
    MaskCorLocMetric,
    PatchARIMetric,
    UnsupervisedMaskIoUMetric,
)
from ocl.metrics.means import TensorStatistic

__all__ = [
    "ARIMetric",
    "AverageBestOverlapMetric",
    "BestOverlapObjectRecoveryMetric",
    "MaskCorLocMetric",
    "PatchARIMetric",
    "TensorStatistic",
    "UnsupervisedMaskIoUMetric",
]
