"""Logging to MLflow, which is an optional dependency."""

import os
from typing import Any

import pytorch_lightning as pl
from hydra.core.hydra_config import HydraConfig
from pytorch_lightning.loggers import MLFlowLogger
from pytorch_lightning.loggers.logger import rank_zero_experiment
from pytorch_lightning.utilities.model_summary import summarize
from pytorch_lightning.utilities.rank_zero import rank_zero_only
from torch import Tensor
from torchvision.utils import make_grid


class ExtendedMLFlowLogger(MLFlowLogger):
    """Lightning's MLflow logger, which also shows images and figures.

    Raises:
        ModuleNotFoundError: if `mlflow` is not installed.
    """

    @property
    @rank_zero_experiment
    def experiment(self) -> Any:
        client = super().experiment  # creates the run
        return _ImageClient(client, self._run_id or "")


class _ImageClient:
    """An MLflow client with the methods of a TensorBoard writer that visualizations call."""

    def __init__(self, client: Any, run_id: str):
        self._client, self._run_id = client, run_id

    def __getattr__(self, name: str) -> Any:
        return getattr(self._client, name)

    def add_image(self, tag: str, img_tensor: Tensor, global_step: int, dataformats: str = "CHW") -> None:
        image = img_tensor if dataformats == "HWC" else img_tensor.permute(1, 2, 0)
        if image.is_floating_point():
            image = (image.clamp(0, 1) * 255).byte()
        self._client.log_image(self._run_id, image.cpu().numpy(), f"{tag}/{global_step:08d}.png")

    def add_images(self, tag: str, img_tensor: Tensor, global_step: int, dataformats: str = "NCHW") -> None:
        images = img_tensor if dataformats == "NCHW" else img_tensor.permute(0, 3, 1, 2)
        self.add_image(tag, make_grid(images), global_step)

    def add_figure(self, tag: str, figure: Any, global_step: int, close: bool = True) -> None:
        self._client.log_figure(self._run_id, figure, f"{tag}/{global_step:08d}.png")


class LogHydraConfig(pl.Callback):
    """Store the config files of the run as artifacts."""

    @rank_zero_only
    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if HydraConfig.initialized() and isinstance(trainer.logger, MLFlowLogger):
            hydra = HydraConfig.get()
            folder = os.path.join(hydra.runtime.output_dir, hydra.output_subdir or "")
            trainer.logger.experiment.log_artifacts(trainer.logger.run_id, folder, "config")


class LogModelSummary(pl.Callback):
    """Store the summary of the model as an artifact."""

    @rank_zero_only
    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if isinstance(trainer.logger, MLFlowLogger):
            summary = summarize(pl_module, max_depth=2)
            trainer.logger.experiment.log_text(trainer.logger.run_id, str(summary), "model_summary.txt")
