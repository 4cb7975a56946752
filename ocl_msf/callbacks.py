"""Lightning callbacks the host lacks."""

from pathlib import Path
from typing import Optional

from hydra.utils import to_absolute_path
from pytorch_lightning import Callback, LightningModule, Trainer

from ocl_msf.checkpoints import find_finished, read_weights


class LoadGuidance(Callback):
    """Give the frozen guidance of stage 2 the weights of stage 1, before any data are loaded.

    A run that resumes takes its guidance from its own checkpoint, so stage 1's file is not needed again.

    Args:
        variant: of the VAE.
        search_folder: the runs of the stage-1 experiment, relative to the launch directory; the newest finished one of
            this variant is taken.
        command: the command that trains stage 1, for the message when there is none.
        checkpoint: a stage-1 checkpoint to take instead, relative to the launch directory.
        target: name of the FrozenGuidance among the models.
        source: dotted path of the VAE in the checkpoint.
    """

    def __init__(
        self,
        variant: str,
        search_folder: str,
        command: str,
        checkpoint: Optional[str] = None,
        target: str = "guidance",
        source: str = "models.vqvae",
    ):
        self.variant = variant
        self.search_folder = search_folder
        self.command = command
        self.checkpoint = checkpoint
        self.target = target
        self.source = source

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Load on the way into training, unless a checkpoint of stage 2 is about to be restored."""
        if stage != "fit" or trainer.ckpt_path is not None:
            return
        if self.checkpoint:
            path = Path(to_absolute_path(self.checkpoint))
        else:
            path = find_finished(Path(to_absolute_path(self.search_folder)), self.variant, self.command)
        try:
            pl_module.models[self.target].load(read_weights(path, self.source))
        except RuntimeError as error:
            raise ValueError(f"The guidance checkpoint {path} does not fit this experiment: {error}") from error


class SaveUntrained(Callback):
    """Keep the model as it was before the first step, for scores before and after training.

    Writes `untrained.ckpt` beside the folder of the run's checkpoints.
    """

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save, unless this run continues another."""
        if trainer.global_step == 0:
            trainer.save_checkpoint(Path(trainer.log_dir or trainer.default_root_dir) / "untrained.ckpt")
