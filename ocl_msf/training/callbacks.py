"""Lightning callbacks the host lacks."""

from pathlib import Path
from typing import Any, Callable, Dict, Optional

from hydra.utils import to_absolute_path
from pytorch_lightning import Callback, LightningModule, Trainer

from ocl_msf.experiments.checkpoints import read_weights
from ocl_msf.experiments.runs import find_finished


class LoadGuidance(Callback):
    """Give the frozen guidance of stage 2 the weights of stage 1, before any data are loaded.

    A run that resumes takes its guidance from its own checkpoint, so stage 1's file is not needed again.

    Args:
        wanted: settings below `experiment` that a run of stage 1 must share with this one, such as the variant.
        search_folder: the runs of the stage-1 experiment, relative to the launch directory; the newest finished one
            with these settings is taken.
        command: the command that trains stage 1, for the message when there is none.
        checkpoint: a stage-1 checkpoint to take instead, relative to the launch directory.
        target: name of the FrozenGuidance among the models.
        source: dotted path of the VAE in the checkpoint.
    """

    def __init__(
        self,
        wanted: Dict[str, Any],
        search_folder: str,
        command: str,
        checkpoint: Optional[str] = None,
        target: str = "guidance",
        source: str = "models.vqvae",
    ):
        self.wanted = wanted
        self.search_folder = search_folder
        self.command = command
        self.checkpoint = checkpoint
        self.target = target
        self.source = source

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Load on the way into training, unless a checkpoint of stage 2 has been restored.

        Raises:
            FileNotFoundError: there is no checkpoint to load.
            ValueError: it is damaged, or of another variant or shape.
        """
        guidance = pl_module.models[self.target]
        if guidance.loaded:
            return
        if self.checkpoint:
            path = Path(to_absolute_path(self.checkpoint))
        else:
            path = find_finished(Path(to_absolute_path(self.search_folder)), self.wanted, self.command)
        weights = read_weights(path, self.source)
        try:
            guidance.load(weights)
        except (RuntimeError, ValueError) as error:
            raise ValueError(f"The guidance checkpoint {path} does not fit this experiment: {error}") from error


class LoadDino(Callback):
    """Give the frozen ViT of an encoder its pretrained weights, before the first step.

    A run that resumes, and an evaluation, take them from the run's own checkpoint. An encoder without a ViT needs none.

    Args:
        weights: file of the DINO release or safetensors, relative to the launch directory; by default from timm's
            cache or hub.
        target: name of the encoder among the models, whose attribute `dino` is the ViT, or None.
    """

    def __init__(self, weights: Optional[str] = None, target: str = "feature_extractor"):
        self.weights = weights
        self.target = target

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Load on the way into training, unless a checkpoint has been restored.

        Raises:
            FileNotFoundError: there are no weights within reach.
            ValueError: they are damaged or of another model.
        """
        dino = pl_module.models[self.target].dino
        if dino is not None and not dino.loaded:
            dino.load(Path(to_absolute_path(self.weights)) if self.weights else None)


class SaveFinished(Callback):
    """Keep the model of the last step, also when that is no multiple of the interval between checkpoints."""

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save beside the other checkpoints, unless that step has been saved."""
        folder, step = Path(trainer.checkpoint_callback.dirpath), trainer.global_step
        missing = trainer.strategy.broadcast(not list(folder.glob(f"*step={step}.ckpt")))  # one rank looks, all agree
        if step >= trainer.max_steps and missing:
            trainer.save_checkpoint(folder / f"epoch={trainer.current_epoch}-step={step}.ckpt")


class SaveUntrained(Callback):
    """Keep the model as it was before the first step, for scores before and after training.

    Writes `untrained.ckpt` beside the folder of the run's checkpoints.
    """

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save, unless this run continues another."""
        if trainer.global_step == 0:
            trainer.save_checkpoint(Path(trainer.log_dir or trainer.default_root_dir) / "untrained.ckpt")


class LogCodebooks(Callback):
    """Log how training uses the codebooks: perplexity, dead codes and, with fusion, which scale wins how often.

    Every `log_every_n_steps` steps the numbers of that batch go to the loggers as `codebooks/<name>`.
    """

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Watch every quantiser in the model."""

        def log(quantizer, inputs, output):
            if quantizer.training and trainer.global_step % trainer.log_every_n_steps == 0:
                scalars = {f"codebooks/{name}": x.item() for name, x in quantizer.statistics(output).items()}
                for logger in trainer.loggers:
                    logger.log_metrics(scalars, trainer.global_step)

        quantizers = [module for module in pl_module.modules() if hasattr(module, "statistics")]
        self.hooks = [quantizer.register_forward_hook(log) for quantizer in quantizers]

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Stop watching."""
        for hook in self.__dict__.pop("hooks", ()):
            hook.remove()


def at_validation_end(trainer: Trainer, act: Callable[[Trainer], None]) -> None:
    """Have `act(trainer)` called at the end of every validation from now on; asked again, still once."""
    if act not in [callback.act for callback in trainer.callbacks if isinstance(callback, _AtValidationEnd)]:
        trainer.callbacks.append(_AtValidationEnd(act))


class _AtValidationEnd(Callback):
    def __init__(self, act: Callable[[Trainer], None]):
        self.act = act

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.act(trainer)
