"""Modules that run other modules on a shared tree of inputs and outputs."""

import functools
from collections.abc import Mapping, Sequence
from typing import Any, Optional

import torch
from torch import nn

from ocl.utils.trees import get_tree_element, reduce_tree, split_tree

RESERVED_NAMES = ("input", "model", "prefix", "losses", "previous_output")


def _subtree(tree: dict[str, Any], path: Sequence[str]) -> dict[str, Any]:
    """Return the dict at a path, after making what is missing."""
    return functools.reduce(lambda part, name: part.setdefault(name, {}), path, tree)


class Combined(nn.ModuleDict):
    """Run modules in order; each sees the outputs of all earlier ones.

    A `Combined` inside another one writes its outputs below its own name, so every output has one absolute
    path (`"video.corrector.objects"`). Modules may be added later with `combined[name] = module`.

    Args:
        **modules: the modules by name; each is called as `module(inputs=tree)`.

    Raises:
        ValueError: if a name is reserved.
    """

    def __init__(self, **modules: nn.Module):
        super().__init__(modules)

    def add_module(self, name: str, module: Optional[nn.Module]) -> None:
        if name in RESERVED_NAMES:
            raise ValueError(f"No module can be named `{name}`, the names {RESERVED_NAMES} are reserved.")
        super().add_module(name, module)

    def forward(self, inputs: dict[str, Any]) -> dict[str, Any]:
        """Run all modules.

        Args:
            inputs: dict, the whole tree; outputs are added to it.

        Returns:
            The part of the tree that holds the outputs; without an outer `Combined` that is `inputs` itself.
        """
        prefix = inputs.setdefault("prefix", "")
        path = prefix.split(".") if prefix else []
        outputs = _subtree(inputs, path)
        for name, module in self.items():
            inputs["prefix"] = ".".join([*path, name])
            outputs[name] = module(inputs=inputs)
        inputs["prefix"] = prefix
        return outputs


class Recurrent(nn.Module):
    """Run a module once per step of a sequence and stack the outputs of all steps.

    In each step the tree holds the current chunk in place of each split tensor and, as `previous_output`,
    what the module returned in the step before.

    Args:
        module: called as `module(inputs=tree)`; it returns a tensor or a tree of tensors.
        inputs_to_split: dotted paths of the tensors to split.
        initial_input_mapping: where the first `previous_output` comes from, as dotted paths
            `{target: source}`. The target `""` is the whole of `previous_output`.
        split_axis: axis of the steps, both for splitting and for stacking.
        chunk_size: length of a chunk; with 1 the axis is removed from the chunk.
    """

    def __init__(
        self,
        module: nn.Module,
        inputs_to_split: Sequence[str],
        initial_input_mapping: Mapping[str, str],
        split_axis: int = 1,
        chunk_size: int = 1,
    ):
        super().__init__()
        self.module = module
        self.inputs_to_split = [path.split(".") for path in inputs_to_split]
        self.initial_input_mapping = dict(initial_input_mapping)
        self.split_axis, self.chunk_size = split_axis, chunk_size

    def forward(self, inputs: dict[str, Any]) -> Any:
        """Run all steps; `inputs` is not modified.

        Returns:
            The output of a step with each tensor stacked along `split_axis`.

        Raises:
            ValueError: if a path is missing in `inputs`.
        """
        outputs: list = []
        previous_output = self._initial_output(inputs)
        for step_inputs in split_tree(inputs, self.inputs_to_split, self.split_axis, self.chunk_size):
            previous_output = self.module(inputs={**step_inputs, "previous_output": previous_output})
            outputs.append(previous_output)
        return reduce_tree(outputs, functools.partial(torch.stack, dim=self.split_axis))

    def _initial_output(self, inputs: dict[str, Any]) -> Any:
        initial: dict[str, Any] = {}
        for target, source in self.initial_input_mapping.items():
            element = get_tree_element(inputs, source.split("."))
            if target == "":
                return element
            *parents, name = target.split(".")
            _subtree(initial, parents)[name] = element
        return initial
