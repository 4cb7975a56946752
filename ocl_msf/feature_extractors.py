"""Primary encoders: image -> features for slot attention."""

from pathlib import Path
from typing import Any, Dict, Optional, Tuple

import timm
import torch
from torch import nn
from torch.nn import functional as F

from ocl_msf._host import require_host

with require_host():
    from ocl.feature_extractors.utils import ImageFeatureExtractor, cnn_compute_positions_and_flatten

NO_WEIGHTS = (
    "The weights of the frozen ViT ({name}) are missing: {reason} Download dino_deitsmall8_pretrain.pth of the DINO "
    "release (ViT-S/8, backbone only), put it anywhere on this machine, such as beside the data sets, and add "
    "experiment.dino_weights=PATH to the command; or take the small CNN alone, experiment.encoder.vit=null."
)


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
        layers = [layer for i, o in zip(channels, channels[1:]) for layer in (nn.Conv2d(i, o, 5, padding=2), nn.ReLU())]
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


def read_dino(path: Path) -> Dict[str, torch.Tensor]:
    """Read a ViT's weights: a backbone or full checkpoint of the DINO release, or a safetensors file.

    Returns:
        Weights by timm's names, without those of projection heads.

    Raises:
        FileNotFoundError: no such file.
        ValueError: it is damaged, or holds pickled objects.
    """
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}.")
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file  # comes with timm

            weights = load_file(str(path))
        else:
            weights = torch.load(path, map_location="cpu", weights_only=True)
        for wrapper in ("teacher", "state_dict"):
            weights = weights.get(wrapper, weights)
        bare = {name[7 * name.startswith("module.") :]: x for name, x in weights.items()}
    except Exception as error:  # damage and pickles are reported in many types; all mean: not a file to trust
        raise ValueError(f"{path} cannot be read as weights of a ViT ({type(error).__name__}: {error})") from error
    backbone = {name[len("backbone.") :]: x for name, x in bare.items() if name.startswith("backbone.")}
    return {name: x for name, x in (backbone or bare).items() if not name.startswith("head.")}


