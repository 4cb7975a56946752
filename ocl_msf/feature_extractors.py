"""Primary encoders: image -> features for slot attention."""

import functools
import math
from pathlib import Path
from typing import Any, Dict, Optional, Sequence, Tuple, cast

import timm
import torch
from torch import nn
from torch.nn import functional as F

from ocl_msf._host import require_host
from ocl_msf._renamed import refuse_old_keywords, refuse_old_names
from ocl_msf.chunks import evaluate_in_chunks
from ocl_msf.dilated import dilated_layers
from ocl_msf.frozen import Frozen
from ocl_msf.grid_fusion import FusedFeatures, SumScales
from ocl_msf.pyramid import ImagePyramid

with require_host():
    from ocl.feature_extractors.utils import ImageFeatureExtractor, cnn_compute_positions_and_flatten
    from ocl.typing import FeatureExtractorOutput

__getattr__ = refuse_old_names(__name__)


@refuse_old_keywords
class NaiveCNN(ImageFeatureExtractor):
    """Four 5x5 convolutions: features at the resolution of the image (section A.3).

    Args:
        feature_dim: channels of every layer.
        num_layers: number of convolutions; with dilations their number decides.
        stride: of the first convolution; 1 in the paper, more for features on a coarser grid at less cost.
        dilations: instead, two convolutions, the first with half the channels, halve each side if stride is 4, and one
            residual 3x3 convolution for each dilation follows: the receptive field of a deep network at little cost,
            so that features tell textures, which pixels do not. `ocl_msf.dilated.Contrast` is last.

    Raises:
        ValueError: dilations with another stride than 4.
    """

    def __init__(
        self, feature_dim: int = 64, num_layers: int = 4, stride: int = 1, dilations: Optional[Sequence[int]] = None
    ):
        super().__init__()
        self._feature_dim = feature_dim
        self.layers = _plain_layers(feature_dim, num_layers, stride)
        if dilations:
            if stride != 4:
                raise ValueError(f"With dilations the stride is 4, not {stride}; with dilations=null it is free.")
            self.layers = dilated_layers(feature_dim, dilations)
        # He's initialisation: otherwise image features become smaller than the positional embedding.
        for module in self.layers.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
                nn.init.zeros_(cast(torch.Tensor, module.bias))

    @property
    def feature_dim(self) -> int:
        """Channels of the features."""
        return self._feature_dim

    def forward(self, image: torch.Tensor) -> FeatureExtractorOutput:
        """Extract features from images (b, 3, h, w) or videos (b, t, 3, h, w), values in [-1, 1].

        Returns:
            `features` (b, n, feature_dim) or (b, t, n, feature_dim) where n = h * w / stride^2, their `positions`
            (n, 2), and `aux_features`.
        """
        return super().forward(image)

    def forward_images(self, images: torch.Tensor) -> Tuple[Any, ...]:
        """Images, or the frames of videos, (b, 3, h, w) -> features (b, n, feature_dim) and positions (n, 2)."""
        return cnn_compute_positions_and_flatten(self.layers(images))


def _plain_layers(dim: int, num_layers: int, stride: int) -> nn.Sequential:
    channels = [3] + [dim] * num_layers
    strides = [stride] + [1] * (num_layers - 1)
    pairs = [(nn.Conv2d(i, o, 5, stride=s, padding=2), nn.ReLU()) for i, o, s in zip(channels, channels[1:], strides)]
    return nn.Sequential(*(layer for pair in pairs for layer in pair))


def read_vit(path: Path) -> Dict[str, torch.Tensor]:
    """Read a ViT's weights: timm's state dict, a backbone or full checkpoint of the DINO release, or safetensors.

    Returns:
        Weights by timm's names, without those of projection heads.

    Raises:
        FileNotFoundError: no such file.
        ValueError: it is damaged, or holds pickled objects.
    """
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}.")
    weights: Any
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


