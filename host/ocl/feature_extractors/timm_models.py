"""Models that timm does not have: further self-supervised weights and the ResNet of SAVi.

Importing this module registers them, so that `timm.create_model` finds them by name.
"""

from typing import Any

import timm
import torch
from timm.layers import GroupNorm
from timm.models import register_model
from torch import nn

_SERVER = "https://dl.fbaipublicfiles.com"


@register_model
def resnet34_savi(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """ResNet-34 with group normalization and a stem that keeps the resolution (Kipf et al., 2022)."""
    if pretrained:
        raise ValueError("There are no pretrained weights for resnet34_savi; set pretrained to false.")
    model: Any = timm.create_model("resnet34", norm_layer=GroupNorm, **kwargs)
    model.conv1.stride = (1, 1)
    model.maxpool = nn.Identity()
    return model


def _register(
    name: str, architecture: str, weights: str = "", entry: str = "", prefix: str = "", **options: Any
) -> None:
    """Register a model of timm under a new name, with those `weights` that lie below `prefix` in an entry of a file."""

    def build(pretrained: bool = False, **kwargs: Any) -> nn.Module:
        model = timm.create_model(architecture, pretrained=pretrained and not weights, **options, **kwargs)
        if pretrained and weights:
            _load_weights(model, f"{_SERVER}/{weights}", entry, prefix)
        return model

    build.__name__ = name
    register_model(build)


def _load_weights(model: nn.Module, url: str, entry: str, prefix: str) -> None:
    """Load what the model has; checkpoints also hold heads and, for truncated models, later layers."""
    checkpoint = torch.hub.load_state_dict_from_url(url, map_location="cpu", weights_only=True)
    weights = checkpoint[entry] if entry else checkpoint
    weights = {name[len(prefix) :]: value for name, value in weights.items() if name.startswith(prefix)}
    wanted = model.state_dict().keys() - {"head.weight", "head.bias", "fc.weight", "fc.bias"}
    missing = sorted(wanted - weights.keys())
    if missing:
        raise RuntimeError(f"The weights at {url} lack {missing[0]} and {len(missing) - 1} others.")
    model.load_state_dict({name: weights[name] for name in wanted}, strict=False)


# DINO (Caron et al., 2021), MoCo v3 (Chen et al., 2021), whose ViT-S has twice the usual number of heads,
# MSN (Assran et al., 2022), and MAE (He et al., 2022), whose weights timm has under names with a tag.
_VIT_S, _VIT_B = "vit_small_patch16_224", "vit_base_patch16_224"
_MOCO, _MSN = ("state_dict", "module.base_encoder."), ("target_encoder", "module.")
_register("resnet50_dino", "resnet50", "dino/dino_resnet50_pretrain/dino_resnet50_pretrain.pth")
_register("resnet50_mocov3", "resnet50", "moco-v3/r-50-1000ep/r-50-1000ep.pth.tar", *_MOCO)
_register(f"{_VIT_S}_mocov3", _VIT_S, "moco-v3/vit-s-300ep/vit-s-300ep.pth.tar", *_MOCO, num_heads=12)
_register(f"{_VIT_B}_mocov3", _VIT_B, "moco-v3/vit-b-300ep/vit-b-300ep.pth.tar", *_MOCO)
_register(f"{_VIT_S}_msn", _VIT_S, "msn/vits16_800ep.pth.tar", *_MSN)
_register(f"{_VIT_B}_msn", _VIT_B, "msn/vitb16_600ep.pth.tar", *_MSN)
for _name in (_VIT_B, "vit_large_patch16_224", "vit_huge_patch14_224"):
    _register(f"{_name}_mae", f"{_name}.mae")
