"""Checkpoints of MSF's authors (Genera1Z/MultiScaleFusion, Genera1Z/VQ-VFM-OCL) as runs of ours.

Their models are those of `msf/preset=authors`, so an import is renaming: the table below, and the heads and projections
that are one matrix there and several here.
"""

import math
import re
from pathlib import Path
from typing import Any, Dict, List, Optional, Sequence, Tuple

import hydra
import torch
from omegaconf import DictConfig, OmegaConf

from ocl_msf._host import require_host
from ocl_msf.experiments.runs import config_path
from ocl_msf.files import DataError, replacing

with require_host():
    from ocl.cli.train import build_model_from_config

Weights = Dict[str, torch.Tensor]

# Beginnings of names there, as patterns, the first of which counts, and what stands for them here.
NAMES: List[Tuple[str, str]] = [
    (r"encode_backbone\.1\.", "feature_extractor.vit.network."),
    (r"encode_project\.0\.", "perceptual_grouping.positional_embedding.layers.1."),
    (r"encode_project\.1\.", "perceptual_grouping.positional_embedding.layers.2."),
    (r"encode_project\.3\.", "perceptual_grouping.positional_embedding.layers.4."),
    (r"initializ\.mean$", "conditioning.mean"),
    (r"initializ\.logstd$", "conditioning.log_deviation"),
    (r"aggregat\.norm1q\.", "perceptual_grouping.norm_slots."),
    (r"aggregat\.norm1kv\.", "perceptual_grouping.norm_features."),
    (r"aggregat\.proj_q\.", "perceptual_grouping.to_query."),
    (r"aggregat\.proj_k\.", "perceptual_grouping.to_key."),
    (r"aggregat\.proj_v\.", "perceptual_grouping.to_value."),
    (r"aggregat\.rnn\.", "perceptual_grouping.gru."),
    (r"aggregat\.norm2\.", "perceptual_grouping.norm_mlp."),
    (r"aggregat\.ffn\.", "perceptual_grouping.mlp."),
    (r"mediat\.encode\.1\.", "guidance.vae.encoder.layers."),
    (r"mediat\.encode\.2\.", "guidance.vae.encoder.norm."),
    (r"mediat\.encode\.3\.", "guidance.vae.encoder.project."),
    (
        r"mediat\.quant\.(\d+)\.codebook\.weight$",
        r"guidance.vae.quantizer.codebooks.\1.parametrizations.weight.original",
    ),
    (r"mediat\.quant\.(\d+)\.project\.", r"guidance.vae.quantizer.codebooks.\1.parametrizations.weight.0."),
    (r"mediat\.codebook\.templat\.weight$", "guidance.vae.quantizer.codebook.weight"),
    (r"decode\.bos$", "decoder.begin"),
    (r"decode\.posit_embed\._?pe$", "decoder.positions"),
    (r"decode\.norm0\.", "decoder.norm_input."),
    (r"decode\.backbone\.layers\.(\d+)\.norm1\.", r"decoder.blocks.\1.norm_self."),
    (r"decode\.backbone\.layers\.(\d+)\.norm2\.", r"decoder.blocks.\1.norm_cross."),
    (r"decode\.backbone\.layers\.(\d+)\.norm3\.", r"decoder.blocks.\1.norm_mlp."),
    (r"decode\.backbone\.layers\.(\d+)\.linear1\.", r"decoder.blocks.\1.mlp.0."),
    (r"decode\.backbone\.layers\.(\d+)\.linear2\.", r"decoder.blocks.\1.mlp.2."),
    (r"decode\.backbone\.layers\.(\d+)\.self_attn\.out_proj\.", r"decoder.blocks.\1.self_attention.to_output."),
    (r"decode\.backbone\.layers\.(\d+)\.self_attn\.in_proj_", r"decoder.blocks.\1.self_attention.to_all."),
    (r"decode\.backbone\.layers\.(\d+)\.multihead_attn\.out_proj\.", r"decoder.blocks.\1.cross_attention.to_output."),
    (r"decode\.backbone\.layers\.(\d+)\.multihead_attn\.in_proj_", r"decoder.blocks.\1.cross_attention.to_all."),
    (r"decode\.readout\.", "decoder.heads."),
    (r"decode\.backbone\.(\d+)\.", r"decoder.decoder.\1."),  # DINOSAUR's perceptron
    (r"decode\.backbone\.", "decoder.unet."),
]

# What their models have no weights for: counts of codes, flags, the VAE's decoder, which may come from stage 1.
OWN = re.compile(
    r"\.usage$|loaded$|_extra_state$|^guidance\.vae\.decoder\.|^decoder\.(mean|deviation|measured)$"
    r"|^decoder\.(blocks\.\d+\.)?norm_\w+\.bias$"
)