class FrozenViT(Frozen):
    """A pretrained vision transformer: images -> normed tokens of its last layer.

    Images whose sides are no multiples of the patch size are enlarged to the next ones. A table of positions keeps
    the size of the pretraining and is interpolated to the grid of patches at hand; rotary positions fit any grid.

    Args:
        model_name: a ViT of timm, with class and register tokens or without: DINO, DINOv2, DINOv3 and others. A tag
            (`.dino`) is also found under its name before timm 0.9 (`_dino`).
        pretrained: wait for pretrained weights; False: keep the random ones.

    Attributes:
        patch_size: side of a patch in pixels.
        dim: channels of a token.
    """

    network: Any  # timm's vision transformers share no base class
    given: Optional[torch.Tensor] = None  # tokens that `forward` returns instead of computing them
    mean: torch.Tensor
    std: torch.Tensor

    def __init__(self, model_name: str, pretrained: bool = True):
        model_name = _known_name(model_name)
        network: Any = timm.create_model(model_name, num_classes=0)
        super().__init__(network, loaded=not pretrained)
        self.model_name = model_name
        self.patch_size: int = network.patch_embed.proj.kernel_size[0]
        self.dim: int = network.num_features
        self.register_buffer("mean", torch.tensor(network.default_cfg["mean"]).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(network.default_cfg["std"]).view(3, 1, 1), persistent=False)

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
        rows, columns = (math.ceil(side / self.patch_size) for side in image.shape[-2:])
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
        table, (rows, columns) = self.network.pos_embed, self.network.patch_embed.grid_size
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


def vit_num_patches(model_name: str, image_size: int) -> int:
    """Number of tokens of a frozen ViT for square images, for the modules that take them."""
    return math.ceil(image_size / _vit_sizes(model_name)[1]) ** 2


@functools.lru_cache(maxsize=None)
def _vit_sizes(model_name: str) -> Tuple[int, int]:
    """Channels of a token and side of a patch; timm tells them by building the model."""
    with torch.random.fork_rng(devices=[]):
        vit = FrozenViT(model_name)
    return vit.dim, vit.patch_size


@refuse_old_keywords
class ViTWithCNN(NaiveCNN):
    """The paper's encoder, "big-little": beside a small CNN for details a frozen ViT that sees objects (section A.3).

    The tokens of the ViT pass a 3x3 convolution, are upsampled to the grid of the CNN's features, and added. The tokens
    themselves are the auxiliary features `tokens` (b, n_patches, dim of the ViT).

    Args:
        feature_dim: channels of the features.
        num_layers: number of convolutions of the CNN.
        stride: of the CNN and so of the features; 1 in the paper.
        dilations: of the CNN, see `NaiveCNN`.
        vit: the ViT's name in timm; None for the CNN alone, the ablation's encoder.
        pretrained: false for a random ViT; otherwise it waits for `vit.load`, or for a checkpoint of the whole model.
    """

    def __init__(
        self,
        feature_dim: int = 64,
        num_layers: int = 4,
        stride: int = 1,
        vit: Optional[str] = "vit_small_patch8_224.dino",
        pretrained: bool = True,
        dilations: Optional[Sequence[int]] = None,
    ):
        super().__init__(feature_dim, num_layers, stride, dilations)
        self.vit = FrozenViT(vit, pretrained) if vit else None
        self.project_tokens = nn.Conv2d(self.vit.dim, feature_dim, 3, padding=1) if self.vit else None

    def forward(self, image: torch.Tensor, tokens: Optional[torch.Tensor] = None) -> FeatureExtractorOutput:
        """See `NaiveCNN`.

        Args:
            image: (b, 3, h, w) or (b, t, 3, h, w).
            tokens: what `FrozenViT.compact` made of these images, (b, ...) or (b, t, ...); then the ViT does not run.
        """
        if self.vit is None or tokens is None:
            return super().forward(image)
        self.vit.given = tokens.flatten(0, -4).float()
        try:
            return super().forward(image)
        finally:
            self.vit.given = None

    def forward_images(self, images: torch.Tensor) -> Tuple[Any, ...]:
        """As for `NaiveCNN`, with a third result {"tokens": (b, n_patches, dim of the ViT)} if there is a ViT."""
        maps, tokens = self.encode(images)
        features = cnn_compute_positions_and_flatten(maps)
        return features if tokens is None else (*features, {"tokens": tokens})

    @evaluate_in_chunks
    def encode(self, images: torch.Tensor) -> Tuple[torch.Tensor, Optional[torch.Tensor]]:
        """(b, 3, h, w) -> feature maps (b, feature_dim, h / stride, w / stride), and tokens as above or None."""
        maps = self.layers(images)  # b d h w
        if self.vit is None or self.project_tokens is None:
            return maps, None
        tokens = self.vit(images)  # b e h/p w/p
        coarse = F.interpolate(self.project_tokens(tokens), maps.shape[-2:], mode="bilinear", align_corners=False)
        return maps + coarse, tokens.flatten(2).transpose(1, 2)


