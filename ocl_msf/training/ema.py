"""A moving average of the weights, which is what is validated, saved and evaluated."""

from typing import Any, Dict, Iterable, List, Optional

import torch
from diffusers.training_utils import EMAModel
from pytorch_lightning import Callback, LightningModule, Trainer

STATE = "averaging"  # our key in checkpoints


class AverageWeights(Callback):
    """Average the trained weights exponentially over the steps, as is usual for diffusion models.

    Validation sees the averages, and they are what a checkpoint holds as the model's weights: whoever loads one gets
    them without knowing about averaging. The weights that training goes on with lie beside them as tensors, so that a
    run resumes where it stopped. Frozen weights, such as the guidance's, and buffers are not averaged.

    Args:
        decay: of the average, in [0, 1). After n steps it is at most n / (9 + n), so that short runs forget the
            untrained weights.

    Raises:
        ValueError: decay is outside its range.
    """

    def __init__(self, decay: float = 0.9999):
        if not 0 <= decay < 1:
            raise ValueError(f"decay must be at least 0 and below 1, got {decay}.")
        self.decay = decay
        self.names: List[str] = []
        self.average: Optional[EMAModel] = None
        self.set_aside: Optional[List[torch.Tensor]] = None  # the weights of training, during a validation
        self.steps = 0

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start from the weights as they are, unless a checkpoint has brought averages."""
        if self.average is None:
            self.names = [name for name, weight in pl_module.named_parameters() if weight.requires_grad]
            self.average = EMAModel(self._weights(pl_module), self.decay)
        self.average.to(pl_module.device)
        self.steps = trainer.global_step

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Take in the weights of a step, if this batch has made one."""
        if trainer.global_step > self.steps:
            self.steps = trainer.global_step
            self.average.step(self._weights(pl_module))

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Put the averages into the model."""
        if self.average is not None:
            weights = self._weights(pl_module)
            self.set_aside = [weight.detach().clone() for weight in weights]
            self.average.copy_to(weights)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Put the weights of training back."""
        if self.set_aside is not None:
            _copy(self.set_aside, self._weights(pl_module))
            self.set_aside = None

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: Dict[str, Any]) -> None:
        """Save the averages as the weights, and the weights of training beside them."""
        if self.average is not None:
            training = self._weights(pl_module) if self.set_aside is None else self.set_aside
            steps = self.average.optimization_step
            weights = {name: weight.detach() for name, weight in zip(self.names, training)}
            checkpoint[STATE] = {"steps": steps, "weights": weights}
            checkpoint["state_dict"].update(zip(self.names, self.average.shadow_params))

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: Dict[str, Any]) -> None:
        """Take the averages, which have been loaded into the model, and give it the weights of training."""
        if STATE in checkpoint:
            training = checkpoint[STATE]["weights"]
            self.names = list(training)
            weights = self._weights(pl_module)
            self.average = EMAModel(weights, self.decay)
            self.average.optimization_step = checkpoint[STATE]["steps"]
            _copy(training.values(), weights)

    def _weights(self, pl_module: LightningModule) -> List[torch.nn.Parameter]:
        weights = dict(pl_module.named_parameters())
        return [weights[name] for name in self.names]


@torch.no_grad()
def _copy(sources: Iterable[torch.Tensor], targets: Iterable[torch.Tensor]) -> None:
    for source, target in zip(sources, targets):
        target.copy_(source)
