"""The LightningModule that trains and evaluates a model of routed modules."""

import functools
import operator
from typing import Any, Callable, Optional, Union

import pytorch_lightning as pl
import torch
from torch import Tensor, nn

from ocl._loader.random_state import get_random_state, set_random_state
from ocl.metrics.means import SampleMean
from ocl.optimization import OptimizationWrapper
from ocl.utils.checkpoints import load_weights
from ocl.utils.routing import Combined


class CombinedModel(pl.LightningModule):
    """Run modules on a batch, sum their losses, and log losses, metrics and visualizations.

    Args:
        models: modules that run in this order, or one module; called with
            `inputs={"input": batch, "model": self}`.
        optimizers: name to `OptimizationWrapper`, or to a function from parameters to an optimizer.
        losses: name to module, called with `inputs=outputs`; returns a scalar, or a scalar and further
            outputs, which go to `losses.<name>`.
        visualizations: name to visualization method, called with `inputs=outputs`.
        training_metrics: name to metric, logged every step. Metrics get the outputs as keywords, so no model
            may be named like an argument of a metric's `update` (such as `prediction` or `target`).
        evaluation_metrics: name to metric, logged per validation.
        vis_log_frequency: training steps between visualizations.
    """

    def __init__(
        self,
        models: Union[dict[str, nn.Module], nn.Module],
        optimizers: dict[str, Union[OptimizationWrapper, Callable]],
        losses: dict[str, nn.Module],
        visualizations: dict[str, Callable],
        training_metrics: Optional[dict[str, Any]] = None,
        evaluation_metrics: Optional[dict[str, Any]] = None,
        vis_log_frequency: int = 100,
    ):
        super().__init__()
        self.models = models if isinstance(models, nn.Module) else Combined(**models)
        self.optimizer_builders, self.visualizations = optimizers, visualizations
        self.losses = nn.ModuleDict(losses)
        self.validation_losses: Any = nn.ModuleDict({name: SampleMean() for name in (*losses, "loss_total")})
        self.training_metrics: Any = nn.ModuleDict(training_metrics or {})
        self.evaluation_metrics: Any = nn.ModuleDict(evaluation_metrics or {})
        self.vis_log_frequency, self.return_outputs_on_validation = vis_log_frequency, False

    @classmethod
    def load_from_checkpoint(  # type: ignore[override]  # the options of Lightning's that unpickle are left out
        cls, checkpoint_path: Any, map_location: Any = None, **kwargs: Any
    ) -> "CombinedModel":
        """Build a model and load its weights, without unpickling anything.

        Args:
            checkpoint_path: checkpoint of the same model.
            map_location: device to move the model to.
            **kwargs: arguments of the constructor.
        """
        model = cls(**kwargs)
        load_weights(model, str(checkpoint_path))
        return model if map_location is None else model.to(map_location)

    def forward(self, batch: dict[str, Any]) -> dict[str, Any]:
        return self.models(inputs={"input": batch, "model": self})

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        outputs, losses, total = self._forward_and_losses(batch)
        options = dict(on_step=True, on_epoch=False, batch_size=batch["batch_size"])
        for name, value in losses.items():
            self.log(f"train/{name}", value.detach(), **options)
        with torch.no_grad():
            for name, metric in self.training_metrics.items():
                metric(**outputs)
                self.log(f"train/{name}", metric, **options)
            if self.trainer.global_step % self.vis_log_frequency == 0:
                self._visualize(outputs, "train")
        return total

    def validation_step(self, batch: dict[str, Any], batch_idx: int) -> Optional[dict[str, Any]]:
        outputs, losses, _ = self._forward_and_losses(batch)
        options = dict(on_step=False, on_epoch=True, batch_size=batch["batch_size"])
        for name, value in losses.items():
            # Lightning's own mean of a number is wrong if ranks have different numbers of samples.
            mean = self.validation_losses[name]
            mean.update(value.detach().expand(batch["batch_size"]))
            self.log(f"val/{name}", mean, **options)
        for name, metric in self.evaluation_metrics.items():
            metric.update(**outputs)
            self.log(f"val/{name}", metric, **options)
        if batch_idx == 0:
            self._visualize(outputs, "val")
        return outputs if self.return_outputs_on_validation else None

    def on_validation_start(self) -> None:
        # Ranks can have different numbers of batches, so that they must not exchange buffers in each forward.
        self._set_buffer_exchange(False)
        self._random_state = get_random_state()

    def on_validation_epoch_end(self) -> None:
        # Before checkpoints are saved: training continues as if there had been no validation,
        # and so does a training that is resumed without it.
        self._set_buffer_exchange(True)
        set_random_state(self._random_state)

    def _set_buffer_exchange(self, on: bool) -> None:
        if isinstance(self.trainer.model, nn.parallel.DistributedDataParallel):
            self.trainer.model.require_forward_param_sync = on

    def predict_step(self, batch: dict[str, Any], batch_idx: int, dataloader_idx: int = 0) -> dict[str, Any]:
        outputs = self(batch)
        return {name: value for name, value in outputs.items() if name != "model"}

    def configure_optimizers(self) -> Any:
        return [
            build(self) if isinstance(build, OptimizationWrapper) else build(self.parameters())
            for _, build in sorted(self.optimizer_builders.items())
        ]

    def _forward_and_losses(self, batch: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Tensor], Tensor]:
        """Return the outputs, with the losses or their further outputs, the losses to log by name, and their sum."""
        if not self.losses:
            raise ValueError("The model has no losses: it can predict, but not be trained or validated.")
        outputs = self(batch)
        losses, outputs["losses"] = {}, {}
        for name, loss in self.losses.items():
            result = loss(inputs=outputs)
            losses[name], outputs["losses"][name] = result if isinstance(result, tuple) else (result, result)
        total = functools.reduce(operator.add, losses.values())
        return outputs, {**losses, "loss_total": total} if len(losses) > 1 else losses, total

    def _visualize(self, outputs: dict[str, Any], phase: str) -> None:
        experiment = getattr(self.logger, "experiment", None)
        if experiment is None or not self.trainer.is_global_zero:
            return
        for name, visualize in self.visualizations.items():
            shown = visualize(inputs=outputs)
            images = {f".{key}": image for key, image in shown.items()} if isinstance(shown, dict) else {"": shown}
            for suffix, image in images.items():
                # Many loggers cannot show images, or not all kinds of them.
                method = getattr(image, "experiment_method", None)
                if image is not None and (method is None or hasattr(experiment, method)):
                    image.add_to_experiment(
                        experiment=experiment, tag=f"{phase}/{name}{suffix}", global_step=self.trainer.global_step
                    )
