"""Backbones of the timm library as feature extractors."""

import contextlib
import re
from typing import Any, Optional, Union

import timm
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import ocl.feature_extractors.timm_models  # noqa: F401  registers further models
from ocl.feature_extractors import utils
from ocl.typing import ImageData

Levels = Union[int, str, list[Union[int, str]]]

_QKV = ("query", "key", "value")


class TimmFeatureExtractor(utils.ImageFeatureExtractor):
    """Features of a timm model, taken wherever asked.

    Vision transformers (names starting with `vit` or `beit`) describe a level as `block`, `key`, `query`,
    `value` or `cls`, followed by the number of the block, counted from 1; a bare number means `block`. Blocks
    behind the last one used are removed. Of all other models a level is an index into timm's feature pyramid.

    Args:
        model_name: name of a timm model.
        feature_level: level or levels to return; several are concatenated. For vision transformers the
            default are the normalized tokens at the end.
        aux_features: further levels of vision transformers, returned by name (`block3`) in `aux_features`.
        pretrained: load pretrained weights.
        freeze: train none of the parameters; models with batch normalization also keep its statistics.
        n_blocks_to_unfreeze: train the last blocks and the final norm of a frozen vision transformer anyway.
        unfreeze_attention: train the attention modules of a frozen vision transformer anyway.

    Raises:
        ValueError: if a level does not exist in this model.
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
        self.model: Any  # timm's models share no class that says what they have
        self.is_vit = model_name.startswith(("vit", "beit"))
        levels, aux_levels = _as_list(feature_level), _as_list(aux_features)
        if self.is_vit:
            self.levels, self.aux_levels = [_parse(x) for x in levels], [_parse(x) for x in aux_levels]
            self.model = timm.create_model(model_name, pretrained=pretrained, num_classes=0)
            self._remove_unused_parts()
            self.feature_dim = self.model.embed_dim * max(1, len(self.levels))
        else:
            if aux_features is not None or len(levels) != 1 or not str(levels[0]).isdigit():
                raise ValueError(
                    f"{model_name} needs exactly one number as feature_level and no aux_features, "
                    f"got {feature_level!r} and {aux_features!r}."
                )
            self.model = timm.create_model(
                model_name, pretrained=pretrained, features_only=True, out_indices=(int(levels[0]),)
            )
            self.feature_dim = self.model.feature_info.channels()[0]
        if freeze:
            self._freeze(n_blocks_to_unfreeze, unfreeze_attention)
        self._keep_eval = freeze and any(isinstance(module, nn.BatchNorm2d) for module in self.model.modules())
        self.train()

    def _remove_unused_parts(self) -> None:
        last, depth = max((n for _, n in self.levels + self.aux_levels), default=0), len(self.model.blocks)
        if last > depth:
            raise ValueError(f"Block {last} was asked for, but the model has only {depth} blocks.")
        if self.levels:
            self.model.prune_intermediate_layers([last - 1], prune_norm=True, prune_head=True)
        else:
            self.model.fc_norm = nn.Identity()  # belongs to the classifier

    def _freeze(self, n_blocks_to_unfreeze: int, unfreeze_attention: bool) -> None:
        if (n_blocks_to_unfreeze or unfreeze_attention) and not self.is_vit:
            raise ValueError("Only the blocks and the attention of vision transformers can be unfrozen.")
        self.model.requires_grad_(False)
        if n_blocks_to_unfreeze:
            self.model.blocks[-n_blocks_to_unfreeze:].requires_grad_(True)
            self.model.norm.requires_grad_(True)
        if unfreeze_attention:
            for block in self.model.blocks:
                block.attn.requires_grad_(True)

    def train(self, mode: bool = True) -> "TimmFeatureExtractor":
        """Switch to training mode, except for a frozen model with batch normalization."""
        super().train(mode)
        if self._keep_eval:
            self.model.eval()
        return self

    def forward_images(self, images: ImageData) -> utils.ForwardOutput:
        """Turn images (b, 3, h, w) into features (b, n, d), positions (n, 2) and a dict of further levels."""
        if not self.is_vit:
            return (*utils.cnn_compute_positions_and_flatten(self.model(images)[0]), None)
        recorded: dict[tuple[str, int], Tensor] = {}
        with contextlib.ExitStack() as hooks:
            for level in self.levels + self.aux_levels:
                hooks.callback(self._watch(level, recorded).remove)
            tokens = self.model.forward_features(images)[:, self.model.num_prefix_tokens :]
        if self.levels:
            tokens = torch.cat([recorded[level] for level in self.levels], dim=-1)
        aux = {f"{kind}{number}": recorded[kind, number] for kind, number in self.aux_levels}
        return tokens, utils.transformer_compute_positions(tokens), aux or None

    def _watch(self, level: tuple[str, int], recorded: dict[tuple[str, int], Tensor]) -> Any:
        """Store a level (b, n, d) whenever the model runs, until the returned hook is removed."""
        kind, number = level
        block, n_prefix = self.model.blocks[number - 1], self.model.num_prefix_tokens

        def project(attention: nn.Module, args: tuple) -> None:
            recorded[level] = _project(attention, args[0][:, n_prefix:], _QKV.index(kind))

        def pick(block: nn.Module, args: tuple, output: Tensor) -> None:
            recorded[level] = output[:, :1] if kind == "cls" else output[:, n_prefix:]

        return block.attn.register_forward_pre_hook(project) if kind in _QKV else block.register_forward_hook(pick)


def _as_list(levels: Optional[Levels]) -> list[Union[int, str]]:
    return [levels] if isinstance(levels, (int, str)) else list(levels or ())


def _parse(level: Union[int, str]) -> tuple[str, int]:
    match = re.fullmatch(r"(block|key|query|value|cls)?([1-9]\d*)", str(level))
    if match is None:
        raise ValueError(
            f"Unknown feature level {level!r}: expected block, key, query, value or cls "
            "and the number of a block, counted from 1, such as key12."
        )
    return match[1] or "block", int(match[2])


def _project(attention: Any, tokens: Tensor, third: int) -> Tensor:
    """Project tokens to queries, keys or values; not every model calls its `qkv` as a module."""
    bias = attention.qkv.bias
    if bias is not None:
        bias = bias.chunk(3)[third]
    elif getattr(attention, "q_bias", None) is not None:  # BEiT
        bias = (attention.q_bias, attention.k_bias, attention.v_bias)[third]
    return F.linear(tokens, attention.qkv.weight.chunk(3)[third], bias)
