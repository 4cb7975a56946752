"""Learning-rate schedules, and hyper-parameters that follow the global step."""

import abc
import math
import operator
from typing import Any, Callable, Literal, Optional

from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler, ReduceLROnPlateau


def exponential_decay_with_optional_warmup(
    optimizer: Optimizer, decay_rate: float = 1.0, decay_steps: int = 10000, warmup_steps: int = 0
) -> dict[str, Any]:
    """Decay exponentially from the first step on, scaled by a linear warm-up.

    Args:
        optimizer: its learning rates are the starting values.
        decay_rate: factor reached after `decay_steps` steps.
        decay_steps: steps over which the learning rate falls by `decay_rate`.
        warmup_steps: steps of the warm-up, 0 for none.

    Returns:
        Lightning's description of a scheduler, stepped after every batch.
    """
    return _exponential_decay(optimizer, decay_rate, decay_steps, warmup_steps, first_step=0)


def exponential_decay_after_optional_warmup(
    optimizer: Optimizer, decay_rate: float = 1.0, decay_steps: int = 10000, warmup_steps: int = 0
) -> dict[str, Any]:
    """Warm up linearly, then decay exponentially counting from the end of the warm-up.

    Args:
        optimizer: its learning rates are the values after the warm-up.
        decay_rate: factor reached `decay_steps` steps after the warm-up.
        decay_steps: steps over which the learning rate falls by `decay_rate`.
        warmup_steps: steps of the warm-up, 0 for none.

    Returns:
        Lightning's description of a scheduler, stepped after every batch.
    """
    return _exponential_decay(optimizer, decay_rate, decay_steps, warmup_steps, first_step=warmup_steps)


def _exponential_decay(
    optimizer: Optimizer, decay_rate: float, decay_steps: int, warmup_steps: int, first_step: int
) -> dict[str, Any]:
    def factor(step: int) -> float:
        warmup = step / warmup_steps if step < warmup_steps else 1.0
        return warmup * decay_rate ** (max(0, step - first_step) / decay_steps)

    return {"lr_scheduler": {"scheduler": LambdaLR(optimizer, factor), "interval": "step"}}


def cosine_annealing_with_optional_warmup(
    optimizer: Optimizer,
    T_max: int = 100000,
    eta_min: float = 0.0,
    warmup_steps: int = 0,
    error_on_exceeding_steps: bool = False,
) -> dict[str, Any]:
    """Warm up linearly, then follow half a cosine down to `eta_min`.

    Args:
        optimizer: its learning rates are the values after the warm-up.
        T_max: number of steps, warm-up included, after which `eta_min` is reached.
        eta_min: final learning rate (absolute, the same for all parameter groups).
        warmup_steps: steps of the warm-up, 0 for none.
        error_on_exceeding_steps: raise a `ValueError` from step `T_max` on instead of staying at `eta_min`.

    Returns:
        Lightning's description of a scheduler, stepped after every batch.
    """
    scheduler = _CosineAnnealing(optimizer, T_max, eta_min, warmup_steps, error_on_exceeding_steps)
    return {"lr_scheduler": {"scheduler": scheduler, "interval": "step"}}


class _CosineAnnealing(LRScheduler):
    """The schedule of `cosine_annealing_with_optional_warmup`."""

    def __init__(
        self, optimizer: Optimizer, T_max: int, eta_min: float, warmup_steps: int, error_on_exceeding_steps: bool
    ):
        self.T_max, self.eta_min, self.warmup_steps = T_max, eta_min, warmup_steps
        self.error_on_exceeding_steps = error_on_exceeding_steps
        super().__init__(optimizer)

    def get_lr(self) -> list[Any]:
        step, n_steps = self.last_epoch - self.warmup_steps, self.T_max - self.warmup_steps
        if step < 0:
            return [base_lr * (self.last_epoch + 0.5) / self.warmup_steps for base_lr in self.base_lrs]
        if step >= n_steps and self.error_on_exceeding_steps:
            raise ValueError(f"The learning-rate schedule ends after T_max={self.T_max} steps.")
        # A cosine of a single step has no length to divide by.
        progress = step / max(1, n_steps - 1) if step < n_steps else 1.0
        height = 1 + math.cos(math.pi * progress)
        return [self.eta_min + (base_lr - self.eta_min) / 2 * height for base_lr in self.base_lrs]


