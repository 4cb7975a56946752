"""Whole models, for those who do not put them together by config."""

from ocl.models.savi import SAVi

__all__ = ["SAVi"]
