"""Convolutional networks of published models."""

from torch import Tensor, nn
from torch.nn import functional as F

from ocl.neural_networks.slate import Conv2dBlockWithGroupNorm as Block


def _upsampler(in_channels: int, channels: int, strides: list[int], out_channels: int, last_kernel: int) -> nn.Module:
    """Build transposed 5x5 convolutions with these strides, and a last one without ReLU."""
    layers: list[nn.Module] = []
    for stride in strides:
        upsample = nn.ConvTranspose2d(in_channels, channels, 5, stride, padding=2, output_padding=stride - 1)
        layers += [upsample, nn.ReLU(inplace=True)]
        in_channels = channels
    return nn.Sequential(*layers, nn.ConvTranspose2d(channels, out_channels, last_kernel, padding=last_kernel // 2))


def get_slotattention_decoder_backbone(object_dim: int, output_dim: int = 4) -> nn.Module:
    """Build the decoder of slot attention (Locatello et al., 2020), from 8x8 to 128x128."""
    return _upsampler(object_dim, 64, [2, 2, 2, 2, 1], output_dim, last_kernel=3)


def get_savi_decoder_backbone(
    object_dim: int, output_dim: int = 4, larger_input_arch: bool = False, channel_multiplier: float = 1
) -> nn.Module:
    """Build the decoder of SAVi (Kipf et al., 2022), from 8x8 to 64x64, or 128x128 for larger inputs."""
    strides = [2, 2, 2, 2 if larger_input_arch else 1]
    return _upsampler(object_dim, int(64 * channel_multiplier), strides, output_dim, last_kernel=1)


def get_dvae_encoder(vocab_size: int, patch_size: int = 16, output_dim: int = 3) -> nn.Module:
    """Build the dVAE encoder of SLATE from images with `output_dim` channels to logits (b, m, h', w')."""
    patches = Block(output_dim, 64, patch_size, stride=patch_size)
    return nn.Sequential(patches, *(Block(64, 64, 1) for _ in range(6)), nn.Conv2d(64, vocab_size, 1))


def get_dvae_decoder(vocab_size: int, output_dim: int = 3) -> nn.Module:
    """Build the dVAE decoder of SLATE from codes (b, m, h', w') to images (b, output_dim, 4h', 4w')."""
    layers: list[nn.Module] = [Block(vocab_size, 64, 1)]
    for _ in range(2):
        layers += [Block(64, 64, 3, padding=1), Block(64, 64, 1), Block(64, 64, 1), Block(64, 256, 1)]
        layers += [nn.PixelShuffle(2)]
    return nn.Sequential(*layers, nn.Conv2d(64, output_dim, 1))


class StyleGANv2Decoder(nn.Module):
    """Convolutions that double the size of maps, with an image that every size adds to (Karras et al., 2020).

    Args:
        object_feature_dim: channels d of the input; every doubling halves them.
        output_dim: channels of the output.
        min_features: least number of channels.
        input_size: side s of the input, a power of 2.
        output_size: side of the output, a power of 2.
        activation_fn: `relu` or `leaky_relu`.
        leaky_relu_slope: slope of the latter below 0.

    Raises:
        ValueError: if a size is no power of 2, or the activation is another one.
    """

    def __init__(
        self,
        object_feature_dim: int,
        output_dim: int = 4,
        min_features: int = 32,
        input_size: int = 8,
        output_size: int = 128,
        activation_fn: str = "leaky_relu",
        leaky_relu_slope: float = 0.2,
    ):
        super().__init__()
        if not all(size > 0 and size & (size - 1) == 0 for size in (input_size, output_size)):
            raise ValueError(f"The sizes of input and output have to be powers of 2, not {input_size}, {output_size}.")
        if activation_fn not in ("relu", "leaky_relu"):
            raise ValueError(f"Unknown activation {activation_fn!r}: choose relu or leaky_relu.")
        self.slope = leaky_relu_slope if activation_fn == "leaky_relu" else 0.0
        doublings = range(output_size.bit_length() - input_size.bit_length())
        dims = [object_feature_dim]
        for _ in doublings:
            dims.append(max(dims[-1] // 2, min_features))
        self.convs = nn.ModuleList(nn.Conv2d(dims[i], dims[i + 1], 3, padding=1) for i in doublings)
        self.skip_convs = nn.ModuleList(nn.Conv2d(dim, output_dim, 1) for dim in dims)
        nn.init.zeros_(self.skip_convs[-1].get_parameter("bias"))

    def forward(self, inp: Tensor) -> Tensor:
        """Map (b, d, s, s) to (b, output_dim, output_size, output_size)."""
        maps, image = inp, self.skip_convs[0](inp)
        for conv, to_image in zip(self.convs, self.skip_convs[1:]):
            maps = F.leaky_relu(conv(F.interpolate(maps, scale_factor=2, mode="nearest-exact")), self.slope)
            larger = F.interpolate(image, scale_factor=2, mode="bilinear", align_corners=False, antialias=True)
            image = larger + to_image(maps)
        return image
