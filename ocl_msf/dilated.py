"""Layers of a small encoder that sees far and tells the parts of an image apart."""

from typing import Any, Sequence

import torch
from torch import nn
from torch.nn import functional as F


class DilatedBlock(nn.Module):
    """x + a dilated 3x3 convolution of ReLU(x), replicating the border: (b, d, h, w) -> the same shape.

    With zeros around it, features would know how far the border is, and slots would divide places among themselves.
    """

    def __init__(self, dim: int, dilation: int):
        super().__init__()
        padding: Any = dict(padding=dilation, padding_mode="replicate")
        self.convolution = nn.Conv2d(dim, dim, 3, dilation=dilation, **padding)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """See the class."""
        return x + self.convolution(F.relu(x))


class Contrast(nn.Module):
    """Stress how features differ within an image: half of x plus x normalised over the image, (b, d, h, w) each.

    Slots that start from features which differ more between images than within one share images out among themselves,
    instead of the parts of an image. Half of x still says what the image's own colours are.
    """

    def __init__(self, dim: int):
        super().__init__()
        self.norm = nn.InstanceNorm2d(dim, eps=1e-4, affine=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """See the class."""
        return 0.5 * x + self.norm(x)


def dilated_layers(dim: int, dilations: Sequence[int]) -> nn.Sequential:
    """Images (b, 3, h, w) -> maps (b, dim, h / 4, w / 4); see `ocl_msf.feature_extractors.NaiveCNN`."""
    border: Any = dict(stride=2, padding_mode="replicate")
    return nn.Sequential(
        nn.Conv2d(3, dim // 2, 5, padding=2, **border),
        nn.ReLU(),
        nn.Conv2d(dim // 2, dim, 3, padding=1, **border),
        *(DilatedBlock(dim, dilation) for dilation in dilations),
        Contrast(dim),
    )
