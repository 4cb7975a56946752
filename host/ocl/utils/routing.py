"""Modules that run other modules on a shared tree of inputs and outputs."""

import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Optional

import torch
from torch import nn

from ocl.utils.arguments import fill_arguments
from ocl.utils.trees import get_tree_element, reduce_tree, split_tree

RESERVED_NAMES = ("input", "model", "prefix", "losses", "previous_output")


def _subtree(tree: dict[str, Any], path: Sequence[str]) -> dict[str, Any]:
    """Return the dict at a path, after making what is missing."""
    return functools.reduce(lambda part, name: part.setdefault(name, {}), path, tree)


def _parameters_of(method: Callable, skip: int = 0) -> dict[str, inspect.Parameter]:
    """Return the parameters of a method that can be given by keyword, without the first ones."""
    parameters = list(inspect.signature(method).parameters.values())[skip:]
    return {p.name: p for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}


class RoutableMixin:
    """For classes that look arguments up by themselves, where `routed` is not used.

    Args:
        input_mapping: the path of each argument of the methods decorated with `route`, or None.
    """

    def __init__(self, input_mapping: Mapping[str, Optional[str]]):
        self.input_mapping = {name: path.split(".") for name, path in input_mapping.items() if path is not None}

    @staticmethod
    def route(method: Callable) -> Callable:
        """Let a method be called with `inputs=tree`, which is searched for the arguments that have a path."""
        parameters = _parameters_of(method, skip=1)

        @functools.wraps(method)
        def call(self: Any, *args: Any, inputs: Any = None, **kwargs: Any) -> Any:
            if not self.input_mapping:
                return method(self, *args, **kwargs)
            paths = {name: path for name, path in self.input_mapping.items() if name in parameters}
            return method(self, *args, **fill_arguments(parameters, paths, args, kwargs, inputs, type(self).__name__))

        return call


class DataRouter(nn.Module):
    """Call a module with arguments that are found in a tree; `routed` does it without one more name in the weights.

    Args:
        module: the module, or another callable.
        input_mapping: the path of each of its arguments.
    """

    def __init__(self, module: Any, input_mapping: Mapping[str, str]):
        super().__init__()
        self.module = module
        self.input_mapping = {name: path.split(".") for name, path in input_mapping.items()}

    def forward(self, *args: Any, inputs: Any = None, **kwargs: Any) -> Any:
        """Return the output of the module; without `inputs`, the keywords are the tree.

        Raises:
            ValueError: if a path leads nowhere and its argument has no default, or belongs to no argument.
        """
        parameters = _parameters_of(getattr(self.module, "forward", self.module))
        unknown = [name for name in self.input_mapping if name not in parameters]
        if unknown:
            raise ValueError(f"`{type(self.module).__name__}` has no argument `{unknown[0]}` to look up.")
        name = type(self.module).__name__
        return self.module(*args, **fill_arguments(parameters, self.input_mapping, args, kwargs, inputs, name))


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
