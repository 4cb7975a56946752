"""Arguments of a method that are looked up in a tree."""

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

from ocl.utils.trees import get_tree_element


def fill_arguments(
    parameters: Mapping[str, inspect.Parameter],
    paths: Mapping[str, list[str]],
    args: Sequence[Any],
    kwargs: dict[str, Any],
    inputs: Any,
    name: str,
) -> dict[str, Any]:
    """Return the keyword arguments of a call: those given explicitly, and those found at their paths in a tree.

    Args:
        parameters: those of the method, without `self`; other keywords are dropped.
        paths: parts of the path by parameter.
        args: positional arguments of the call, which take the place of paths.
        kwargs: keyword arguments of the call; they are the tree if there is no other.
        inputs: the tree, or None.
        name: what is called, for messages.

    Raises:
        ValueError: if a path leads nowhere and the parameter has no default.
    """
    tree = kwargs if inputs is None or (isinstance(inputs, Mapping) and not inputs) else inputs
    arguments = {key: value for key, value in kwargs.items() if key in parameters}
    positional = list(parameters)[: len(args)]
    for parameter, path in paths.items():
        if parameter in arguments or parameter in positional:
            continue
        try:
            arguments[parameter] = get_tree_element(tree, path)
        except ValueError as error:
            if parameters[parameter].default is inspect.Parameter.empty:
                raise ValueError(f"`{name}` lacks its argument `{parameter}`. {error}") from error
    return arguments
