"""Logging to MLflow, which is an optional dependency."""

import os
from collections.abc import Mapping, Sequence
from typing import Any, Optional, Union

import pytorch_lightning as pl
from hydra.core.hydra_config import HydraConfig
from omegaconf import OmegaConf
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


class LogHydraConfigCallback(LogHydraConfig):
    """Store the config files of the run, and its overrides and some values as hyper-parameters.

    Args:
        hydra_output_subdir: not used; Hydra knows the folder.
        additional_paths: paths of values in the config, or a dict of them by the name to store them under.
        skip_overrides: do not store the overrides.
    """

    def __init__(
        self,
        hydra_output_subdir: Optional[str] = None,
        additional_paths: Union[None, Sequence[str], Mapping[str, str]] = None,
        skip_overrides: bool = False,
    ):
        paths = additional_paths or {}
        self.paths = dict(paths) if isinstance(paths, Mapping) else {path: path for path in paths}
        self.skip_overrides = skip_overrides

    @rank_zero_only
    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        super().on_fit_start(trainer, pl_module)
        if not HydraConfig.initialized() or not trainer.loggers:
            return
        hydra = HydraConfig.get()
        values: dict[str, Any] = {}
        if not self.skip_overrides:
            values = dict(override.lstrip("+").split("=", 1) for override in hydra.overrides.task if "=" in override)
        if self.paths:
            config = OmegaConf.load(os.path.join(hydra.runtime.output_dir, hydra.output_subdir or "", "config.yaml"))
            values |= {name: OmegaConf.select(config, path) for name, path in self.paths.items()}
        for logger in trainer.loggers:
            logger.log_hyperparams(values)


class LogModelSummary(pl.Callback):
    """Store the summary of the model as an artifact."""

    @rank_zero_only
    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if isinstance(trainer.logger, MLFlowLogger):
            summary = summarize(pl_module, max_depth=2)
            trainer.logger.experiment.log_text(trainer.logger.run_id, str(summary), "model_summary.txt")


LogModelSummaryCallback = LogModelSummary  # OCLF's name
