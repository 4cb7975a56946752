"""Finding and reading the checkpoints of stage 1, without unpickling anything."""

import re
from pathlib import Path
from typing import Any, Dict, List, NamedTuple, Optional

import torch
import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

STEP = re.compile(r"step=(\d+)\.ckpt$")


class Run(NamedTuple):
    """A training run: its folder, its settings below `experiment`, its last checkpoint, the steps made and wanted."""

    folder: Path
    settings: Dict[str, Any]
    checkpoint: Optional[Path]
    step: int
    max_steps: int

    @property
    def finished(self) -> bool:
        """Whether the newest checkpoint is of the last step."""
        return self.checkpoint is not None and self.step >= self.max_steps


def read_weights(path: Path, module: str) -> Dict[str, torch.Tensor]:
    """Read the weights of one module of a Lightning checkpoint.

    Args:
        path: the .ckpt file.
        module: dotted path of the module in the training model, such as `models.vqvae`.

    Returns:
        Its state dict.

    Raises:
        FileNotFoundError: no such file.
        ValueError: the file is damaged, holds pickled objects, or has no such module.
    """
    if not path.is_file():
        raise FileNotFoundError(f"There is no checkpoint {path}.")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)["state_dict"]
    except Exception as error:  # torch reports damage and pickles in many types; all mean: not a checkpoint to trust
        raise ValueError(
            f"{path} cannot be read as a checkpoint: it is damaged, is none, or holds pickled objects, which are never "
            f"loaded. Choose another checkpoint or train it again. ({type(error).__name__}: {error})"
        ) from error
    prefix = module + "."
    weights = {name[len(prefix) :]: value for name, value in state.items() if name.startswith(prefix)}
    if not weights:
        parts = sorted({".".join(name.split(".")[:2]) for name in state})
        raise ValueError(f"{path} holds no module '{module}' (it holds {', '.join(parts)}): is it of stage 1?")
    return weights


def find_runs(folder: Path) -> List[Run]:
    """List the runs `folder/<time>/`, newest first; folders without a readable configuration are left out."""
    configs = sorted(folder.glob("*/config/config.yaml"), key=lambda path: path.stat().st_mtime, reverse=True)
    return [run for run in map(_read_run, configs) if run]


def _read_run(config_path: Path) -> Optional[Run]:
    try:
        config = OmegaConf.load(config_path)
        settings = {name: _resolved(config.experiment, name) for name in config.experiment}
        max_steps = int(config.trainer.max_steps)
    except (OSError, yaml.YAMLError, OmegaConfBaseException, AttributeError, TypeError, ValueError):
        return None
    if max_steps < 1:
        return None
    folder = config_path.parent.parent
    steps = {path: STEP.search(path.name) for path in folder.glob("lightning_logs/version_*/checkpoints/*.ckpt")}
    made = sorted((int(found.group(1)), path) for path, found in steps.items() if found)
    step, checkpoint = made[-1] if made else (0, None)
    return Run(folder, settings, checkpoint, step, max_steps)


def _resolved(settings: DictConfig, name: str) -> Any:
    """One setting with its interpolations filled in; None where that needs what only training has."""
    try:
        value = settings[name]
        return OmegaConf.to_container(value, resolve=True) if OmegaConf.is_config(value) else value
    except OmegaConfBaseException:
        return None


def find_finished(folder: Path, wanted: Dict[str, Any], command: str) -> Path:
    """Find the checkpoint of the newest finished run with the wanted settings.

    Args:
        folder: holds the runs of one stage-1 experiment.
        wanted: settings below `experiment`, and their values.
        command: what makes such a run; goes into the message.

    Raises:
        FileNotFoundError: there is none; the message lists what there is and what to do.
    """
    runs = find_runs(folder)
    for run in runs:
        if run.finished and _settings(run, wanted) == wanted:
            return run.checkpoint
    lines = [f"Stage 2 needs a trained VAE with {_words(wanted)}, and {folder} holds no finished run of it."]
    for run in runs:
        lines.append(f"  found {run.folder}: {_words(_settings(run, wanted))}, step {run.step} of {run.max_steps}")
    lines.append(f"Train stage 1 first:  {command}")
    lines.append("or name a checkpoint:  experiment.vae_checkpoint=PATH")
    raise FileNotFoundError("\n".join(lines))


def _settings(run: Run, wanted: Dict[str, Any]) -> Dict[str, Any]:
    return {name: run.settings.get(name) for name in wanted}


def _words(settings: Dict[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in settings.items())
