"""Metrics that diagnose a training."""

from ocl.metrics.means import TensorStatistic

__all__ = ["TensorStatistic"]
