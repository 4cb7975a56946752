"""Lightning callbacks: frozen and restored parts, schedules, progress in words, and stopping on a signal."""

import logging
import os
import re
import signal
import sys
import threading
from typing import Any, Optional

import pytorch_lightning as pl
from hydra.utils import to_absolute_path
from pytorch_lightning import LightningModule, Trainer

from ocl.optimization import check_parameter_groups, select_parameters
from ocl.scheduling import HPScheduler
from ocl.utils.checkpoints import load_weights

log = logging.getLogger(__name__)


class FreezeParameters(pl.Callback):
    """Exclude parameters from training by clearing `requires_grad`; nothing else about them changes.

    Args:
        parameter_groups: groups with `params` and optionally `predicate`, as in `ocl.optimization.OptimizationWrapper`.

    Raises:
        ValueError: if a group is malformed, or, when fitting starts, if a path does not exist.
    """

    def __init__(self, parameter_groups: list[dict[str, Any]]):
        self.parameter_groups = check_parameter_groups(parameter_groups)

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if stage == "fit":  # before distributed wrappers look at which parameters need gradients
            self.on_fit_start(trainer, pl_module)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        for group in self.parameter_groups:
            for parameter in select_parameters(pl_module, group):
                parameter.requires_grad_(False)


class RestoreParameterSubset(pl.Callback):
    """Load a part of the model from the checkpoint of another run before training, unless the run is resumed.

    Args:
        checkpoint_file: checkpoint; a relative path starts at the folder the program was started in.
        target_path: dotted path of the submodule to load into.
        source_path: dotted path of the same submodule in the checkpoint, by default `target_path`.
    """

    def __init__(self, checkpoint_file: str, target_path: str, source_path: Optional[str] = None):
        self.checkpoint_file = to_absolute_path(checkpoint_file)
        self.target_path, self.source_path = target_path, target_path if source_path is None else source_path

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.ckpt_path is None:
            load_weights(pl_module, self.checkpoint_file, self.target_path, self.source_path)


class UpdateHyperparameterScheduling(pl.Callback):
    """Tell every `HPScheduler` below the model the global step."""

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        update_global_step(pl_module, 0)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        update_global_step(pl_module, trainer.global_step)


def update_global_step(model: LightningModule, global_step: int) -> None:
    """Move all schedules below `model` to a step."""
    for module in model.modules():
        if isinstance(module, HPScheduler):
            module.update_global_step(global_step)


class SetEpochEnvironmentVariable(pl.Callback):
    """Keep the current epoch in the environment variable `EPOCH`, where later data workers find it."""

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str = "fit") -> None:
        os.environ["EPOCH"] = str(trainer.current_epoch)

    on_train_epoch_start = setup

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        # The first workers of a resumed run start before the trainer knows its epoch.
        os.environ["EPOCH"] = str(checkpoint["loops"]["fit_loop"]["epoch_progress"]["current"]["processed"])


class LogProgress(pl.Callback):
    """Write a line per validation, and 20 over the training where no progress bar shows it."""

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        silent = trainer.progress_bar_callback is None and trainer.max_steps > 0
        if silent and trainer.global_step % max(1, trainer.max_steps // 20) == 0:
            self._log(trainer, "train/")

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not trainer.sanity_checking:
            self._log(trainer, "val/")

    @staticmethod
    def _log(trainer: Trainer, phase: str) -> None:
        if trainer.is_global_zero:
            metrics = sorted(item for item in trainer.callback_metrics.items() if item[0].startswith(phase))
            values = ", ".join(f"{name} {float(value):.4g}" for name, value in metrics)
            log.info("step %d: %s", trainer.global_step, values or "no metrics")


class Interrupted(SystemExit):
    """Training was stopped by a signal; the exit status is the conventional 128 + signal."""


# Schedulers announce the end of a job by SIGTERM or SIGUSR1, which Windows lacks.
STOP_SIGNALS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGUSR1") if hasattr(signal, name)]


class StopOnSignal(pl.Callback):
    """On Ctrl-C, SIGTERM or SIGUSR1 finish the step, save a checkpoint, say how to continue, and exit.

    A second signal stops at once. The exit status is 128 + signal: 130, 143 or 138.
    """

    _signal: Optional[int] = None  # the one that asked to stop

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # Lightning has registered its own handlers by now, and puts the original ones back when it is done.
        self._process = os.getpid()
        if threading.current_thread() is threading.main_thread():
            for signum in STOP_SIGNALS:
                signal.signal(signum, self._request)

    on_sanity_check_start = on_train_start

    def _request(self, signum: int, frame: Any) -> None:
        signal.signal(signum, signal.default_int_handler if signum == signal.SIGINT else signal.SIG_DFL)
        if os.getpid() == self._process:
            self._signal = signum
            print(f"\n{signal.Signals(signum).name}: stopping after this step.", file=sys.stderr, flush=True)
        elif signum != signal.SIGINT:  # a data worker that has inherited this handler
            os.kill(os.getpid(), signum)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        # A checkpoint has no place for the gradients of half a step, and all ranks have to leave after the same one.
        done = (batch_idx + 1) % trainer.accumulate_grad_batches == 0 or trainer.is_last_batch
        if done and trainer.strategy.reduce_boolean_decision(self._signal is not None, all=False):
            self._save_and_exit(trainer)

    def on_validation_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        # Ranks can have different numbers of validation batches: they agree after the next training step.
        self._stop_if_alone(trainer)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        # Ctrl-C reaches data workers as well, so that the next batch can fail before the step is over.
        if isinstance(exception, RuntimeError):
            self._stop_if_alone(trainer)

    def _stop_if_alone(self, trainer: Trainer) -> None:
        if self._signal is not None and trainer.world_size == 1:
            self._save_and_exit(trainer)

    def _save_and_exit(self, trainer: Trainer) -> None:
        saving: Any = trainer.checkpoint_callback
        if getattr(saving, "dirpath", None) and trainer.global_step > 0 and not trainer.sanity_checking:
            path = os.path.join(saving.dirpath, f"epoch={trainer.current_epoch}-step={trainer.global_step}.ckpt")
            if "{step" in (saving.filename or ""):  # named like the others, unless it would look like the best one
                path = saving.format_checkpoint_name({"epoch": trainer.current_epoch, "step": trainer.global_step})
            trainer.save_checkpoint(path, weights_only=False)
            if trainer.is_global_zero:
                log.warning("Interrupted at step %d, saved %s", trainer.global_step, path)
                path = os.path.abspath(path)
                plain = re.fullmatch(r"[\w/.+-]+", path, re.ASCII)  # anything else needs quotes for Hydra and the shell
                override = f"load_checkpoint={path}" if plain else f"\"load_checkpoint='{path}'\""
                log.warning("To continue, repeat the command with %s", override)
        # The launcher kills the first process of a node if another one reports a failure.
        raise Interrupted(128 + (self._signal or signal.SIGTERM) if trainer.local_rank == 0 else 0)
