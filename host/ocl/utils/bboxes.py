"""Formats of boxes."""

import torch
from torch import Tensor


def box_cxcywh_to_xyxy(x: Tensor) -> Tensor:
    """Convert centres and sizes (..., 4) to the corners x1, y1, x2, y2."""
    centre, half = x[..., :2], x[..., 2:] / 2
    return torch.cat([centre - half, centre + half], dim=-1)


def box_xyxy_to_cxcywh(x: Tensor) -> Tensor:
    """Convert the corners x1, y1, x2, y2 (..., 4) to centres and sizes."""
    first, last = x[..., :2], x[..., 2:]
    return torch.cat([(first + last) / 2, last - first], dim=-1)
