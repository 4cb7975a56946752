"""Stop a training that has diverged, and say where."""

import dataclasses
from typing import Any, Dict, Iterator, List, Optional

import torch
from pytorch_lightning import Callback, LightningModule, Trainer


class StopDiverged(Callback):
    """Stop at the first step whose loss is NaN or infinite, before it changes the weights; save no such weights.

    The error names the step, the losses, and what was not finite first: a field of the batch, or a module of the model.
    Outputs are added up on their device, since a sum with a number that is not finite is none, and costs a fifth of
    looking at every number; the answer is fetched once for each step of the optimizer: after the
    gradients, where mixed precision waits for the device anyway. Half precision does not excuse a loss: its overflows
    that are skipped are those of gradients.
    """

    def __init__(self) -> None:
        self.hooks: List[Any] = []
        self._reset()

    def _reset(self) -> None:
        self.outputs: Dict[str, torch.Tensor] = {}  # by name, in the order of execution: a sum of all values
        self.losses: Dict[str, torch.Tensor] = {}

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Watch the modules of the model, and the losses."""
        for name, module in pl_module.models.named_children():
            self._watch(pl_module, module, f"models.{name}", self._see_output)
        for name, module in pl_module.losses.named_children():
            self._watch(pl_module, module, f"losses.{name}", self._see_loss)

    def _watch(self, pl_module, module, name, see) -> None:
        def hook(module, inputs, output):
            if pl_module.training:
                see(name, output)

        self.hooks.append(module.register_forward_hook(hook))

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Look at the batch."""
        for name, field in batch.items():
            self._see_output(f"input.{name}", field)

    @torch.no_grad()
    def _see_output(self, name: str, output: Any) -> None:
        sums = [
            tensor.sum(dtype=torch.promote_types(tensor.dtype, torch.float32))
            for tensor in _tensors(output)
            if tensor.is_floating_point()
        ]
        if sums:
            _add(self.outputs, name, torch.stack(sums).sum())

    @torch.no_grad()
    def _see_loss(self, name: str, output: Any) -> None:
        _add(self.losses, name, output[0] if isinstance(output, tuple) else output)

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        """Stop if a loss of this step is not finite, on all ranks alike.

        Raises:
            ValueError: it is not.
        """
        diverged = bool(self.losses) and not bool(torch.stack(list(self.losses.values())).isfinite().all())
        if trainer.strategy.reduce_boolean_decision(diverged, all=False):
            raise ValueError(self._describe(trainer.global_step + 1))
        self._reset()

    def _describe(self, step: int) -> str:
        losses = [name for name, loss in self.losses.items() if not loss.isfinite()]
        if not losses:
            return f"Training has diverged at step {step} in another process, whose error says more."
        first: Optional[str] = next((name for name, total in self.outputs.items() if not total.isfinite()), None)
        cause = f"First, {first} is not finite." if first else "The outputs of all modules are finite."
        advice = "" if first and first.startswith("input.") else "lower the learning rate, or "
        return (
            f"Training has diverged at step {step}: NaN or infinity in {', '.join(losses)}. {cause} To go on from an "
            f"earlier checkpoint with load_checkpoint=PATH, {advice}check the data."
        )

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: Dict[str, Any]) -> None:
        """Refuse to save weights that are not finite: gradients may be so although the loss was finite.

        Raises:
            ValueError: a parameter is not finite.
        """
        for name, parameter in pl_module.named_parameters():
            if not parameter.isfinite().all():
                raise ValueError(
                    f"Training has diverged by step {trainer.global_step}: the weights {name} hold NaN or infinity and "
                    "are not saved. Lower the learning rate, and go on from an earlier checkpoint with "
                    "load_checkpoint=PATH."
                )

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Stop watching."""
        for hook in self.hooks:
            hook.remove()
        self.hooks = []
        self._reset()


def _add(seen: Dict[str, torch.Tensor], name: str, value: torch.Tensor) -> None:
    """Add up what a module gives in a step, in which it may run several times."""
    seen[name] = seen[name] + value.detach() if name in seen else value.detach()


def _tensors(tree: Any) -> Iterator[torch.Tensor]:
    """The tensors in nested dicts, lists, tuples and dataclasses."""
    if isinstance(tree, torch.Tensor):
        yield tree
    elif dataclasses.is_dataclass(tree):
        yield from _tensors([getattr(tree, field.name) for field in dataclasses.fields(tree)])
    elif isinstance(tree, (dict, list, tuple)):
        for part in tree.values() if isinstance(tree, dict) else tree:
            yield from _tensors(part)
