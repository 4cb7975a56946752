"""Models that timm does not have: further self-supervised weights and the ResNet of SAVi.

Importing this module registers them, so that `timm.create_model` finds them by name.
"""

import timm
import torch
from timm.layers import GroupNorm
from timm.models import register_model
from torch import nn

_SERVER = "https://dl.fbaipublicfiles.com"


@register_model
def resnet34_savi(pretrained: bool = False, **kwargs) -> nn.Module:
    """ResNet-34 with group normalization and a stem that keeps the resolution (Kipf et al., 2022)."""
    if pretrained:
        raise ValueError("There are no pretrained weights for resnet34_savi; set pretrained to false.")
    model = timm.create_model("resnet34", norm_layer=GroupNorm, **kwargs)
    model.conv1.stride = (1, 1)
    model.maxpool = nn.Identity()
    return model


@register_model
def resnet50_dino(pretrained: bool = False, **kwargs) -> nn.Module:
    """ResNet-50 trained by DINO (Caron et al., 2021)."""
    url = f"{_SERVER}/dino/dino_resnet50_pretrain/dino_resnet50_pretrain.pth"
    return _create("resnet50", url if pretrained else None, "", "", **kwargs)


@register_model
def resnet50_mocov3(pretrained: bool = False, **kwargs) -> nn.Module:
    """ResNet-50 trained by MoCo v3 (Chen et al., 2021)."""
    return _create_mocov3("resnet50", "r-50-1000ep", pretrained, **kwargs)


@register_model
def vit_small_patch16_224_mocov3(pretrained: bool = False, **kwargs) -> nn.Module:
    """ViT-S/16 trained by MoCo v3 (Chen et al., 2021), which has twice the usual number of heads."""
    return _create_mocov3("vit_small_patch16_224", "vit-s-300ep", pretrained, num_heads=12, **kwargs)


@register_model
def vit_base_patch16_224_mocov3(pretrained: bool = False, **kwargs) -> nn.Module:
    """ViT-B/16 trained by MoCo v3 (Chen et al., 2021)."""
    return _create_mocov3("vit_base_patch16_224", "vit-b-300ep", pretrained, **kwargs)


@register_model
def vit_small_patch16_224_msn(pretrained: bool = False, **kwargs) -> nn.Module:
    """ViT-S/16 trained by MSN (Assran et al., 2022)."""
    return _create_msn("vit_small_patch16_224", "vits16_800ep", pretrained, **kwargs)


@register_model
def vit_base_patch16_224_msn(pretrained: bool = False, **kwargs) -> nn.Module:
    """ViT-B/16 trained by MSN (Assran et al., 2022)."""
    return _create_msn("vit_base_patch16_224", "vitb16_600ep", pretrained, **kwargs)


@register_model
def vit_base_patch16_224_mae(pretrained: bool = False, **kwargs) -> nn.Module:
    """ViT-B/16 trained by MAE (He et al., 2022)."""
    return _create_mae("vit_base_patch16_224.mae", pretrained, **kwargs)


@register_model
def vit_large_patch16_224_mae(pretrained: bool = False, **kwargs) -> nn.Module:
    """ViT-L/16 trained by MAE (He et al., 2022)."""
    return _create_mae("vit_large_patch16_224.mae", pretrained, **kwargs)


@register_model
def vit_huge_patch14_224_mae(pretrained: bool = False, **kwargs) -> nn.Module:
    """ViT-H/14 trained by MAE (He et al., 2022)."""
    return _create_mae("vit_huge_patch14_224.mae", pretrained, **kwargs)


def _create_mocov3(architecture: str, run: str, pretrained: bool, **kwargs) -> nn.Module:
    url = f"{_SERVER}/moco-v3/{run}/{run}.pth.tar" if pretrained else None
    return _create(architecture, url, "state_dict", "module.base_encoder.", **kwargs)


def _create_msn(architecture: str, run: str, pretrained: bool, **kwargs) -> nn.Module:
    url = f"{_SERVER}/msn/{run}.pth.tar" if pretrained else None
    return _create(architecture, url, "target_encoder", "module.", **kwargs)


def _create_mae(name: str, pretrained: bool, **kwargs) -> nn.Module:
    kwargs.pop("pretrained_cfg", None)  # belongs to the name without a tag
    return timm.create_model(name, pretrained=pretrained, **kwargs)


def _create(architecture: str, url, entry: str, prefix: str, **kwargs) -> nn.Module:
    """Create a model and load the weights found below `prefix` in an entry of the checkpoint at `url`."""
    model = timm.create_model(architecture, **kwargs)
    if url is not None:
        checkpoint = torch.hub.load_state_dict_from_url(url, map_location="cpu", weights_only=True)
        _load_weights(model, checkpoint[entry] if entry else checkpoint, prefix, url)
    return model


def _load_weights(model: nn.Module, weights: dict[str, torch.Tensor], prefix: str, source: str) -> None:
    """Load what the model has; checkpoints also hold heads and, for truncated models, later layers."""
    weights = {name[len(prefix) :]: value for name, value in weights.items() if name.startswith(prefix)}
    wanted = model.state_dict().keys() - {"head.weight", "head.bias", "fc.weight", "fc.bias"}
    missing = sorted(wanted - weights.keys())
    if missing:
        raise RuntimeError(f"The weights at {source} lack {missing[0]} and {len(missing) - 1} others.")
    model.load_state_dict({name: weights[name] for name in wanted}, strict=False)
