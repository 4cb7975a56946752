"""A moving average of the weights: it is validated, saved and evaluated in their place."""

from typing import Any, Dict, Iterable, List, Optional

import torch
from diffusers.training_utils import EMAModel
from pytorch_lightning import Callback, LightningModule, Trainer

STATE = "averaging"  # our key in checkpoints


class AverageWeights(Callback):
    """Keep an exponential moving average of the trained weights, as is usual for diffusion models.

    Validation uses the averages, and checkpoints hold them as the model's weights: loading one needs no knowledge of
    the averaging. The weights of training are saved beside them as tensors, so that a run resumes where it stopped.
    Frozen weights, such as the guidance's, and buffers are not averaged.

    Args:
        decay: of the average, in [0, 1). After n steps it is at most n / (9 + n), so that the untrained weights soon
            have no part in the average.

    Raises:
        ValueError: decay is outside its range.
    """

    def __init__(self, decay: float = 0.9999):
        if not 0 <= decay < 1:
            raise ValueError(f"decay must be at least 0 and below 1, got {decay}.")
        self.decay = decay
        self.names: List[str] = []
        self.average: Optional[EMAModel] = None
        self.training_weights: Optional[List[torch.Tensor]] = None  # a copy during validation
        self.steps = 0

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start from the current weights, unless a checkpoint has given averages."""
        if self.average is None:
            self.names = [name for name, weight in pl_module.named_parameters() if weight.requires_grad]
            self.average = EMAModel(self._weights(pl_module), self.decay)
        self.average.to(pl_module.device)
        self.steps = trainer.global_step

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Update the average after an optimiser step; not every batch ends one."""
        if trainer.global_step > self.steps:
            self.steps = trainer.global_step
            self.average.step(self._weights(pl_module))

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Copy the averages into the model."""
        if self.average is not None:
            weights = self._weights(pl_module)
            self.training_weights = [weight.detach().clone() for weight in weights]
            self.average.copy_to(weights)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Restore the weights of training."""
        if self.training_weights is not None:
            _copy(self.training_weights, self._weights(pl_module))
            self.training_weights = None

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: Dict[str, Any]) -> None:
        """Save the averages as the weights, and the weights of training beside them."""
        if self.average is not None:
            training = self._weights(pl_module) if self.training_weights is None else self.training_weights
            steps = self.average.optimization_step
            weights = {name: weight.detach() for name, weight in zip(self.names, training)}
            checkpoint[STATE] = {"steps": steps, "weights": weights}
            checkpoint["state_dict"].update(zip(self.names, self.average.shadow_params))

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: Dict[str, Any]) -> None:
        """Take the averages from the model, which has loaded them, and give it the weights of training."""
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