def import_checkpoint(
    checkpoint: Path,
    experiment: str,
    folder: Path,
    vae: Optional[Path] = None,
    settings: Sequence[str] = (),
) -> Path:
    """Write a run of ours with the weights of a trained model of theirs: SLATE, SlotDiffusion or DINOSAUR.

    Args:
        checkpoint: theirs, of stage 2.
        experiment: ours, such as `slate_coco`.
        folder: of the run, which must not exist.
        vae: their checkpoint of stage 1, whose decoder draws what slots say; without it pictures are black.
        settings: further overrides of the experiment, for models that are not as published.

    Returns:
        The folder.

    Raises:
        DataError: a file is damaged or holds pickled objects, the model is not one of these, does not fit the
            experiment, or the folder exists.
    """
    if folder.exists():
        raise DataError(f"{folder} exists. Move it away, or choose another folder by --out.")
    theirs = _read(checkpoint)
    overrides = [f"+experiment=msf/{experiment}", "+msf/preset=authors", *describe(theirs), *settings]
    try:
        with hydra.initialize_config_module("configs", version_base="1.3"):
            config = hydra.compose("training_config", overrides=overrides)
        model = build_model_from_config(config)
    except Exception as error:  # of many types; all mean that this is no such experiment
        raise DataError(f"{checkpoint} does not fit the experiment {experiment}: {error}") from error
    weights = model.state_dict()
    given = rename(theirs, weights)
    _check(checkpoint, given, weights)
    if "guidance.vae.encoder.norm.weight" in given:
        given.update(_decoder_of(vae, weights))
    for name, value in weights.items():
        if name.endswith("loaded") or name == "models.decoder.measured":
            value.fill_(1)
    for name, value in given.items():
        weights[f"models.{name}"] = value
    _write_run(folder, config, overrides, weights)
    return folder


def describe(theirs: Weights) -> List[str]:
    """The overrides of `msf/preset=authors` that say how a model of theirs differs from it, read off its weights."""
    overrides = []
    tables = [x for name, x in theirs.items() if re.fullmatch(r"mediat\.quant\.\d+\.codebook\.weight", name)]
    if tables:
        variant, table_dim = (
            ("gdr_tae", 2 * tables[0].shape[1]) if len(tables) == 2 else ("msf_tae", tables[0].shape[1])
        )
        overrides += [f"msf/variant={variant}", f"experiment.codebook_size={len(tables[0])}"]
        overrides += [f"+experiment.quantizer.table_dim={table_dim}"]
    elif "mediat.codebook.templat.weight" in theirs:
        size = len(theirs["mediat.codebook.templat.weight"])
        overrides += [
            "msf/variant=vq",
            f"experiment.quantizer.codebook_size={size}",
            f"experiment.codebook_sizes=[{size}]",
        ]
    if "mediat.encode.3.weight" in theirs:
        dim, hidden_dim = theirs["mediat.encode.3.weight"].shape[:2]
        overrides += [f"experiment.vae.dim={dim}", f"experiment.vae.hidden_dim={hidden_dim}"]
    if "initializ.mean" in theirs:
        slots, dim = theirs["initializ.mean"].shape[1:]
        overrides += [f"experiment.slots.number={slots}", f"experiment.slots.dim={dim}"]
    if "encode_project.1.weight" in theirs:
        hidden, dim = theirs["encode_project.1.weight"].shape
        overrides += [f"experiment.encoder.dim={dim}", f"experiment.encoder.hidden_dim={hidden}"]
    registers = theirs.get("encode_backbone.1.reg_token")
    if registers is not None:
        overrides.append("experiment.vit.name=vit_small_patch14_reg4_dinov2.lvd142m")
    if "encode_backbone.1.pos_embed" in theirs:
        table = theirs["encode_backbone.1.pos_embed"].shape[1] - (registers is None)
        overrides += [f"experiment.vit.grid={math.isqrt(table)}", f"experiment.image_size={16 * math.isqrt(table)}"]
    if "decode.bos" in theirs:
        layers = {name.split(".")[3] for name in theirs if name.startswith("decode.backbone.layers.")}
        overrides += [f"experiment.decoder.dim={theirs['decode.bos'].shape[-1]}"]
        overrides += [f"experiment.decoder.num_layers={len(layers)}"]
    if "decode.backbone.0.weight" in theirs:
        widths = [len(x) for name, x in theirs.items() if re.fullmatch(r"decode\.backbone\.\d+\.bias", name)]
        overrides.append(f"experiment.patch_decoder.features={widths[:-1]}".replace(" ", ""))
    return overrides


