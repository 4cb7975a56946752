"""Evaluate a trained model: `ocl_eval +evaluation=eval train_config_path=RUN`, by default on one device.

`+trainer.devices=2` takes two; likewise any other argument of Lightning's trainer replaces that of the training.
"""

import json
import logging
import math
import os
import re
import tempfile
from dataclasses import dataclass
from typing import Any, Optional

import hydra
import pytorch_lightning as pl
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.utils import to_absolute_path
from omegaconf import MISSING, DictConfig
from torch import nn

from ocl.cli import eval_utils
from ocl.cli.cli_utils import find_checkpoint, hydra_1_1, hydra_main
from ocl.cli.train import build_and_register_datamodule_from_config, instantiate, use_progress_bar
from ocl.combined_model import CombinedModel
from ocl.utils.routing import Combined

log = logging.getLogger(__name__)

STAGES = {"train": "fit", "val": "validate", "test": "test"}


@dataclass
class EvaluationConfig:
    """What to evaluate, on what, and where to put the results."""

    train_config_path: str = MISSING
    train_config_overrides: Optional[list[str]] = None
    train_config_name: Optional[str] = None
    checkpoint_path: Optional[str] = None
    output_dir: Optional[str] = None
    report_filename: str = "metrics.json"
    modules: Any = None  # not an optional dict: overrides could not turn its None into one
    dataset: Any = None
    evaluation_metrics: Any = None
    save_outputs: bool = False
    skip_metrics: bool = False
    outputs_dirname: str = "outputs"
    outputs_to_store: Optional[list[str]] = None
    n_samples_to_store: Optional[int] = None
    eval_train: bool = False
    eval_val: bool = True
    eval_test: bool = False
    eval_batch_size: Optional[int] = None


ConfigStore.instance().store(name="evaluation_config", node=EvaluationConfig)


def find_train_config(config: DictConfig) -> str:
    """Return the absolute path of the training config, given as a file, a folder and a name, or a run folder.

    Raises:
        ValueError: if there is no such file.
    """
    path, name = to_absolute_path(config.train_config_path), config.train_config_name
    if name is None and not path.endswith((".yaml", ".yml")):
        in_run = os.path.join("config", "config.yaml")
        name = in_run if os.path.isfile(os.path.join(path, in_run)) else "config.yaml"
    if name is not None:
        path = os.path.join(path, name if name.endswith(".yaml") else f"{name}.yaml")
    if not os.path.isfile(path):
        raise ValueError(
            f"Training config {path} does not exist. train_config_path is a run folder, its "
            "config/config.yaml, or a folder of configs together with train_config_name."
        )
    return path


def resolve_paths(config: DictConfig) -> DictConfig:
    """Return the evaluation config with the files and folders it leaves open, as absolute paths.

    Raises:
        ValueError: if one of them does not exist.
    """
    config = config.copy()
    config.train_config_path = find_train_config(config)
    run_folder = os.path.dirname(os.path.dirname(config.train_config_path))
    try:
        config.checkpoint_path = to_absolute_path(config.checkpoint_path or find_checkpoint(run_folder))
    except IndexError as error:
        raise ValueError(f"{error} Train it until it saves one, or name another with checkpoint_path=PATH.") from error
    config.output_dir = to_absolute_path(config.output_dir or run_folder)
    for name, exists in (("checkpoint_path", os.path.isfile), ("output_dir", os.path.isdir)):
        if not exists(config[name]):
            raise ValueError(f"{name} {config[name]} does not exist.")
    return config