class FrozenViT(nn.Module):
    """A pretrained vision transformer that never learns: images -> normed tokens of its last layer.

    Until `load` has given it weights, or a checkpoint has restored them, it refuses to run. Its table of positions
    keeps the size of the pretraining and is interpolated to that of the images at hand.

    Args:
        model_name: a plain ViT of timm; a tag (`.dino`) is also found under its name before timm 0.9 (`_dino`).
        pretrained: wait for pretrained weights; False: keep the random ones.
    """

    def __init__(self, model_name: str, pretrained: bool = True):
        super().__init__()
        self.model_name = model_name if timm.is_model(model_name) else model_name.replace(".", "_")
        self.vit = timm.create_model(self.model_name, num_classes=0).requires_grad_(False)
        self.patch_size: int = self.vit.patch_embed.proj.kernel_size[0]
        self.dim: int = self.vit.num_features
        self.register_buffer("loaded", torch.tensor(int(not pretrained), dtype=torch.uint8))
        self.register_buffer("mean", torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1), persistent=False)
        self.train(False)

    def train(self, mode: bool = True) -> "FrozenViT":
        """Stay in evaluation mode, whatever the model around does."""
        return super().train(False)

    def load(self, path: Optional[Path] = None) -> None:
        """Take pretrained weights from a file (see `read_dino`), by default from timm's cache or hub.

        Raises:
            FileNotFoundError: there are none within reach.
            ValueError: the file is damaged or of another model.
        """
        try:
            weights = read_dino(path) if path else self._download()
        except FileNotFoundError as error:
            raise FileNotFoundError(NO_WEIGHTS.format(name=self.model_name, reason=error)) from error
        try:
            self.vit.load_state_dict(weights)
        except RuntimeError as error:
            raise ValueError(f"The weights in {path} are not those of {self.model_name}: {error}") from error
        self.loaded.fill_(1)

    def _download(self) -> Dict[str, torch.Tensor]:
        """Weights from timm's cache or hub."""
        if not any(self.vit.default_cfg.get(source) for source in ("url", "hf_hub_id")):  # old timm would go on without
            raise FileNotFoundError("timm knows none.")
        try:
            return timm.create_model(self.model_name, num_classes=0, pretrained=True).state_dict()
        except Exception as error:  # no network, no cache, a broken file: each library has its own types
            raise FileNotFoundError(f"timm cannot fetch them ({type(error).__name__}).") from error

    def _positions(self, height: int, width: int) -> torch.Tensor:
        """Embeddings (1, 1 + height*width, dim) of the class token and of a grid of patches."""
        table = self.vit.pos_embed
        side = int((table.shape[1] - 1) ** 0.5)
        grid = table[:, 1:].unflatten(1, (side, side)).permute(0, 3, 1, 2)
        grid = F.interpolate(grid, (height, width), mode="bicubic", align_corners=False)
        return torch.cat([table[:, :1], grid.flatten(2).transpose(1, 2)], 1)

    @torch.no_grad()
    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Images (b, 3, h, w), values in [-1, 1] -> tokens (b, dim, h / patch_size, w / patch_size).

        Raises:
            RuntimeError: weights have not been loaded.
            ValueError: h or w is no multiple of the patch size.
        """
        if not self.loaded:
            raise RuntimeError(NO_WEIGHTS.format(name=self.model_name, reason="nothing has loaded them."))
        if images.shape[-2] % self.patch_size or images.shape[-1] % self.patch_size:
            raise ValueError(
                f"{self.model_name} takes images whose sides are multiples of {self.patch_size}, "
                f"got {images.shape[-2]}x{images.shape[-1]}."
            )
        patches = self.vit.patch_embed.proj((images * 0.5 + 0.5 - self.mean) / self.std)
        tokens = patches.flatten(2).transpose(1, 2)
        tokens = torch.cat([self.vit.cls_token.expand(len(tokens), -1, -1), tokens], 1)
        tokens = self.vit.norm(self.vit.blocks(tokens + self._positions(*patches.shape[-2:])))
        return tokens[:, 1:].transpose(1, 2).unflatten(2, patches.shape[-2:])


class BigLittle(NaiveCNN):
    """The paper's encoder: beside a small CNN for details a frozen DINO that sees objects (section A.3).

    The tokens of the ViT pass a 3x3 convolution, are upsampled to the grid of the CNN's features, and added. The tokens
    themselves are the auxiliary features `tokens` (b, n_patches, dim of the ViT).

    Args:
        feature_dim: channels of the features.
        num_layers: number of convolutions of the CNN.
        stride: of the CNN and so of the features; 1 in the paper.
        vit: the ViT's name in timm; None for the CNN alone, the ablation's encoder.
        pretrained: False for a random ViT; else it waits for `dino.load`, or for a checkpoint of the whole model.
    """

    def __init__(
        self,
        feature_dim: int = 64,
        num_layers: int = 4,
        stride: int = 1,
        vit: Optional[str] = "vit_small_patch8_224.dino",
        pretrained: bool = True,
    ):
        super().__init__(feature_dim, num_layers, stride)
        self.dino = FrozenViT(vit, pretrained) if vit else None
        self.project_tokens = nn.Conv2d(self.dino.dim, feature_dim, 3, padding=1) if vit else None

    def forward_images(self, images: torch.Tensor) -> Tuple[Any, ...]:
        """(b, 3, h, w) in [-1, 1] -> features (b, n, feature_dim), positions (n, 2) and, with a ViT, {"tokens": ...}.

        n = h*w / stride^2; tokens (b, h*w / patch_size^2, dim of the ViT).
        """
        maps, tokens = self.encode(images)
        found = cnn_compute_positions_and_flatten(maps)
        return found if tokens is None else (*found, {"tokens": tokens})

    def encode(self, images: torch.Tensor) -> Tuple[torch.Tensor, Optional[torch.Tensor]]:
        """(b, 3, h, w) -> feature maps (b, feature_dim, h / stride, w / stride), and tokens as above or None."""
        maps = self.layers(images)
        if self.dino is None:
            return maps, None
        tokens = self.dino(images)
        big = F.interpolate(self.project_tokens(tokens), maps.shape[-2:], mode="bilinear", align_corners=False)
        return maps + big, tokens.flatten(2).transpose(1, 2)
