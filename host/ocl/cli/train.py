"""Train a model from a config: `ocl_train +experiment=<name>`."""

import logging
import os
import sys
from typing import TYPE_CHECKING, Any, Optional

import hydra_zen
from hydra.utils import to_absolute_path
from omegaconf import DictConfig, OmegaConf

from ocl.cli.cli_utils import hydra_main
from ocl.cli.training_config import TrainerConf, TrainingConfig

if TYPE_CHECKING:  # functions import them, since composing or printing a config takes seconds less without
    import pytorch_lightning as pl

    from ocl.combined_model import CombinedModel

__all__ = [
    "TrainerConf",
    "TrainingConfig",
    "build_and_register_datamodule_from_config",
    "build_model_from_config",
    "build_trainer",
    "find_resume_checkpoint",
    "instantiate",
    "train",
    "use_progress_bar",
]

log = logging.getLogger(__name__)


def instantiate(config: Any, **kwargs: Any) -> Any:
    """Build the objects of a config, with containers as plain dicts and lists."""
    return hydra_zen.instantiate(config, _convert_="all", **kwargs)


def build_and_register_datamodule_from_config(config: DictConfig, **overrides: Any) -> "pl.LightningDataModule":
    """Build the data module of a config.

    Args:
        config: config with `dataset`.
        **overrides: arguments of the data module that replace those of the config.
    """
    return instantiate(config.dataset, **overrides)


def build_model_from_config(config: DictConfig, checkpoint_path: Optional[str] = None) -> "CombinedModel":
    """Build the model of a training config.

    Args:
        config: training config.
        checkpoint_path: checkpoint of this model to take the weights from.

    Raises:
        CheckpointError: if the checkpoint cannot be read or does not fit.
    """
    from ocl.combined_model import CombinedModel
    from ocl.utils.checkpoints import load_weights

    parts = {name: instantiate(config[name]) for name in ("models", "optimizers", "losses")}
    for name in ("visualizations", "training_metrics", "evaluation_metrics"):
        parts[name] = instantiate(config.get(name) or {})
    frequency = config.get("training_vis_frequency")
    model = CombinedModel(**parts, vis_log_frequency=100 if frequency is None else frequency)
    if checkpoint_path is not None:
        load_weights(model, checkpoint_path)
    return model


def build_trainer(config: DictConfig) -> "pl.Trainer":
    """Build the trainer of a training config, with what every training run gets on top."""
    import pytorch_lightning as pl

    from ocl.callbacks import LogProgress, StopOnSignal
    from ocl.utils.checkpoints import AtomicCheckpointIO

    trainer = config.trainer
    callbacks = instantiate(trainer.get("callbacks")) or []
    callbacks += [LogProgress(), StopOnSignal()]
    if trainer.get("logger") is not False:
        callbacks.append(pl.callbacks.LearningRateMonitor(logging_interval="step"))
    plugins = instantiate(trainer.get("plugins")) or []
    plugins = plugins if isinstance(plugins, list) else [plugins]
    if not any(isinstance(plugin, pl.plugins.CheckpointIO) for plugin in plugins):
        plugins.append(AtomicCheckpointIO())
    progress_bar = use_progress_bar(config)
    return instantiate(trainer, callbacks=callbacks, plugins=plugins, enable_progress_bar=progress_bar)


def use_progress_bar(config: DictConfig) -> bool:
    """Return what the config says; by default, whether the output is a terminal."""
    configured = config.trainer.get("enable_progress_bar")
    return sys.stdout.isatty() if configured is None else configured


def find_resume_checkpoint(config: DictConfig, model: "CombinedModel") -> Optional[str]:
    """Return the absolute path of the checkpoint to resume, after checking that it fits the model."""
    if not config.load_checkpoint:
        return None
    from ocl.utils.checkpoints import check_weights, load_checkpoint, select_weights

    path = to_absolute_path(config.load_checkpoint)
    state = select_weights(load_checkpoint(path), path)
    check_weights(model, state, f"Checkpoint {path} does not fit the model")
    return path


@hydra_main("training_config")
def train(config: DictConfig) -> None:
    """Train the model of a config in the current directory.

    Raises:
        FileNotFoundError: if there is no checkpoint to resume from at `load_checkpoint`.
        ValueError: if the config lacks a mandatory part.
    """
    parts = ("dataset", "models", "losses", "optimizers")
    missing = ", ".join(name for name in parts if OmegaConf.is_missing(config, name))
    if missing:
        raise ValueError(f"The config has no {missing}. Choose an experiment: +experiment=<name>.")
    from pytorch_lightning import seed_everything

    seed_everything(config.seed, workers=True)
    datamodule = build_and_register_datamodule_from_config(config)
    model = build_model_from_config(config)
    checkpoint = find_resume_checkpoint(config, model)
    trainer = build_trainer(config)
    log.info("Training in %s", os.getcwd())
    trainer.fit(model=model, datamodule=datamodule, ckpt_path=checkpoint)


if __name__ == "__main__":
    train()
