"""Building a trained model again, and collecting and storing its outputs."""

import os
import pickle
from collections.abc import Callable, Iterator
from typing import Any, Optional

import numpy as np
import pytorch_lightning as pl
import torch
from omegaconf import DictConfig

from ocl.callbacks import update_global_step
from ocl.cli.train import build_and_register_datamodule_from_config, build_model_from_config
from ocl.combined_model import CombinedModel
from ocl.utils.checkpoints import load_weights
from ocl.utils.trees import get_tree_element, map_tree


def build_from_train_config(
    config: DictConfig, checkpoint_path: Optional[str], seed: bool = True
) -> tuple[pl.LightningDataModule, CombinedModel]:
    """Build the data module and the model of a training run.

    Args:
        config: training config.
        checkpoint_path: checkpoint with the weights, None for a model as before training. Schedules are set
            to its step.
        seed: seed all random number generators, with 0 if the config has no seed.

    Returns:
        The data module and the model.
    """
    if seed:
        seed_from_config(config)
    datamodule = build_and_register_datamodule_from_config(config)
    return datamodule, build_trained_model(config, checkpoint_path)


def build_trained_model(config: DictConfig, checkpoint_path: Optional[str]) -> CombinedModel:
    """Build the model of a training run with the weights and the step of a checkpoint."""
    model = build_model_from_config(config)
    checkpoint = load_weights(model, checkpoint_path) if checkpoint_path else {}
    update_global_step(model, checkpoint.get("global_step", 0))
    return model


def seed_from_config(config: DictConfig) -> None:
    """Seed all random number generators as in training, with 0 if the config has no seed."""
    pl.seed_everything(config.get("seed") or 0, workers=True)


def limit_samples(batches: Any, count: int) -> Iterator:
    """Yield batches until they hold `count` samples."""
    for batch in batches:
        yield batch
        count -= batch["batch_size"]
        if count <= 0:
            return


class ExtractDataFromPredictions(pl.Callback):
    """Collect some of the outputs of the model while it predicts or is validated.

    In validation there are outputs only if the model's `return_outputs_on_validation` is set.

    Args:
        paths: dotted paths into the outputs.
        output_paths: names for them, by default the paths.
        transform: applied to the dictionary of a batch.
        max_samples: number of samples (without `flatten_batches`: batches) to keep.
        flatten_batches: return a dictionary per sample instead of one per batch.

    Raises:
        ValueError: if the names are not as many as the paths.
    """

    def __init__(
        self,
        paths: list[str],
        output_paths: Optional[list[str]] = None,
        transform: Optional[Callable[[dict[str, Any]], dict[str, Any]]] = None,
        max_samples: Optional[int] = None,
        flatten_batches: bool = False,
    ):
        self.paths = list(paths)
        self.output_paths = self.paths if output_paths is None else list(output_paths)
        if len(self.output_paths) != len(self.paths):
            raise ValueError(f"{len(self.paths)} paths, but {len(self.output_paths)} names for them.")
        self.transform, self.max_samples, self.flatten_batches = transform, max_samples, flatten_batches
        self._outputs: list[dict[str, Any]] = []

    def get_outputs(self) -> list[dict[str, Any]]:
        """Return what was collected, as tensors in main memory."""
        return self._outputs

    def on_predict_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._outputs = []

    on_validation_start = on_predict_start

    def on_predict_batch_end(
        self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        if self.max_samples is not None and len(self._outputs) >= self.max_samples:
            return
        extracted = {
            name: map_tree(get_tree_element(outputs, path.split(".")), lambda tensor: tensor.detach().cpu())
            for name, path in zip(self.output_paths, self.paths)
        }
        if self.transform is not None:
            extracted = self.transform(extracted)
        size = batch["batch_size"]
        self._outputs += [pick(extracted, i, size) for i in range(size)] if self.flatten_batches else [extracted]
        self._outputs = self._outputs[: self.max_samples]

    on_validation_batch_end = on_predict_batch_end


def pick(value: Any, index: int, batch_size: int) -> Any:
    """Return one sample of a batch; what has no entry per sample belongs to all of them."""
    if isinstance(value, dict):
        return {name: pick(item, index, batch_size) for name, item in value.items()}
    has_entries = isinstance(value, (list, tuple)) or isinstance(value, (torch.Tensor, np.ndarray)) and value.ndim
    return value[index] if has_entries and len(value) == batch_size else value


def save_outputs(folder: str, outputs: list[dict[str, Any]]) -> None:
    """Write one file per sample and entry: `<number>.<name>.npy` for arrays, `.pkl` for everything else.

    Args:
        folder: folder to write to; made if missing.
        outputs: a dictionary per sample.
    """
    os.makedirs(folder, exist_ok=True)
    digits = len(str(len(outputs)))
    for number, output in enumerate(outputs):
        for name, value in output.items():
            stem = os.path.join(folder, f"{number:0{digits}}.{name}")
            if isinstance(value, (torch.Tensor, np.ndarray)):
                np.save(f"{stem}.npy", np.asarray(value))
            else:
                with open(f"{stem}.pkl", "wb") as file:
                    pickle.dump(value, file)
