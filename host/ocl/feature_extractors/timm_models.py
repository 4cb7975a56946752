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


def _register(name: str, architecture: str, weights: str, entry="", prefix="", **options) -> None:
    """Register an architecture of timm with the weights below `prefix` in an entry of a checkpoint."""

    def build(pretrained: bool = False, **kwargs) -> nn.Module:
        url = f"{_SERVER}/{weights}" if pretrained else None
        return _create(architecture, url, entry, prefix, **options, **kwargs)

    build.__name__ = name
    register_model(build)


def _register_mae(name: str) -> None:
    """Register the MAE (He et al., 2022) that timm calls `<name>.mae` as `<name>_mae`."""

    def build(pretrained: bool = False, **kwargs) -> nn.Module:
        kwargs.pop("pretrained_cfg", None)  # belongs to the name without a tag
        return timm.create_model(f"{name}.mae", pretrained=pretrained, **kwargs)

    build.__name__ = f"{name}_mae"
    register_model(build)


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


# DINO (Caron et al., 2021), MoCo v3 (Chen et al., 2021), whose ViT-S has twice the usual number of heads,
# and MSN (Assran et al., 2022).
_register("resnet50_dino", "resnet50", "dino/dino_resnet50_pretrain/dino_resnet50_pretrain.pth")
for _name, _run, _options in (
    ("resnet50", "r-50-1000ep", {}),
    ("vit_small_patch16_224", "vit-s-300ep", {"num_heads": 12}),
    ("vit_base_patch16_224", "vit-b-300ep", {}),
):
    _weights = f"moco-v3/{_run}/{_run}.pth.tar"
    _register(f"{_name}_mocov3", _name, _weights, "state_dict", "module.base_encoder.", **_options)
for _name, _run in (("vit_small_patch16_224", "vits16_800ep"), ("vit_base_patch16_224", "vitb16_600ep")):
    _register(f"{_name}_msn", _name, f"msn/{_run}.pth.tar", "target_encoder", "module.")
for _name in ("vit_base_patch16_224", "vit_large_patch16_224", "vit_huge_patch14_224"):
    _register_mae(_name)
