"""Primary encoders: image -> features for slot attention."""

import math
from typing import Any, Optional, Sequence, Tuple, cast

import torch
from torch import nn
from torch.nn import functional as F

from ocl_msf._host import require_host
from ocl_msf._renamed import refuse_old_keywords, refuse_old_names
from ocl_msf.chunks import evaluate_in_chunks
from ocl_msf.dilated import dilated_layers
from ocl_msf.grid_fusion import FusedFeatures, SumScales
from ocl_msf.pyramid import ImagePyramid
from ocl_msf.vit import FrozenViT, read_vit, vit_dim, vit_num_patches  # noqa: F401  configs of runs look for them here

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


@refuse_old_keywords
class ViTWithCNN(NaiveCNN):
    """The paper's encoder, "big-little": beside a small CNN for details a frozen ViT that sees objects (section A.3).

    The tokens of the ViT pass a 3x3 convolution, are upsampled to the grid of the CNN's features, and added. Either can
    be left out. The tokens themselves are the auxiliary features `tokens` (b, n_patches, dim of the ViT).

    Args:
        feature_dim: channels of the features.
        num_layers: number of convolutions of the CNN.
        stride: of the CNN and so of the features; 1 in the paper.
        dilations: of the CNN, see `NaiveCNN`.
        vit: the ViT's name in timm; None for the CNN alone, the ablation's encoder.
        pretrained: false for a random ViT; otherwise it waits for `vit.load`, or for a checkpoint of the whole model.
        cnn: false for the ViT alone: features are its tokens of feature_dim channels; stride has no effect.
        grid: of the ViT, see `FrozenViT`.

    Raises:
        ValueError: there is neither a CNN nor a ViT, or the ViT alone has other channels.
    """

    def __init__(
        self,
        feature_dim: int = 64,
        num_layers: int = 4,
        stride: int = 1,
        vit: Optional[str] = "vit_small_patch8_224.dino",
        pretrained: bool = True,
        dilations: Optional[Sequence[int]] = None,
        cnn: bool = True,
        grid: Optional[int] = None,
    ):
        super().__init__(feature_dim, num_layers, stride, dilations)
        self.vit = FrozenViT(vit, pretrained, grid) if vit else None
        self.project_tokens = nn.Conv2d(self.vit.dim, feature_dim, 3, padding=1) if self.vit and cnn else None
        if not cnn:
            self._take_vit_alone()

    def _take_vit_alone(self) -> None:
        if self.vit is None:
            raise ValueError("An encoder needs a CNN or a ViT: with experiment.encoder.cnn=false name experiment.vit.")
        if self.vit.dim != self.feature_dim:
            raise ValueError(f"Tokens of {self.vit.model_name} have {self.vit.dim} channels: experiment.encoder.dim.")
        self.layers = None  # type: ignore[assignment]

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
        maps = self.layers(images) if self.layers is not None else None  # b d h w
        if self.vit is None:
            return cast(torch.Tensor, maps), None
        tokens = self.vit(images)  # b e h/p w/p
        if maps is None or self.project_tokens is None:
            return tokens, tokens.flatten(2).transpose(1, 2)
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
