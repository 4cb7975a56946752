"""The VQ-VAE that guides object-centric learning: SLATE's convolutions around a quantiser, over an image pyramid."""

from dataclasses import dataclass
from typing import Dict, List, Sequence, Tuple, cast

import torch
from torch import nn
from torch.nn import functional as F

from ocl_msf.activations import Mish
from ocl_msf.pyramid import ImagePyramid, check_divisible
from ocl_msf.quantization import Quantizer, QuantizerOutput


class ConvBlock(nn.Sequential):
    """Convolution, GroupNorm with one group, Mish (section 3.4)."""

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int, stride: int = 1):
        super().__init__(
            nn.Conv2d(in_channels, out_channels, kernel_size, stride, (kernel_size - stride + 1) // 2),
            nn.GroupNorm(1, out_channels),
            Mish(),
        )


class Encoder(nn.Sequential):
    """SLATE's encoder: 4x4 patches with stride 4, then 1x1 convolutions: (b, 3, h, w) -> (b, dim, h/4, w/4).

    Args:
        dim: channels at the bottleneck (256 for SLATE and STEVE, 4 for SlotDiffusion).
        hidden_dim: channels before it.
        image_channels: channels of the image.

    Attributes:
        stride: pixels of the image per super-pixel, along each side.
    """

    stride = 4

    def __init__(self, dim: int = 256, hidden_dim: int = 64, image_channels: int = 3):
        super().__init__(
            ConvBlock(image_channels, hidden_dim, self.stride, self.stride),  # (b, hidden_dim, h/4, w/4)
            *(ConvBlock(hidden_dim, hidden_dim, 1) for _ in range(6)),  # (b, hidden_dim, h/4, w/4)
            nn.Conv2d(hidden_dim, dim, 1),  # (b, dim, h/4, w/4)
        )


class Decoder(nn.Sequential):
    """SLATE's decoder: two pixel-shuffle stages: (b, dim, h, w) -> (b, 3, 4h, 4w). Arguments as for Encoder."""

    def __init__(self, dim: int = 256, hidden_dim: int = 64, image_channels: int = 3):
        super().__init__(
            ConvBlock(dim, hidden_dim, 1),  # (b, hidden_dim, h, w)
            *self._upsampling(hidden_dim),  # (b, hidden_dim, 2h, 2w)
            *self._upsampling(hidden_dim),  # (b, hidden_dim, 4h, 4w)
            nn.Conv2d(hidden_dim, image_channels, 1),  # (b, image_channels, 4h, 4w)
        )

    def forward(self, input: torch.Tensor) -> torch.Tensor:  # noqa: A002  as in torch
        """See the class; the last convolution comes before the last shuffle, which then moves few channels."""
        *layers, shuffle, last = self
        output = cast(nn.Conv2d, last)
        for layer in layers:
            input = layer(input)  # (b, hidden_dim * 4, 2h, 2w) in the end  # noqa: A001
        weight = torch.kron(output.weight.flatten(1), torch.eye(4).to(output.weight))  # (c * 4, hidden_dim * 4)
        return shuffle(F.conv2d(input, weight[..., None, None], cast(torch.Tensor, output.bias).repeat_interleave(4)))

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
    """Output of the VAE; tuples run over scales, the finest first.

    Attributes:
        pyramid: T_n (b, c, h_n, w_n), the targets of the reconstructions.
        reconstructions: T'_n (b, c, h_n, w_n).
        encodings: Z_n (b, d, h_n/4, w_n/4).
        quantized: X_n (b, d, h_n/4, w_n/4).
        indices: (b, g, h_n/4, w_n/4), int64.
        codebook_loss: scalar, see QuantizerOutput.
        commitment_loss: scalar, see QuantizerOutput.
        utilization_loss: scalar, see QuantizerOutput.
        diagnostics: see QuantizerOutput.
    """

    pyramid: Tuple[torch.Tensor, ...]
    reconstructions: Tuple[torch.Tensor, ...]
    encodings: Tuple[torch.Tensor, ...]
    quantized: Tuple[torch.Tensor, ...]
    indices: Tuple[torch.Tensor, ...]
    codebook_loss: torch.Tensor
    commitment_loss: torch.Tensor
    utilization_loss: torch.Tensor
    diagnostics: Dict[str, Tuple[torch.Tensor, ...]]


class VQVAE(nn.Module):
    """VQ-VAE over an image pyramid with one encoder and one decoder shared by all scales (sections 3.2 and 3.3).

    Args:
        encoder: image (b, c, h, w) -> map (b, d, h/stride, w/stride); has an attribute `stride`.
        decoder: map -> image.
        quantizer: a Quantizer.
        num_scales: N; 1 is the plain VQ-VAE.
        variant: name of this composition; it is saved in the state dict, and loading the state dict of another
            variant is an error that names both.
        normalize: whether the decoder sees X_n normalised by mean and variance over h, w and c (GDR). It is saved in
            the state dict, and that of a loaded one counts.
    """

    def __init__(
        self,
        encoder: nn.Module,
        decoder: nn.Module,
        quantizer: Quantizer,
        num_scales: int = 3,
        variant: str = "msf",
        normalize: bool = False,
    ):
        super().__init__()
        self.pyramid = ImagePyramid(num_scales)
        self.encoder = encoder
        self.decoder = decoder
        self.quantizer = quantizer
        self.variant = variant
        self.normalize = normalize

    def forward(self, image: torch.Tensor) -> VQVAEOutput:
        """Reconstruct an image at every scale.

        Args:
            image: (b, c, h, w) in [-1, 1].

        Raises:
            ValueError: a side is not divisible by stride * 2^(N-1).
        """
        pyramid = self._downsample(image)  # N x (b, c, h_n, w_n)
        encodings = self._encode(pyramid)  # N x (b, d, h_n/4, w_n/4)
        codes = self.quantizer(encodings)  # N x (b, d, h_n/4, w_n/4)
        return VQVAEOutput(
            pyramid=tuple(pyramid),
            reconstructions=self.decode(codes.quantized),  # N x (b, c, h_n, w_n)
            encodings=tuple(encodings),
            quantized=codes.quantized,
            indices=codes.indices,
            codebook_loss=codes.codebook_loss,
            commitment_loss=codes.commitment_loss,
            utilization_loss=codes.utilization_loss,
            diagnostics=codes.diagnostics,
        )

    def encode(self, image: torch.Tensor) -> QuantizerOutput:
        """Quantise an image (b, c, h, w) in [-1, 1] at every scale; raises like `forward`."""
        return self.quantizer(self.encode_features(image))

    def encode_features(self, image: torch.Tensor) -> List[torch.Tensor]:
        """Features Z_n (b, d, h_n/4, w_n/4) of an image at every scale, not quantised; arguments as for `encode`."""
        return self._encode(self._downsample(image))

    def decode(self, quantized: Sequence[torch.Tensor]) -> Tuple[torch.Tensor, ...]:
        """Decode quantised maps (b, d, h, w) of any scales into images (b, c, 4h, 4w)."""
        if self.normalize:
            quantized = [F.layer_norm(x, x.shape[1:]) for x in quantized]
        return tuple(self.decoder(x) for x in quantized)

    def _downsample(self, image: torch.Tensor) -> List[torch.Tensor]:
        (height, width), scales = image.shape[-2:], self.pyramid.num_scales
        divisor = self.encoder.stride * 2 ** (scales - 1)
        check_divisible(height, width, divisor, f"{self.encoder.stride}-pixel patches at {scales} scales")
        return self.pyramid(image.contiguous(memory_format=torch.channels_last))

    def _encode(self, pyramid: List[torch.Tensor]) -> List[torch.Tensor]:
        return [self.encoder(image) for image in pyramid]

    def get_extra_state(self) -> dict:
        """Save the variant, and what else a checkpoint was trained with, in the state dict."""
        relative = any(book.relative_confidence for book in self.quantizer.list_codebooks())
        return {"variant": self.variant, "normalize": self.normalize, "relative_confidence": relative}

    def set_extra_state(self, state: dict) -> None:
        """Check the variant in the state dict, and take over how it was trained; earlier versions say the variant only.

        Raises:
            ValueError: the weights are of another variant.
        """
        if state["variant"] != self.variant:
            raise ValueError(
                f"These weights are of a VAE of variant '{state['variant']}', but this experiment builds variant "
                f"'{self.variant}'. Add msf/variant={state['variant']}, or choose another checkpoint."
            )
        self.normalize = state.get("normalize", False)
        for book in self.quantizer.list_codebooks():
            book.relative_confidence = state.get("relative_confidence", False)