def plateau_decay(
    optimizer: Optimizer,
    decay_rate: float = 1.0,
    patience: int = 10,
    monitor_metric: str = "val/lotal_loss",
    mode: Literal["min", "max"] = "min",
) -> dict[str, Any]:
    """Multiply the learning rate by `decay_rate` when a metric has stopped improving.

    Args:
        optimizer: its learning rates are the starting values.
        decay_rate: factor of each reduction; has to be below 1.
        patience: epochs without improvement to wait for.
        monitor_metric: logged name of the metric.
        mode: `"min"` or `"max"`, whether a low or a high metric is good.

    Returns:
        Lightning's description of a scheduler, stepped after every epoch.
    """
    scheduler = ReduceLROnPlateau(optimizer, mode=mode, factor=decay_rate, patience=patience)
    return {"lr_scheduler": {"scheduler": scheduler, "interval": "epoch", "monitor": monitor_metric}}


def _operators(operation: Callable) -> tuple[Callable, Callable]:
    """Return the methods of a schedule for an operation with the schedule on its left and on its right."""
    return (lambda self, other: operation(float(self), other)), (lambda self, other: operation(other, float(self)))


class HPScheduler(nn.Module, abc.ABC):
    """A hyper-parameter that depends on the global step and can be used like a float.

    It is a module without state, so that every scheduler below a model is found through the module tree.
    `ocl.callbacks.UpdateHyperparameterScheduling` tells it the step.
    """

    def __init__(self) -> None:
        super().__init__()
        self.last_global_step: Optional[int] = None

    @abc.abstractmethod
    def compute_scheduled_value(self) -> float:
        """Return the value at `self.last_global_step`."""

    def update_global_step(self, global_step: int) -> None:
        """Move the schedule to a step.

        Args:
            global_step: number of optimizer steps done so far.
        """
        self.last_global_step = global_step

    @property
    def _step(self) -> int:
        if self.last_global_step is None:
            raise RuntimeError(
                f"{type(self).__name__} has no value yet: add ocl.callbacks."
                "UpdateHyperparameterScheduling to the callbacks, or call update_global_step first."
            )
        return self.last_global_step

    def __float__(self) -> float:
        return float(self.compute_scheduled_value())

    __add__, __radd__ = _operators(operator.add)
    __sub__, __rsub__ = _operators(operator.sub)
    __mul__, __rmul__ = _operators(operator.mul)
    __truediv__, __rtruediv__ = _operators(operator.truediv)


class _Ramp(HPScheduler):
    """A way from one value to another between two steps, constant before and after."""

    def __init__(self, start_value: float, end_value: float, start_step: int, end_step: int):
        super().__init__()
        if start_step > end_step:
            raise ValueError(f"start_step={start_step} is after end_step={end_step}.")
        self.start_value, self.end_value = start_value, end_value
        self.start_step, self.end_step = start_step, end_step

    def progress(self) -> float:
        """Return the share of the steps that is done, in 0..1."""
        if self._step >= self.end_step:
            return 1.0
        return max(0, self._step - self.start_step) / max(1, self.end_step - self.start_step)


class LinearHPScheduler(_Ramp):
    """Go linearly from one value to another, constant before and after.

    Args:
        end_value: value from `end_step` on.
        end_step: step at which the ramp ends.
        start_value: value up to `start_step`.
        start_step: step at which the ramp starts.

    Raises:
        ValueError: if the ramp ends before it starts.
    """

    def __init__(self, end_value: float, end_step: int, start_value: float = 0.0, start_step: int = 0):
        super().__init__(start_value, end_value, start_step, end_step)

    def compute_scheduled_value(self) -> float:
        return self.start_value + self.progress() * (self.end_value - self.start_value)


class StepHPScheduler(HPScheduler):
    """Switch from one value to another.

    Args:
        end_value: value from `switch_step` on.
        switch_step: first step with the new value.
        start_value: value before.
    """

    def __init__(self, end_value: float, switch_step: int, start_value: float = 0.0):
        super().__init__()
        self.start_value, self.end_value, self.switch_step = start_value, end_value, switch_step

    def compute_scheduled_value(self) -> float:
        return self.start_value if self._step < self.switch_step else self.end_value


class CosineAnnealingHPScheduler(_Ramp):
    """Fall along half a cosine from one value to a lower one, constant before and after.

    Args:
        start_value: value up to `start_step`.
        end_value: value from `end_step` on, not above `start_value`.
        start_step: step at which the value starts to fall.
        end_step: step at which it has fallen.

    Raises:
        ValueError: if the value would rise, or the end comes before the start.
    """

    def __init__(self, start_value: float, end_value: float, start_step: int, end_step: int):
        super().__init__(start_value, end_value, start_step, end_step)
        if start_value < end_value:
            raise ValueError(f"start_value={start_value} is below end_value={end_value}.")

    def compute_scheduled_value(self) -> float:
        amplitude = (self.start_value - self.end_value) / 2
        return amplitude * math.cos(math.pi * self.progress()) + (self.start_value + self.end_value) / 2