def rename(theirs: Weights, ours: Dict[str, Any]) -> Weights:
    """Weights of theirs by the names of ours, below `models.`; matrices that are several of ours are split.

    Raises:
        DataError: a weight of theirs has no counterpart.
    """
    given: Weights = {}
    for name, value in theirs.items():
        new = _new_name(name)
        if new is None:
            raise DataError(f"The checkpoint has {name}, which is in no model that can be imported: {KNOWN}")
        if ".to_all." in new:
            dim = value.shape[-1]
            given[new.replace("to_all", "to_query")], given[new.replace("to_all", "to_key_value")] = value.split(
                [dim, len(value) - dim]
            )
        elif new.startswith("decoder.heads."):
            sizes = [len(x) for head, x in ours.items() if head.startswith("models.decoder.heads.")]
            parts = value.split(sizes) if sum(sizes) == len(value) else [value]
            given.update({f"decoder.heads.{number}.weight": part for number, part in enumerate(parts)})
        else:
            given[new] = value
    if "models.decoder.pos_embed" in ours:  # DINOSAUR's
        given["decoder.pos_embed"] = given.pop("decoder.positions")
    return given


KNOWN = "SLATE, SlotDiffusion and DINOSAUR of Genera1Z/MultiScaleFusion and Genera1Z/VQ-VFM-OCL, of stage 2."


def _new_name(name: str) -> Optional[str]:
    for pattern, new in NAMES:
        match = re.match(pattern, name)
        if match:
            return match.expand(new) + name[match.end() :]
    return None


def _read(path: Path) -> Weights:
    """Their weights, without the wrapper's `m.`."""
    if not path.is_file():
        raise DataError(f"There is no checkpoint {path}.")
    try:
        weights = torch.load(path, map_location="cpu", weights_only=True)
        return {re.sub(r"^m\.", "", name): x for name, x in weights.items() if isinstance(x, torch.Tensor)}
    except Exception as error:  # damage and pickled objects come as many types
        raise DataError(
            f"{path} cannot be read as a checkpoint: it is damaged, or holds pickled objects, which are never loaded "
            f"({type(error).__name__})."
        ) from error


def _check(checkpoint: Path, given: Weights, weights: Dict[str, Any]) -> None:
    """Raise DataError unless all weights of ours are given, in their shapes, and no others."""
    own = {name[len("models.") :]: x for name, x in weights.items()}
    wanted = {name: x.shape for name, x in own.items() if isinstance(x, torch.Tensor) and not OWN.search(name)}
    shapes = {name: x.shape for name, x in given.items()}
    known = {name: x.shape for name, x in own.items() if name in shapes and isinstance(x, torch.Tensor)}
    differing = sorted(name for name in {*wanted, *shapes} if {**wanted, **known}.get(name) != shapes.get(name))
    if differing:
        raise DataError(f"{checkpoint} does not fit: {', '.join(differing[:5])} differ. Can be imported: {KNOWN}")


def _decoder_of(vae: Optional[Path], weights: Dict[str, Any]) -> Weights:
    """The decoder of their VAE of stage 1, or zeros."""
    beginning = "guidance.vae.decoder."
    own = {name[len("models.") :]: x for name, x in weights.items() if name.startswith(f"models.{beginning}")}
    if vae is None:
        return {name: torch.zeros_like(x) for name, x in own.items() if not name.endswith("loaded")}
    parts = {"0": "project", "1": "norm"}
    given = {}
    for name, value in _read(vae).items():
        match = re.match(r"decode\.(\d+)\.", name)
        if match and match.group(1) in parts:
            given[f"{beginning}{parts[match.group(1)]}.{name[match.end() :]}"] = value
        elif match:
            number, _, rest = name[match.end() :].partition(".")
            given[f"{beginning}layers.{int(number) + 2}.{rest}"] = value
    missing = sorted({name for name in own if not name.endswith("loaded")} - set(given))
    if missing:
        raise DataError(f"{vae} has no decoder of a VAE of stage 1 ({missing[0]} is missing).")
    return given


def _write_run(folder: Path, config: DictConfig, overrides: Sequence[str], weights: Dict[str, Any]) -> None:
    checkpoint = folder / "lightning_logs" / "version_0" / "checkpoints" / "epoch0000-step0000001.ckpt"
    written_by = {"pytorch-lightning_version": "2.0.0"}  # the oldest whose checkpoints are as this one
    with replacing(checkpoint) as file:
        torch.save({"state_dict": weights, "global_step": 1, "epoch": 0, **written_by}, file)
    with replacing(folder / "config" / "overrides.yaml") as file:
        file.write(OmegaConf.to_yaml(OmegaConf.create(list(overrides))).encode())
    with replacing(config_path(folder)) as file:  # last: with it the folder is a run
        file.write(OmegaConf.to_yaml(config).encode())
