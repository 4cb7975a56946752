"""Primary encoders: image -> features for slot attention."""

from typing import Tuple

import torch
from torch import nn

from ocl_msf._host import require_host

with require_host():
    from ocl.feature_extractors.utils import ImageFeatureExtractor, cnn_compute_positions_and_flatten


class NaiveCNN(ImageFeatureExtractor):
    """Four 5x5 convolutions: features at the resolution of the image (section A.3).

    Args:
        feature_dim: channels of every layer.
        num_layers: number of convolutions.
        stride: of the first convolution; 1 in the paper, more for features on a coarser grid at less cost.
    """

    def __init__(self, feature_dim: int = 64, num_layers: int = 4, stride: int = 1):
        super().__init__()
        self._feature_dim = feature_dim
        channels = [3] + [feature_dim] * num_layers
        layers = [
            layer for i, o in zip(channels, channels[1:]) for layer in (nn.Conv2d(i, o, 5, padding=2), nn.ReLU())
        ]
        layers[0].stride = (stride, stride)
        self.layers = nn.Sequential(*layers)
        for layer in layers[::2]:  # He's initialisation: else four layers shrink the image's part below the position's
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
            nn.init.zeros_(layer.bias)

    @property
    def feature_dim(self) -> int:
        """Channels of the features."""
        return self._feature_dim

    def forward_images(self, images: torch.Tensor) -> Tuple[torch.Tensor, torch.Tensor]:
        """(b, 3, h, w) -> features (b, n, feature_dim) and their positions (n, 2), n = h*w / stride^2."""
        return cnn_compute_positions_and_flatten(self.layers(images))
