"""Backbones of the timm library as feature extractors."""

import contextlib
import re
from typing import Any, Optional, Union

import timm
import torch
from torch import nn
from torch.nn import functional as F

import ocl.feature_extractors.timm_models  # noqa: F401  registers further models
from ocl.feature_extractors.utils import (
    ImageFeatureExtractor,
    cnn_compute_positions_and_flatten,
    transformer_compute_positions,
)
from ocl.typing import ImageData

Levels = Union[int, str, list[Union[int, str]]]

_QKV_THIRDS = {"query": 0, "key": 1, "value": 2}


class TimmFeatureExtractor(ImageFeatureExtractor):
    """Features of a timm model, taken wherever asked.

    Vision transformers (names starting with `vit` or `beit`) describe a level as `block`, `key`, `query`,
    `value` or `cls`, followed by the number of the block, counted from 1; a bare number means `block`. Blocks
    behind the last one used are removed. Of all other models a level is an index into timm's feature pyramid.

    Args:
        model_name: Name of a timm model.
        feature_level: Level or levels to return; several are concatenated. For vision transformers the
            default are the normalized tokens at the end.
        aux_features: Further levels of vision transformers, returned by name (`block3`) in `aux_features`.
        pretrained: Load pretrained weights.
        freeze: Train none of the parameters; models with batch normalization also keep its statistics.
        n_blocks_to_unfreeze: Train the last blocks and the final norm of a frozen vision transformer anyway.
        unfreeze_attention: Train the attention modules of a frozen vision transformer anyway.

    Raises:
        ValueError: If a level does not exist in this model.
    """

    def __init__(
        self,
        model_name: str,
        feature_level: Optional[Levels] = None,
        aux_features: Optional[Levels] = None,
        pretrained: bool = False,
        freeze: bool = False,
        n_blocks_to_unfreeze: int = 0,
        unfreeze_attention: bool = False,
    ):
        super().__init__()
        self.is_vit = model_name.startswith(("vit", "beit"))
        if self.is_vit:
            self.levels, self.aux_levels = _parse_levels(feature_level), _parse_levels(aux_features)
            self.model = timm.create_model(model_name, pretrained=pretrained, num_classes=0)
            self._remove_unused_parts()
            self.feature_dim = self.model.embed_dim * max(1, len(self.levels))
        else:
            level = _parse_pyramid_level(model_name, feature_level, aux_features)
            self.model = timm.create_model(
                model_name, pretrained=pretrained, features_only=True, out_indices=(level,)
            )
            self.feature_dim = self.model.feature_info.channels()[0]
        if freeze:
            self._freeze(n_blocks_to_unfreeze, unfreeze_attention)
        has_batch_norm = any(isinstance(module, nn.BatchNorm2d) for module in self.model.modules())
        self._keep_eval = freeze and has_batch_norm
        self.train()

    def _remove_unused_parts(self):
        used = [number for _, number in self.levels + self.aux_levels]
        depth = len(self.model.blocks)
        if used and max(used) > depth:
            raise ValueError(f"Block {max(used)} was asked for, but the model has only {depth} blocks.")
        if self.levels:
            self.model.prune_intermediate_layers([max(used) - 1], prune_norm=True, prune_head=True)
        else:
            self.model.fc_norm = nn.Identity()  # belongs to the classifier

    def _freeze(self, n_blocks_to_unfreeze: int, unfreeze_attention: bool):
        if (n_blocks_to_unfreeze or unfreeze_attention) and not self.is_vit:
            raise ValueError("Only the blocks and the attention of vision transformers can be unfrozen.")
        self.model.requires_grad_(False)
        if n_blocks_to_unfreeze:
            self.model.blocks[-n_blocks_to_unfreeze:].requires_grad_(True)
            self.model.norm.requires_grad_(True)
        if unfreeze_attention:
            for block in self.model.blocks:
                block.attn.requires_grad_(True)

    def train(self, mode: bool = True):
        """Switch to training mode, except for a frozen model with batch normalization."""
        super().train(mode)
        if self._keep_eval:
            self.model.eval()
        return self

    def forward_images(self, images: ImageData):
        """Turn images (B, 3, H, W) into features (B, N, D), positions (N, 2) and a dict of further levels."""
        if not self.is_vit:
            return cnn_compute_positions_and_flatten(self.model(images)[0])
        with _record(self.model, self.levels + self.aux_levels) as recorded:
            tokens = self.model.forward_features(images)[:, self.model.num_prefix_tokens :]
        if self.levels:
            tokens = torch.cat([recorded[level] for level in self.levels], dim=-1)
        aux = {f"{kind}{number}": recorded[kind, number] for kind, number in self.aux_levels}
        return tokens, transformer_compute_positions(tokens), aux or None


def _parse_levels(levels: Optional[Levels]) -> list[tuple[str, int]]:
    if levels is None:
        return []
    parsed = []
    for level in [levels] if isinstance(levels, (int, str)) else levels:
        match = re.fullmatch(r"(block|key|query|value|cls)?([1-9]\d*)", str(level))
        if match is None:
            raise ValueError(
                f"Unknown feature level {level!r}: expected block, key, query, value or cls "
                "and the number of a block, counted from 1, such as key12."
            )
        parsed.append((match[1] or "block", int(match[2])))
    return parsed


def _parse_pyramid_level(name: str, feature_level: Optional[Levels], aux_features: Optional[Levels]) -> int:
    levels = [feature_level] if isinstance(feature_level, (int, str)) else list(feature_level or [])
    if aux_features is not None or len(levels) != 1 or not str(levels[0]).isdigit():
        raise ValueError(
            f"{name} needs exactly one number as feature_level and no aux_features, "
            f"got {feature_level!r} and {aux_features!r}."
        )
    return int(levels[0])


@contextlib.contextmanager
def _record(model: nn.Module, levels: list[tuple[str, int]]):
    """Collect the given levels as {(kind, number): (B, N, D)} while the model runs inside the context."""
    recorded: dict[tuple[str, int], Any] = {}
    n_prefix = model.num_prefix_tokens

    def watch_block(level):
        tokens = slice(0, 1) if level[0] == "cls" else slice(n_prefix, None)

        def hook(block, args, output):
            recorded[level] = output[:, tokens]

        return model.blocks[level[1] - 1].register_forward_hook(hook)

    def watch_attention(level):
        def hook(attention, args):
            recorded[level] = _project(attention, args[0][:, n_prefix:], _QKV_THIRDS[level[0]])

        return model.blocks[level[1] - 1].attn.register_forward_pre_hook(hook)

    with contextlib.ExitStack() as stack:
        for level in levels:
            handle = (watch_attention if level[0] in _QKV_THIRDS else watch_block)(level)
            stack.callback(handle.remove)
        yield recorded


def _project(attention: nn.Module, tokens: torch.Tensor, third: int) -> torch.Tensor:
    """Project tokens to queries, keys or values; not every model calls its `qkv` as a module."""
    bias = attention.qkv.bias
    if bias is not None:
        bias = bias.chunk(3)[third]
    elif getattr(attention, "q_bias", None) is not None:  # BEiT
        bias = (attention.q_bias, attention.k_bias, attention.v_bias)[third]
    return F.linear(tokens, attention.qkv.weight.chunk(3)[third], bias)
