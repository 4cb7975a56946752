"""Convolutional feature extractors of slot attention, SAVi and SLATE."""

from typing import Union

from torch import nn
from torch.nn import functional as F

from ocl.feature_extractors.utils import ForwardOutput, ImageFeatureExtractor, cnn_compute_positions_and_flatten
from ocl.scheduling import HPScheduler
from ocl.typing import ImageData


class SlotAttentionFeatureExtractor(ImageFeatureExtractor):
    """The encoder of slot attention (Locatello et al., 2020, appendix E) at full resolution."""

    feature_dim = 64

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for in_channels in (3, 64, 64, 64):
            layers += [nn.Conv2d(in_channels, 64, kernel_size=5, padding=2), nn.ReLU(inplace=True)]
        self.layers = nn.Sequential(*layers)

    def forward_images(self, images: ImageData) -> ForwardOutput:
        """Turn images (b, 3, h, w) into features (b, h*w, 64) with positions (h*w, 2)."""
        return cnn_compute_positions_and_flatten(self.layers(images))


class SAViFeatureExtractor(ImageFeatureExtractor):
    """The encoder of SAVi (Kipf et al., 2022).

    Args:
        larger_input_arch: use the variant for 128x128 frames: 64 instead of 32 channels, half the resolution.
    """

    def __init__(self, larger_input_arch: bool = False):
        super().__init__()
        self.feature_dim = channels = 64 if larger_input_arch else 32
        if larger_input_arch:
            # With stride 2, "same" padding puts the odd row and column at the end.
            layers: list[nn.Module] = [nn.ZeroPad2d((1, 2, 1, 2)), nn.Conv2d(3, channels, kernel_size=5, stride=2)]
        else:
            layers = [nn.Conv2d(3, channels, kernel_size=5, padding=2)]
        for _ in range(3):
            layers += [nn.ReLU(inplace=True), nn.Conv2d(channels, channels, kernel_size=5, padding=2)]
        self.layers = nn.Sequential(*layers)

    def forward_images(self, images: ImageData) -> ForwardOutput:
        """Turn images (b, 3, h, w) into features (b, n, d) with positions (n, 2)."""
        return cnn_compute_positions_and_flatten(self.layers(images))


class DVAEFeatureExtractor(ImageFeatureExtractor):
    """The discrete tokens of SLATE (Singh et al., 2022) as features.

    Args:
        encoder: maps images to logits (b, m, h', w') over m codes.
        positional_encoder: adds positions to the embeddings (b, 1+n, d).
        dictionary: embeds one-hot tokens (..., m+1); entry 0 is the begin-of-sequence token.
        tau: temperature of the Gumbel softmax.
        hard: draw one-hot samples with straight-through gradients for the dVAE's decoder.
    """

    def __init__(
        self,
        encoder: nn.Module,
        positional_encoder: nn.Module,
        dictionary: nn.Module,
        tau: Union[float, HPScheduler] = 1.0,
        hard: bool = False,
    ):
        super().__init__()
        self.encoder, self.dictionary, self.positional_encoder = encoder, dictionary, positional_encoder
        self.tau, self.hard = tau, hard

    def forward_images(self, images: ImageData) -> ForwardOutput:
        """Sample tokens of images (b, 3, h, w).

        Returns:
            Embedded tokens (b, n, d), no positions, and a dict with the relaxed sample `z` (b, m, h', w'), an
            independent one-hot sample `z_hard` (b, n, m), and `targets` (b, n, d), the embeddings shifted
            by one behind the begin-of-sequence token.
        """
        tau = float(self.tau)
        logits = F.log_softmax(self.encoder(images), dim=1)
        z = F.gumbel_softmax(logits, tau, self.hard, dim=1)
        z_hard = F.gumbel_softmax(logits.detach(), tau, hard=True, dim=1).flatten(2).transpose(1, 2)

        tokens = F.pad(z_hard, (1, 0, 1, 0))  # one more code and one more position, both at the front
        tokens[:, 0, 0] = 1.0
        embeddings = self.positional_encoder(self.dictionary(tokens))
        return embeddings[:, 1:], None, {"z": z, "z_hard": z_hard, "targets": embeddings[:, :-1]}
