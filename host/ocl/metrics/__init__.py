"""Metrics."""

from ocl.metrics.bbox import BboxCorLocMetric, BboxRecallMetric, UnsupervisedBboxIoUMetric
from ocl.metrics.dataset import DatasetSemanticMaskIoUMetric, SklearnClustering
from ocl.metrics.masks import (
    ARIMetric,
    AverageBestOverlapMetric,
    BestOverlapObjectRecoveryMetric,
    MaskCorLocMetric,
    PatchARIMetric,
    UnsupervisedMaskIoUMetric,
)
from ocl.metrics.means import TensorStatistic
from ocl.metrics.tracking import MOTMetric

__all__ = [
    "ARIMetric",
    "AverageBestOverlapMetric",
    "BboxCorLocMetric",
    "BboxRecallMetric",
    "BestOverlapObjectRecoveryMetric",
    "DatasetSemanticMaskIoUMetric",
    "MOTMetric",
    "MaskCorLocMetric",
    "PatchARIMetric",
    "SklearnClustering",
    "TensorStatistic",
    "UnsupervisedBboxIoUMetric",
    "UnsupervisedMaskIoUMetric",
]
