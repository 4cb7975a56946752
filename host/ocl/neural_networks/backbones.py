"""Convolutional networks of published models."""

from torch import nn

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
