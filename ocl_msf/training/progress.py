"""One-line training progress: a bar on a terminal, a line after each validation in a log."""

import logging
import sys
import time
from pathlib import Path
from typing import Optional

from pytorch_lightning import Callback, LightningModule, Trainer
from tqdm import tqdm

log = logging.getLogger(__name__)

# The first of these that a run logs is shown: name, label, factor, format.
SCORES = (("val/ari_fg", "ARI_fg", 100, ".1f"), ("val/loss_total", "loss", 1, ".4g"), ("val/tokens", "loss", 1, ".4g"))


class ShowProgress(Callback):
    """Show steps, speed, time left, and the last validation's ARI_fg in percent (in stage 1: its loss).

    Replaces Lightning's bar, which restarts with every epoch.
    """

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Disable Lightning's bar."""
        if stage == "fit" and trainer.progress_bar_callback is not None:
            trainer.progress_bar_callback.disable()

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Open the bar, at the current step."""
        self.title = Path(trainer.default_root_dir).resolve().parent.name
        self.first, self.begin = trainer.global_step, time.monotonic()
        self.bar: Optional[tqdm] = None
        if trainer.is_global_zero and sys.stderr.isatty():
            total = trainer.max_steps if trainer.max_steps > 0 else None
            options = dict(total=total, initial=self.first, unit="step", smoothing=0.05, dynamic_ncols=True)
            self.bar = tqdm(desc=self.title, file=sys.stderr, **options)

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_) -> None:
        """Advance the bar."""
        if self.bar is not None:
            self.bar.update(trainer.global_step - self.bar.n)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Show the score."""
        if trainer.sanity_checking or not trainer.is_global_zero or not hasattr(self, "bar"):
            return
        score = current_score(trainer)
        if self.bar is not None:
            self.bar.set_postfix_str(score)
            return
        done, seconds = trainer.global_step - self.first, time.monotonic() - self.begin
        parts = [f"step {trainer.global_step} of {trainer.max_steps}"]
        if done > 0:
            left = (trainer.max_steps - trainer.global_step) * seconds / done
            parts += [f"{done / seconds:.3g} steps/s", f"{tqdm.format_interval(left)} left"]
        log.info("%s: %s", self.title, ", ".join([*parts, score] if score else parts))

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Close the bar."""
        bar = self.__dict__.pop("bar", None)
        if bar is not None:
            bar.close()


def current_score(trainer: Trainer) -> str:
    """The score of the last validation as text; "" if none of `SCORES` is logged."""
    for name, label, factor, form in SCORES:
        if name in trainer.callback_metrics:
            return f"{label} {factor * float(trainer.callback_metrics[name]):{form}}"
    return ""