def load_train_config(path: str, overrides: Optional[list[str]], name: Optional[str] = None) -> DictConfig:
    """Compose a training config with overrides in Hydra's grammar.

    Args:
        path: the file.
        overrides: what to change in it.
        name: the last part of the path, by default the name of the file; groups are looked for in the folder before it.
    """
    path = path.removesuffix(".yaml")
    name = (name or os.path.basename(path)).removesuffix(".yaml")
    folder = os.path.normpath(path.removesuffix(name))
    overrides = ["hydra.searchpath=[pkg://configs]", *(overrides or [])]
    with hydra_1_1():
        outer = GlobalHydra.instance().hydra
        GlobalHydra.instance().clear()
        try:
            with hydra.initialize_config_dir(folder, version_base="1.1"):
                return hydra.compose(name, overrides=overrides)
        finally:
            GlobalHydra.instance().hydra = outer


def build_datamodule(config: DictConfig, train_config: DictConfig) -> pl.LightningDataModule:
    """Build the data of the evaluation or, if it has none of its own, of the training."""
    source, overrides = train_config, {}
    if config.dataset is not None:
        source, names = config, ("batch_size", "eval_batch_size")
        inherited = [name for name in names if name in train_config.dataset and name not in config.dataset]
        overrides = {name: train_config.dataset[name] for name in inherited}
    if config.eval_batch_size is not None:
        overrides["eval_batch_size"] = config.eval_batch_size
    return build_and_register_datamodule_from_config(source, **overrides)


def extend_model(model: CombinedModel, config: DictConfig) -> None:
    """Add the modules of the evaluation to a trained model, and exchange its metrics."""
    for name, module in (instantiate(config.modules) or {}).items():
        if not isinstance(model.models, Combined) or name in model.models:
            raise ValueError(
                f"Module `{name}` cannot be added: the model has one of this name already, or is not made "
                "of named modules. Change the model with train_config_overrides."
            )
        model.models[name] = module
    if config.skip_metrics:
        model.evaluation_metrics = nn.ModuleDict()
    elif config.evaluation_metrics is not None:
        model.evaluation_metrics = nn.ModuleDict(instantiate(config.evaluation_metrics))


def build_trainer(config: DictConfig, train_config: DictConfig) -> pl.Trainer:
    """Build the trainer of the training, on one device by default; it writes no files.

    Raises:
        ValueError: if outputs are to be stored by several processes, which cannot number them together.
    """
    callbacks = []
    if config.save_outputs:
        paths, count = config.outputs_to_store, config.n_samples_to_store
        callbacks = [eval_utils.ExtractDataFromPredictions(paths, max_samples=count, flatten_batches=True)]
    options = dict(
        devices=1,
        num_nodes=1,
        strategy="auto",
        plugins=None,
        callbacks=callbacks,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=use_progress_bar(train_config),
    )
    trainer = instantiate(train_config.trainer, **{**options, **config.get("trainer", {})})
    if config.save_outputs and trainer.world_size > 1:
        raise ValueError("save_outputs=true needs a single device: leave +trainer.devices out.")
    return trainer


def evaluate_split(
    config: DictConfig, trainer: pl.Trainer, model: CombinedModel, datamodule: Any, split: str
) -> dict[str, float]:
    """Evaluate a split, store outputs if they are asked for, and return losses and metrics by name.

    Raises:
        ValueError: If a loss is not finite.
    """
    datamodule.setup(STAGES[split])
    batches = getattr(datamodule, f"{split}_dataloader")()
    if config.save_outputs and config.n_samples_to_store is not None:
        batches = eval_utils.limit_samples(batches, config.n_samples_to_store)
    results = trainer.validate(model, dataloaders=batches, verbose=False)
    if not results:
        raise ValueError(f"Nothing of the {split} split was evaluated: it has no batch, or limit_val_batches is 0.")
    (metrics,) = results
    for extractor in trainer.callbacks:  # type: ignore[attr-defined]  # Lightning does not declare it
        if isinstance(extractor, eval_utils.ExtractDataFromPredictions):
            folder = os.path.join(config.output_dir, config.outputs_dirname, split)
            eval_utils.save_outputs(folder, extractor.get_outputs())
            log.info("Outputs of %s are in %s", split, folder)
    metrics = {re.sub("^val/", "", name): value for name, value in metrics.items()}
    refuse_diverged({name: metrics[name] for name in model.validation_losses if name in metrics}, split)
    if trainer.is_global_zero:
        log.info("%s: %s", split, list_metrics(metrics))
    return metrics


