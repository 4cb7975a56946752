"""The VQ-VAE that guides object-centric learning: SLATE's convolutions around a quantiser, over an image pyramid."""

from dataclasses import dataclass
from typing import Dict, List, Sequence, Tuple

import torch
from torch import nn

from ocl_msf.pyramid import ImagePyramid, check_divisible
from ocl_msf.quantization import Quantizer, QuantizerOutput


class ConvBlock(nn.Sequential):
    """Convolution, GroupNorm with one group, Mish (section 3.4)."""

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int, stride: int = 1):
        super().__init__(
            nn.Conv2d(in_channels, out_channels, kernel_size, stride, (kernel_size - stride + 1) // 2),
            nn.GroupNorm(1, out_channels),
            nn.Mish(),
        )


class Encoder(nn.Sequential):
    """SLATE's encoder: 4x4 patches with stride 4, then 1x1 convolutions: (b, 3, h, w) -> (b, dim, h/4, w/4).

    Args:
        dim: channels at the bottleneck (256 for SLATE and STEVE, 4 for SlotDiffusion).
        hidden_dim: channels before it.
        image_channels: channels of the image.
    """

    stride = 4

    def __init__(self, dim: int = 256, hidden_dim: int = 64, image_channels: int = 3):
        super().__init__(
            ConvBlock(image_channels, hidden_dim, self.stride, self.stride),
            *(ConvBlock(hidden_dim, hidden_dim, 1) for _ in range(6)),
            nn.Conv2d(hidden_dim, dim, 1),
        )


class Decoder(nn.Sequential):
    """SLATE's decoder: two pixel-shuffle stages: (b, dim, h, w) -> (b, 3, 4h, 4w). Arguments as for Encoder."""

    def __init__(self, dim: int = 256, hidden_dim: int = 64, image_channels: int = 3):
        super().__init__(
            ConvBlock(dim, hidden_dim, 1),
            *self._upsampling(hidden_dim),
            *self._upsampling(hidden_dim),
            nn.Conv2d(hidden_dim, image_channels, 1),
        )

    @staticmethod
    def _upsampling(channels: int) -> List[nn.Module]:
        return [
            ConvBlock(channels, channels, 3),
            ConvBlock(channels, channels, 1),
            ConvBlock(channels, channels, 1),
            ConvBlock(channels, channels * 4, 1),
            nn.PixelShuffle(2),
        ]


@dataclass
class VQVAEOutput:
    """Tuples run over scales, the finest first.

    Attributes:
        pyramid: T_n (b, c, h_n, w_n), what is to be reconstructed.
        reconstructions: T'_n, the same shapes.
        quantized: X_n (b, d, h_n/4, w_n/4).
        indices: (b, g, h_n/4, w_n/4), int64.
        codebook_loss: scalar, see QuantizerOutput.
        commitment_loss: scalar, see QuantizerOutput.
        readouts: see QuantizerOutput.
    """

    pyramid: Tuple[torch.Tensor, ...]
    reconstructions: Tuple[torch.Tensor, ...]
    quantized: Tuple[torch.Tensor, ...]
    indices: Tuple[torch.Tensor, ...]
    codebook_loss: torch.Tensor
    commitment_loss: torch.Tensor
    readouts: Dict[str, Tuple[torch.Tensor, ...]]


class VQVAE(nn.Module):
    """VQ-VAE over an image pyramid with one encoder and one decoder shared by all scales (sections 3.2 and 3.3).

    Args:
        encoder: image (b, c, h, w) -> map (b, d, h/stride, w/stride); has an attribute `stride`.
        decoder: map -> image.
        quantizer: a Quantizer.
        num_scales: N; 1 is the plain VQ-VAE.
        variant: name of this composition; it travels in the state dict, and loading a state dict of another
            variant is an error that names both.
    """

    def __init__(
        self, encoder: nn.Module, decoder: nn.Module, quantizer: Quantizer, num_scales: int = 3, variant: str = "msf"
    ):
        super().__init__()
        self.pyramid = ImagePyramid(num_scales)
        self.encoder = encoder
        self.decoder = decoder
        self.quantizer = quantizer
        self.variant = variant

    def forward(self, image: torch.Tensor) -> VQVAEOutput:
        """Reconstruct an image (b, c, h, w), values in [-1, 1], at every scale.

        Raises:
            ValueError: a side is not divisible by stride * 2^(N-1).
        """
        pyramid = self._downsample(image)
        codes = self._quantize(pyramid)
        return VQVAEOutput(
            pyramid=tuple(pyramid),
            reconstructions=self.decode(codes.quantized),
            quantized=codes.quantized,
            indices=codes.indices,
            codebook_loss=codes.codebook_loss,
            commitment_loss=codes.commitment_loss,
            readouts=codes.readouts,
        )

    def encode(self, image: torch.Tensor) -> QuantizerOutput:
        """Image (b, c, h, w) -> codes of every scale."""
        return self._quantize(self._downsample(image))

    def decode(self, quantized: Sequence[torch.Tensor]) -> Tuple[torch.Tensor, ...]:
        """Maps X_n (b, d, h, w) of any scales -> images (b, c, 4h, 4w)."""
        return tuple(self.decoder(x) for x in quantized)

    def _downsample(self, image: torch.Tensor) -> List[torch.Tensor]:
        scales = self.pyramid.num_scales
        divisor = self.encoder.stride * 2 ** (scales - 1)
        check_divisible(*image.shape[-2:], divisor, f"{self.encoder.stride}-pixel patches at {scales} scales")
        return self.pyramid(image)

    def _quantize(self, pyramid: List[torch.Tensor]) -> QuantizerOutput:
        return self.quantizer([self.encoder(image) for image in pyramid])

    def get_extra_state(self) -> dict:
        """Put the variant into the state dict."""
        return {"variant": self.variant}

    def set_extra_state(self, state: dict) -> None:
        """Refuse the weights of another variant."""
        if state["variant"] != self.variant:
            raise ValueError(
                f"These weights are of a VAE of variant '{state['variant']}', but this experiment builds variant "
                f"'{self.variant}'. Add msf/variant={state['variant']}, or choose another checkpoint."
            )