class PyramidFeatureExtractor(ImageFeatureExtractor):
    """Any feature extractor over the image pyramid (section 3.2), its scales fused onto the finest grid.

    With N scales an extractor whose cost grows with the number of pixels costs 1 + 1/4 + ... + 1/4^(N-1) times as much,
    1.31 times for 3 scales. The weights are shared by all scales.

    Args:
        extractor: a feature extractor of ours or of OCLF.
        num_scales: N.
        fusion: one of `ocl_msf.grid_fusion`; by default the sum of all scales.
        same_size: enlarge the coarser images to the size of the given one, for extractors that take images of one size,
            such as most ViTs of timm. Every scale costs as much as the finest then, and all have its grid, which the
            fusion by codes refuses.

    Raises:
        ValueError: num_scales is below 1.
    """

    def __init__(
        self, extractor: nn.Module, num_scales: int = 3, fusion: Optional[nn.Module] = None, same_size: bool = False
    ):
        super().__init__()
        self.extractor = extractor
        self.pyramid = ImagePyramid(num_scales)
        self.fusion = SumScales() if fusion is None else fusion
        self.same_size = same_size

    @property
    def feature_dim(self) -> int:
        """Channels of the features, those of the extractor."""
        return self.extractor.feature_dim  # type: ignore[return-value]

    @property
    def vit(self) -> Optional[nn.Module]:
        """The frozen ViT of the extractor, for `ocl_msf.training.callbacks.LoadViT`; None if it has none."""
        return getattr(self.extractor, "vit", None)

    def forward(self, image: torch.Tensor) -> FeatureExtractorOutput:
        """Extract features from images (b, c, h, w) or videos (b, t, c, h, w).

        Returns:
            Fused `features` (b, n, d) or (b, t, n, d), the `positions` (n, 2) of the finest grid, and `aux_features`:
            those of the finest scale, the features `scale_1` (b, n, d) to `scale_<N>` of every scale, and the losses of
            the fusion, (b,) each; of videos all begin with (b, t).

        Raises:
            ValueError: a side is not divisible by 2^(N-1), or the features have no positions and are no square grid.
        """
        return super().forward(image)

    def forward_images(self, images: torch.Tensor) -> Tuple[Any, ...]:
        """Images, or the frames of videos, (b, c, h, w) -> features (b, n, d), positions (n, 2), further results."""
        pyramid = self.pyramid(images)  # N x (b, c, h_n, w_n)
        if self.same_size:
            pyramid = [F.interpolate(x, images.shape[-2:], mode="bilinear", align_corners=False) for x in pyramid]
        scales = [self.extractor(x) for x in pyramid]
        fused: FusedFeatures = self.fusion([_to_map(scale) for scale in scales])  # (b, d, h, w)
        own = {f"scale_{number}": scale.features for number, scale in enumerate(scales, 1)}  # (b, n_n, d)
        aux = {**(scales[0].aux_features or {}), **own, **fused.losses}
        return fused.features.flatten(2).transpose(1, 2), scales[0].positions, aux


def _to_map(output: FeatureExtractorOutput) -> torch.Tensor:
    """Features (b, h*w, d), row by row, -> a map (b, d, h, w); without positions (row before column) it is square."""
    features, positions = output.features, output.positions
    if positions is None:
        columns = math.isqrt(features.shape[1])
    else:
        columns = int((positions[:, 0] == positions[0, 0]).sum())
    if features.shape[1] % columns or (positions is None and columns**2 != features.shape[1]):
        raise ValueError(f"Features of shape {tuple(features.shape)} have no positions that tell a grid of theirs.")
    return features.transpose(1, 2).unflatten(2, (-1, columns))
