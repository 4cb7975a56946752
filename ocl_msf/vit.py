"""Frozen vision transformers of timm: images -> tokens."""

import functools
import math
from pathlib import Path
from typing import Any, Dict, Optional, Tuple, cast

import timm
import torch
from torch import nn
from torch.nn import functional as F

from ocl_msf.frozen import Frozen, read_state_dict


def read_vit(path: Path) -> Dict[str, torch.Tensor]:
    """Read a ViT's weights: timm's state dict, a backbone or full checkpoint of the DINO release, or safetensors.

    Returns:
        Weights by timm's names, without those of projection heads.

    Raises:
        FileNotFoundError: no such file.
        ValueError: it is damaged, or holds pickled objects.
    """
    bare = read_state_dict(path, "a ViT")
    backbone = {name[len("backbone.") :]: x for name, x in bare.items() if name.startswith("backbone.")}
    return {name: x for name, x in (backbone or bare).items() if not name.startswith("head.")}


class FrozenViT(Frozen):
    """A pretrained vision transformer: images -> normed tokens of its last layer.

    Images whose sides are no multiples of the patch size are enlarged to the next ones. A table of positions keeps
    the size of the pretraining and is interpolated to the grid of patches at hand; rotary positions fit any grid.
    With `grid`, images are resized to it instead, and a table is interpolated once, when weights are loaded.

    Args:
        model_name: a ViT of timm, with class and register tokens or without: DINO, DINOv2, DINOv3 and others. A tag
            (`.dino`) is also found under its name before timm 0.9 (`_dino`).
        pretrained: wait for pretrained weights; False: keep the random ones.
        grid: patches along each side, to which images of any size are resized (bicubic).

    Attributes:
        patch_size: side of a patch in pixels.
        dim: channels of a token.
    """

    network: Any  # timm's vision transformers share no base class
    given: Optional[torch.Tensor] = None  # tokens that `forward` returns instead of computing them
    mean: torch.Tensor
    std: torch.Tensor

    def __init__(self, model_name: str, pretrained: bool = True, grid: Optional[int] = None):
        model_name = _known_name(model_name)
        network: Any = timm.create_model(model_name, num_classes=0)
        super().__init__(network, loaded=not pretrained)
        self.model_name, self.grid = model_name, grid
        self.patch_size: int = network.patch_embed.proj.kernel_size[0]
        self.dim: int = network.num_features
        self.register_buffer("mean", torch.tensor(network.default_cfg["mean"]).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(network.default_cfg["std"]).view(3, 1, 1), persistent=False)
        self.table_size: Tuple[int, int] = network.patch_embed.grid_size  # of positions
        if grid and getattr(network, "pos_embed", None) is not None:
            network.pos_embed = nn.Parameter(self._to_grid(network.pos_embed, self.table_size), requires_grad=False)
            self.table_size = (grid, grid)

    def load(self, weights: Dict[str, Any]) -> None:
        """See Frozen; a table of positions for another square grid is interpolated."""
        table = weights.get("pos_embed")
        if self.grid and table is not None and table.shape != self.network.pos_embed.shape:
            prefix = self.network.pos_embed.shape[1] - self.grid**2
            side = math.isqrt(table.shape[1] - prefix)
            weights = {**weights, "pos_embed": self._to_grid(table, (side, side))}
        super().load(weights)

    def _to_grid(self, table: torch.Tensor, size: Tuple[int, int]) -> torch.Tensor:
        """A table of positions (1, prefix + h*w, d) of a grid of that size -> (1, prefix + grid * grid, d)."""
        of_prefix, of_patches = table.split([table.shape[1] - size[0] * size[1], size[0] * size[1]], 1)
        side, grid = cast(int, self.grid), of_patches.unflatten(1, size).permute(0, 3, 1, 2)  # 1 d h w
        grid = F.interpolate(grid, (side, side), mode="bicubic", align_corners=False, antialias=True)
        return torch.cat([of_prefix, grid.flatten(2).transpose(1, 2)], 1)

    def missing(self, reason: str) -> str:
        """Say that the weights are missing, why, and where to get them."""
        return (
            f"The weights of the frozen ViT ({self.model_name}) are missing: {reason} Put a file of them anywhere on "
            "this machine, such as beside the data sets, and add experiment.vit.weights=PATH to the command: a state "
            "dict or safetensors by timm's names, or for the default ViT dino_deitsmall8_pretrain.pth of the DINO "
            "release (ViT-S/8, backbone only). Or take the small CNN alone, experiment.encoder.vit=null."
        )

    def find_weights(self, path: Optional[Path] = None) -> Dict[str, torch.Tensor]:
        """Read pretrained weights from a file (see `read_vit`), by default from timm's cache or hub.

        Raises:
            FileNotFoundError: there are none within reach.
            ValueError: the file is damaged.
        """
        try:
            return read_vit(path) if path else self._download()
        except FileNotFoundError as error:
            raise FileNotFoundError(self.missing(str(error))) from error

    def _download(self) -> Dict[str, torch.Tensor]:
        if not any(self.network.default_cfg.get(source) for source in ("url", "hf_hub_id")):  # old timm is silent
            raise FileNotFoundError("timm knows none.")
        try:
            return timm.create_model(self.model_name, num_classes=0, pretrained=True).state_dict()
        except Exception as error:  # no network, no cache, a broken file: each library has its own types
            raise FileNotFoundError(f"timm cannot fetch them ({type(error).__name__}).") from error

    @torch.no_grad()
    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Images (b, 3, h, w), values in [-1, 1] -> tokens (b, dim, h / patch_size, w / patch_size), rounded up.

        Raises:
            RuntimeError: weights have not been loaded.
        """
        self.require_weights()
        if self.given is not None:
            return self.given
        rows, columns = (self.grid or math.ceil(side / self.patch_size) for side in image.shape[-2:])
        size = (rows * self.patch_size, columns * self.patch_size)
        if size != tuple(image.shape[-2:]):
            image = F.interpolate(image, size, mode="bicubic", align_corners=False)
        image = (image * 0.5 + 0.5 - self.mean) / self.std  # b 3 h w
        if getattr(self.network, "rope", None) is None:
            tokens = self._transform(self.network.patch_embed.proj(image))  # b prefix+n d
        else:
            tokens = self.network.forward_features(image)
        return tokens[:, -rows * columns :].transpose(1, 2).unflatten(2, (rows, columns))  # b d h w

    def compact(self, image: torch.Tensor) -> Tuple[torch.Tensor, str]:
        """See Frozen: tokens as `forward` gives them, in half precision."""
        return self(image), "float16"

    def _transform(self, patches: torch.Tensor) -> torch.Tensor:
        """Embedded patches (b, d, h, w) -> tokens (b, prefix + h*w, d); timm itself has a fixed size before 0.9."""
        vit = self.network
        prefix = [token for token in (vit.cls_token, getattr(vit, "reg_token", None)) if token is not None]
        tokens = patches.flatten(2).transpose(1, 2)  # b n d
        tokens = torch.cat([*(token.expand(len(tokens), -1, -1) for token in prefix), tokens], 1)
        tokens = tokens + self._positions(tokens.shape[1], *patches.shape[-2:])
        return vit.norm(vit.blocks(getattr(vit, "norm_pre", nn.Identity())(tokens)))

    def _positions(self, num_tokens: int, height: int, width: int) -> torch.Tensor:
        """Positional embeddings (1, num_tokens, d) of prefix tokens, zero where they have none, and of the patches."""
        table, (rows, columns) = self.network.pos_embed, self.table_size
        of_prefix, of_patches = table.split([table.shape[1] - rows * columns, rows * columns], 1)
        grid = of_patches.unflatten(1, (rows, columns)).permute(0, 3, 1, 2)  # 1 d h w
        if (rows, columns) != (height, width):
            grid = F.interpolate(grid, (height, width), mode="bicubic", align_corners=False)
        missing = num_tokens - height * width - of_prefix.shape[1]
        return torch.cat([F.pad(of_prefix, (0, 0, 0, missing)), grid.flatten(2).transpose(1, 2)], 1)


def _known_name(model_name: str) -> str:
    """timm's name of a model: with its tag behind a dot, or before timm 0.9 behind an underscore."""
    return model_name if timm.is_model(model_name) else model_name.replace(".", "_")


def vit_dim(model_name: str) -> int:
    """Channels of the tokens of a frozen ViT, for the modules that take them."""
    return _vit_sizes(model_name)[0]


def vit_num_patches(model_name: str, image_size: int, grid: Optional[int] = None) -> int:
    """Number of tokens of a frozen ViT for square images, or of its `grid`, for the modules that take them."""
    return (grid or math.ceil(image_size / _vit_sizes(model_name)[1])) ** 2


@functools.lru_cache(maxsize=None)
def _vit_sizes(model_name: str) -> Tuple[int, int]:
    """Channels of a token and side of a patch; timm tells them by building the model."""
    with torch.random.fork_rng(devices=[]):
        vit = FrozenViT(model_name)
    return vit.dim, vit.patch_size
