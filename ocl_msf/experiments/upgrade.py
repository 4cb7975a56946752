"""Bring a run of an earlier version up to date, so that it is evaluated, resumed and reported like a new one.

Its configuration is composed again from the overrides of its command, and the weights in its checkpoints take their
names of today. Nothing is written unless the model of the new configuration takes every checkpoint as it is.
"""

import re
import shutil
from pathlib import Path
from typing import Any, Dict, List

import hydra
import torch
from hydra_plugins.ocl_msf import FORMER_DATASETS, FORMER_SETTINGS
from omegaconf import DictConfig, OmegaConf

from ocl_msf._host import require_host
from ocl_msf.experiments.runs import Run, config_path
from ocl_msf.files import DataError, replacing

with require_host():
    from ocl.cli.train import build_model_from_config

# Parts of the names of weights, replaced in this order.
WEIGHTS = {".dino.vit.": ".vit.network.", ".dino.": ".vit."}
# Settings of parts that configs of earlier versions do not name, as the parts were then.
FORMER_PARTS = {
    "models.decoder.start": "plain",
    "models.decoder.dropout": 0.0,
    "models.decoder.betas": [1e-4, 0.02],
    "models.decoder.beta_schedule": "linear",
    "models.perceptual_grouping.normalize_memory": False,
    "models.recurrence.module.corrector.normalize_memory": False,
    "models.recurrence.module.predictor.normalize": False,
}
OVERRIDE = re.compile(r"(\+*)([^=]+)=(.*)", re.DOTALL)


def upgrade_run(folder: Path) -> bool:
    """Convert the run in a folder; its configuration of before stays beside the new one.

    Args:
        folder: of the run.

    Returns:
        Whether there was anything to convert.

    Raises:
        DataError: there is no run, its command cannot be composed any more, or a checkpoint does not fit the model.
    """
    run = Run.open(folder)
    if not run.outdated:
        return False
    overrides = [new for override in run.overrides for new in rename_override(override)]
    config = _compose(run, overrides)
    overrides += [f"{key}={value}" for key, value in _former_parts(run, config).items()]
    config = _compose(run, overrides)
    checkpoints = {path: _read(path) for path in [*run.checkpoints.values(), *folder.glob("*/*/untrained.ckpt")]}
    for path, checkpoint in checkpoints.items():
        _check(path, checkpoint["state_dict"], config)
    for path, checkpoint in checkpoints.items():
        with replacing(path) as file:
            torch.save(checkpoint, file)
    shutil.copyfile(config_path(folder), folder / "config" / "config.before-upgrade.yaml")
    _write(folder / "config" / "overrides.yaml", overrides)
    _write(config_path(folder), config)  # last: it says that the run is converted
    return True


def rename_override(override: str) -> List[str]:
    """Write an override of an earlier version as those of today.

    >>> rename_override("experiment.dino_weights=PATH")
    ['experiment.vit.weights=PATH']
    """
    parts = OVERRIDE.fullmatch(override)
    if not parts:
        return [override]
    plus, key, value = parts.groups()
    if key == "dataset" and value in FORMER_DATASETS:
        return f"{plus}dataset={FORMER_DATASETS[value]}".split(" ")
    return [f"{plus}{FORMER_SETTINGS.get(key, key)}={value}"]


def rename_weights(weights: Dict[str, Any]) -> Dict[str, Any]:
    """Give the weights of a model of an earlier version their names of today."""
    renamed = {}
    for name, weight in weights.items():
        for old, new in WEIGHTS.items():
            name = name.replace(old, new)
        renamed[name] = weight
    return renamed


def _compose(run: Run, overrides: List[str]) -> DictConfig:
    try:
        with hydra.initialize_config_module("configs", version_base="1.3"):
            return hydra.compose("training_config", overrides=overrides)
    except Exception as error:  # Hydra has many; all mean that the command is not one of this version
        command = " ".join(["ocl_train", *overrides])
        raise DataError(f"{run.folder} cannot be converted: its command, {command}, fails today: {error}") from error


def _former_parts(run: Run, config: DictConfig) -> Dict[str, Any]:
    """Settings that the run's own configuration does not have, with what stood for them."""
    return {
        key: value
        for key, value in FORMER_PARTS.items()
        if OmegaConf.select(config, key) is not None and OmegaConf.select(run.config, key) is None
    }


def _read(path: Path) -> Dict[str, Any]:
    """A checkpoint whose weights, averaged ones included, have their names of today."""
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # damage and pickled objects come as many types
        raise DataError(f"{path} cannot be read as a checkpoint ({error}). Remove it and try again.") from error
    checkpoint["state_dict"] = rename_weights(checkpoint["state_dict"])
    if "averaging" in checkpoint:
        checkpoint["averaging"]["weights"] = rename_weights(checkpoint["averaging"]["weights"])
    return checkpoint


def _check(path: Path, weights: Dict[str, Any], config: DictConfig) -> None:
    """Raise DataError unless the model of a configuration has these weights, by name and shape."""
    wanted = {name: getattr(x, "shape", None) for name, x in build_model_from_config(config).state_dict().items()}
    given = {name: getattr(x, "shape", None) for name, x in weights.items()}
    differing = sorted(name for name in {*wanted, *given} if wanted.get(name, 0) != given.get(name, 0))
    if differing:
        raise DataError(f"{path} does not fit the model that its command builds today: {', '.join(differing[:5])}.")


def _write(path: Path, content: Any) -> None:
    with replacing(path) as file:
        file.write(OmegaConf.to_yaml(content if OmegaConf.is_config(content) else OmegaConf.create(content)).encode())
