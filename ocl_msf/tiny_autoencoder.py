"""The tiny autoencoder of Stable Diffusion around the quantiser, as in the recipe of MSF's authors for frozen ViTs."""

from pathlib import Path
from typing import Any, Dict, Optional

import torch
from diffusers.models import AutoencoderTiny
from torch import nn
from torch.nn import functional as F

from ocl_msf.frozen import Pretrained, read_state_dict

NAME = "madebyollin/taesd"
IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # mean and deviation
FROZEN_LAYERS = 11  # of the encoder; the decoder learns as a whole


def read_tiny_autoencoder(path: Optional[Path] = None) -> Dict[str, torch.Tensor]:
    """Read the weights of diffusers' AutoencoderTiny from a file, by default from the hub or its cache.

    Returns:
        Weights by diffusers' names, `encoder.layers.<i>...` and `decoder.layers.<i>...`.

    Raises:
        FileNotFoundError: there are none within reach.
        ValueError: the file is damaged, or holds pickled objects.
    """
    try:
        if path:
            return read_state_dict(path, "a tiny autoencoder")
        return AutoencoderTiny.from_pretrained(NAME, torch_dtype=torch.float32).state_dict()
    except ValueError:
        raise
    except Exception as error:  # no file, no network, no cache: each library has its own types
        reason = str(error) if path else f"diffusers cannot fetch {NAME} ({type(error).__name__})."
        raise FileNotFoundError(describe_missing(reason)) from error


def describe_missing(reason: str) -> str:
    """Say that the weights are missing, why, and where to get them."""
    return (
        f"The weights of the tiny autoencoder are missing: {reason} Download diffusion_pytorch_model.safetensors of "
        f"huggingface.co/{NAME} anywhere onto this machine, and add experiment.vae_weights=PATH to the command. Only "
        "stage 1 needs them."
    )


class _Tiny(Pretrained):
    """Some layers of the tiny autoencoder, as diffusers numbers them, in `layers`."""

    offset: torch.Tensor  # the layers take and give (pixels - offset) / factor, of pixels in [0, 1]
    factor: torch.Tensor
    part: str
    layers: nn.ModuleDict

    def __init__(self, channels: int, pretrained: bool, imagenet: bool, start: int, stop: int):
        super().__init__(loaded=not pretrained)
        offset, factor = [torch.tensor(x).view(3, 1, 1) for x in (IMAGENET if imagenet else ((0.5,) * 3,) * 2)]
        self.register_buffer("offset", offset, persistent=False)
        self.register_buffer("factor", factor, persistent=False)
        widths = (channels,) * 4
        whole: Any = AutoencoderTiny(encoder_block_out_channels=widths, decoder_block_out_channels=widths)
        chosen = getattr(whole, self.part).layers[start:stop]
        self.layers = nn.ModuleDict({str(start + number): layer for number, layer in enumerate(chosen)})

    def load(self, weights: Dict[str, torch.Tensor]) -> None:
        """Take weights by diffusers' names.

        Raises:
            RuntimeError: they are those of another network.
        """
        prefix = f"{self.part}.layers."
        named = {name[len(prefix) :]: x for name, x in weights.items() if name.startswith(prefix)}
        self.layers.load_state_dict({name: x for name, x in named.items() if name.split(".")[0] in self.layers})
        self.loaded.fill_(1)

    def missing(self, reason: str) -> str:
        """Say that the weights are missing, why, and where to get them."""
        return describe_missing(reason)

    def run(self, x: torch.Tensor) -> torch.Tensor:
        """Apply the layers.

        Raises:
            RuntimeError: weights have not been loaded.
        """
        self.require_weights()
        for layer in self.layers.values():
            x = layer(x)
        return x


class TinyEncoder(_Tiny):
    """Images at half their size through the tiny encoder without its last layer, GroupNorm and a 1x1 convolution.

    (b, 3, h, w), values in [-1, 1] -> (b, dim, h/16, w/16). The first 11 layers are frozen.

    Args:
        dim: channels at the bottleneck.
        hidden_dim: channels of the tiny autoencoder, 64 for the weights that there are.
        pretrained: wait for pretrained weights; False: start from random ones.
        imagenet: the tiny autoencoder takes and gives images normalised by mean and deviation of ImageNet, instead of
            those that it was made for, as in the authors' checkpoints. Images here are in [-1, 1] in either case.

    Attributes:
        stride: pixels of the image per super-pixel, along each side.
    """

    stride = 16
    part = "encoder"

    def __init__(self, dim: int = 256, hidden_dim: int = 64, pretrained: bool = True, imagenet: bool = False):
        super().__init__(hidden_dim, pretrained, imagenet, 0, 14)
        for layer in list(self.layers.values())[:FROZEN_LAYERS]:
            layer.requires_grad_(False)
        self.norm = nn.GroupNorm(1, hidden_dim)
        self.project = nn.Conv2d(hidden_dim, dim, 1)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Encode images, see above."""
        half = F.interpolate(image, scale_factor=0.5, mode="bicubic", align_corners=False)  # b 3 h/2 w/2
        scaled = (half * 0.5 + 0.5 - self.offset) / self.factor  # b 3 h/2 w/2
        return self.project(self.norm(self.run(scaled * 0.5 + 0.5)))  # b dim h/16 w/16


class TinyDecoder(_Tiny):
    """A 1x1 convolution, GroupNorm, and the tiny decoder without its first layers.

    (b, dim, h, w) -> images (b, 3, 8h, 8w), half the size of those that `TinyEncoder` took. Arguments as there.
    """

    part = "decoder"

    def __init__(self, dim: int = 256, hidden_dim: int = 64, pretrained: bool = True, imagenet: bool = False):
        super().__init__(hidden_dim, pretrained, imagenet, 2, 19)
        self.project = nn.Conv2d(dim, hidden_dim, 1)
        self.norm = nn.GroupNorm(1, hidden_dim)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Decode features, see above."""
        scaled = self.run(self.norm(self.project(features))) * 2 - 1  # b 3 8h 8w
        return (scaled * self.factor + self.offset) * 2 - 1  # b 3 8h 8w