def list_metrics(metrics: dict[str, float]) -> str:
    """List names and values in one line, those called `<group>/<name>` in a line for each group behind it."""
    lines: dict[str, list[str]] = {"": []}
    for metric, value in metrics.items():
        group, _, name = metric.partition("/") if "/" in metric else ("", "", metric)
        lines.setdefault(group, []).append(f"{name} {value:.4g}")
    return "\n".join(f"  {group}: {', '.join(its)}" if group else ", ".join(its) for group, its in lines.items())


def refuse_diverged(losses: dict[str, float], split: str) -> None:
    """Raise a ValueError if a loss of a split is not finite."""
    for name, value in losses.items():
        if not math.isfinite(value):
            raise ValueError(
                f"The loss `{name}` is {value} on {split}: the training has diverged, or the data hold NaN. "
                "Evaluate an earlier checkpoint with checkpoint_path=PATH."
            )


def null_undefined(report: Any) -> Any:
    """Copy nested dicts, with None for numbers that JSON does not have: NaN and the infinities."""
    if isinstance(report, dict):
        return {name: null_undefined(value) for name, value in report.items()}
    return None if isinstance(report, float) and not math.isfinite(report) else report


def write_report(path: str, report: dict[str, Any]) -> None:
    """Write JSON, so that the file is there as a whole or not at all; what is not defined is null."""
    temporary = f"{path}.{os.getpid()}.tmp"
    with open(temporary, "w") as file:
        json.dump(null_undefined(report), file, indent=2, allow_nan=False)
        file.write("\n")
    os.replace(temporary, path)


def evaluate_splits(config: DictConfig, train_config: DictConfig, trainer: pl.Trainer) -> dict[str, Any]:
    """Build data and model as in training, and return losses and metrics of the splits that are asked for."""
    eval_utils.seed_from_config(train_config)
    datamodule = build_datamodule(config, train_config)
    model = eval_utils.build_trained_model(train_config, config.checkpoint_path)
    extend_model(model, config)
    model.return_outputs_on_validation = config.save_outputs
    datamodule.prepare_data()
    metrics = {}
    for split in STAGES:
        if config[f"eval_{split}"]:
            eval_utils.seed_from_config(train_config)  # the same numbers, whichever splits come before
            metrics[split] = evaluate_split(config, trainer, model, datamodule, split)
    return metrics


@hydra_main("evaluation_config")
def evaluate(config: DictConfig) -> None:
    """Evaluate the model of a training run and write the report.

    Raises:
        ValueError: if the training config, the checkpoint or the output folder does not exist, or outputs
            are to be saved without saying which.
    """
    if config.save_outputs and not config.outputs_to_store:
        raise ValueError("save_outputs=true needs `outputs_to_store`, paths such as [masks,input.image].")
    config = resolve_paths(config)
    train_config = load_train_config(config.train_config_path, config.train_config_overrides, config.train_config_name)
    trainer = build_trainer(config, train_config)
    if not trainer.is_global_zero:
        with tempfile.TemporaryDirectory() as config.output_dir:  # the first process writes what is kept
            evaluate_splits(config, train_config, trainer)
        return
    if trainer.limit_val_batches != 1.0:
        log.warning("Only a part is evaluated: trainer.limit_val_batches=%s", trainer.limit_val_batches)
    report = {name: config[name] for name in ("train_config_path", "checkpoint_path")}
    report["metrics"] = evaluate_splits(config, train_config, trainer)
    path = os.path.join(config.output_dir, config.report_filename)
    write_report(path, report)
    log.info("Report: %s", path)


if __name__ == "__main__":
    evaluate()
