"""Lightning callbacks the host lacks."""

from pathlib import Path
from typing import Any, Callable, Dict, List, Optional, Tuple

import torch
from hydra.utils import to_absolute_path
from pytorch_lightning import Callback, LightningModule, Trainer

from ocl_msf._renamed import refuse_old_names
from ocl_msf.experiments.checkpoints import read_weights
from ocl_msf.experiments.runs import find_finished, step_of
from ocl_msf.tiny_autoencoder import read_tiny_autoencoder

__getattr__ = refuse_old_names(__name__)


class LoadPretrained(Callback):
    """Give pretrained parts of the model their weights at the start of a training, before any data are loaded.

    A run that resumes, and an evaluation, take them from the run's own checkpoint, so their source is not needed again.

    Args:
        targets: dotted paths of each `Pretrained` among the models; where there is none, nothing is loaded.
    """

    def __init__(self, *targets: str):
        self.targets = targets

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Load, unless a checkpoint of this model has been restored.

        Raises:
            FileNotFoundError: there are no weights within reach.
            ValueError: they are damaged, or of another model.
        """
        parts = [self._part(pl_module.models, target) for target in self.targets]
        missing = [part for part in parts if part is not None and not part.loaded]
        if not missing:
            return
        source, weights = self.read(missing[0])
        try:
            for part in missing:
                part.load(weights)
        except (RuntimeError, ValueError) as error:
            places = " and ".join(self.targets)
            raise ValueError(f"The weights in {source} do not fit {places} of this experiment: {error}") from error

    @staticmethod
    def _part(models: Any, target: str) -> Any:
        for name in target.split("."):
            models = getattr(models, name, None)
        return models

    def read(self, part: Any) -> Tuple[str, Dict[str, Any]]:
        """Find weights for a part: where they come from, and a state dict."""
        raise NotImplementedError


class LoadGuidance(LoadPretrained):
    """Give the frozen guidance of stage 2 the weights of stage 1.

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
        super().__init__(target)
        self.wanted = wanted
        self.search_folder = search_folder
        self.command = command
        self.checkpoint = checkpoint
        self.source = source

    def read(self, part: Any) -> Tuple[str, Dict[str, Any]]:
        """Take the given checkpoint, or that of the newest finished run."""
        if self.checkpoint:
            path = Path(to_absolute_path(self.checkpoint))
        else:
            path = find_finished(Path(to_absolute_path(self.search_folder)), self.wanted, self.command)
        return str(path), read_weights(path, self.source)


class LoadViT(LoadPretrained):
    """Give the frozen ViT of an encoder its pretrained weights. An encoder without a ViT needs none.

    Args:
        weights: a file that `read_vit` reads, relative to the launch directory; by default timm's cache or hub.
        target: dotted path of the ViT among the models.
    """

    def __init__(self, weights: Optional[str] = None, target: str = "feature_extractor.vit"):
        super().__init__(target)
        self.weights = weights

    def read(self, part: Any) -> Tuple[str, Dict[str, Any]]:
        """Take the file, or what timm has."""
        path = Path(to_absolute_path(self.weights)) if self.weights else None
        return str(path or "timm's cache"), part.find_weights(path)


class LoadTinyAutoencoder(LoadPretrained):
    """Start the VAE of stage 1 from the weights of the tiny autoencoder; stage 2 has them in its guidance.

    Args:
        weights: a file of them, relative to the launch directory; by default the hub or its cache.
    """

    def __init__(self, weights: Optional[str] = None):
        super().__init__("vqvae.encoder", "vqvae.decoder")
        self.weights = weights

    def read(self, part: Any) -> Tuple[str, Dict[str, Any]]:
        """Take the file, or what the hub has."""
        path = Path(to_absolute_path(self.weights)) if self.weights else None
        return str(path or "the hub"), read_tiny_autoencoder(path)


class SaveFinished(Callback):
    """Keep the model of the last step, also when that is no multiple of the interval between checkpoints."""

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save beside the other checkpoints and under a name like theirs, unless that step has been saved."""
        saving: Any = trainer.checkpoint_callback
        step = trainer.global_step
        saved = {step_of(path) for path in Path(saving.dirpath).glob("*.ckpt")}
        missing = trainer.strategy.broadcast(step not in saved)  # one rank looks, all agree
        if step >= trainer.max_steps and missing:
            trainer.save_checkpoint(saving.format_checkpoint_name({"epoch": trainer.current_epoch, "step": step}))


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
            if quantizer.training and trainer.global_step % trainer.log_every_n_steps == 0:  # type: ignore[attr-defined]
                scalars = {f"codebooks/{name}": x.item() for name, x in quantizer.statistics(output).items()}
                for logger in trainer.loggers:
                    logger.log_metrics(scalars, trainer.global_step)

        quantizers = [module for module in pl_module.modules() if hasattr(module, "statistics")]
        self.hooks = [quantizer.register_forward_hook(log) for quantizer in quantizers]

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Stop watching."""
        for hook in self.__dict__.pop("hooks", ()):
            hook.remove()


def at_validation_end(trainer: Trainer, act: Callable[[Trainer], None], may_log: bool = False) -> None:
    """Register `act` to be called with the trainer after each validation; repeated calls have no effect.

    Args:
        trainer: of the validation.
        act: what to do.
        may_log: call it a little earlier, when scores can still be logged.
    """
    callbacks = trainer.callbacks  # type: ignore[attr-defined]
    if act not in [callback.act for callback in callbacks if isinstance(callback, _AtValidationEnd)]:
        callbacks.append(_AtEpochEnd(act) if may_log else _AtValidationEnd(act))


def gather(value: Any) -> List[Any]:
    """The values of all ranks, in their order."""
    if not torch.distributed.is_initialized():
        return [value]
    values = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(values, value)
    return values


class _AtValidationEnd(Callback):
    def __init__(self, act: Callable[[Trainer], None]):
        self.act = act

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.act(trainer)


class _AtEpochEnd(_AtValidationEnd):
    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.act(trainer)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        pass
