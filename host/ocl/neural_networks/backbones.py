"""Convolutional networks of published models."""

from torch import nn

from ocl.neural_networks.slate import Conv2dBlockWithGroupNorm


def _upsampling_layers(in_channels: int, channels: int, strides: tuple[int, ...]) -> list[nn.Module]:
    layers = []
    for stride in strides:
        options = dict(kernel_size=5, stride=stride, padding=2, output_padding=stride - 1)
        layers += [nn.ConvTranspose2d(in_channels, channels, **options), nn.ReLU(inplace=True)]
        in_channels = channels
    return layers


def get_slotattention_decoder_backbone(object_dim: int, output_dim: int = 4) -> nn.Module:
    """Build the decoder of slot attention (Locatello et al., 2020), from 8x8 to 128x128."""
    layers = _upsampling_layers(object_dim, 64, strides=(2, 2, 2, 2, 1))
    return nn.Sequential(*layers, nn.ConvTranspose2d(64, output_dim, kernel_size=3, padding=1))


def get_savi_decoder_backbone(
    object_dim: int, output_dim: int = 4, larger_input_arch: bool = False, channel_multiplier: float = 1
) -> nn.Module:
    """Build the decoder of SAVi (Kipf et al., 2022), from 8x8 to 64x64, or 128x128 for larger inputs."""
    channels = int(64 * channel_multiplier)
    layers = _upsampling_layers(object_dim, channels, strides=(2, 2, 2, 2 if larger_input_arch else 1))
    return nn.Sequential(*layers, nn.ConvTranspose2d(channels, output_dim, kernel_size=1))


def get_dvae_encoder(vocab_size: int, patch_size: int = 16, output_dim: int = 3) -> nn.Module:
    """Build the dVAE encoder of SLATE from images with `output_dim` channels to logits (B, V, h, w)."""
    return nn.Sequential(
        Conv2dBlockWithGroupNorm(output_dim, 64, patch_size, stride=patch_size),
        *(Conv2dBlockWithGroupNorm(64, 64, 1) for _ in range(6)),
        nn.Conv2d(64, vocab_size, 1),
    )


def get_dvae_decoder(vocab_size: int, output_dim: int = 3) -> nn.Module:
    """Build the dVAE decoder of SLATE from codes (B, V, h, w) to images (B, output_dim, 4h, 4w)."""

    def upsample():
        return (
            Conv2dBlockWithGroupNorm(64, 64, 3, padding=1),
            Conv2dBlockWithGroupNorm(64, 64, 1),
            Conv2dBlockWithGroupNorm(64, 64, 1),
            Conv2dBlockWithGroupNorm(64, 256, 1),
            nn.PixelShuffle(2),
        )

    return nn.Sequential(
        Conv2dBlockWithGroupNorm(vocab_size, 64, 1), *upsample(), *upsample(), nn.Conv2d(64, output_dim, 1)
    )
