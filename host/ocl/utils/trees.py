"""Nested containers of tensors ("trees") and the paths into them.

Dicts, dataclasses, namedtuples, lists and tuples are the containers; everything else is a leaf. A path is a
list with one component per level: a key, a field name or an index.
"""

import copy
import dataclasses
import operator
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Optional

from torch import Tensor, nn


def is_tensor_or_module(x: Any) -> bool:
    """Return whether `x` is a tensor or a module."""
    return isinstance(x, (Tensor, nn.Module))


def is_namedtuple(x: Any) -> bool:
    """Return whether `x` is an instance of a namedtuple."""
    return isinstance(x, tuple) and hasattr(x, "_fields")


def get_tree_element(tree: Any, path: Sequence[Any]) -> Any:
    """Return the element of a tree at a path.

    Each component is tried as a mapping key, then as an attribute, then as an index into a list or tuple.

    Args:
        tree: any nesting of mappings, objects and sequences.
        path: list of components; the empty path is the tree itself.

    Raises:
        ValueError: if nothing is at that path.
    """
    element = tree
    for depth, component in enumerate(path):
        try:
            if isinstance(element, Mapping) and component in element:
                element = element[component]
            elif isinstance(element, (list, tuple)) and not hasattr(element, str(component)):
                element = element[int(component)]
            else:
                element = getattr(element, str(component))
        except (AttributeError, IndexError, ValueError) as error:
            wanted, reached = ".".join(map(str, path)), ".".join(map(str, path[:depth]))
            place = f"`{reached}`" if depth else "the tree"
            message = f"Nothing is at path `{wanted}`: {place} has no `{component}`, {_describe(element)}."
            raise ValueError(message) from error
    return element


def _describe(element: Any) -> str:
    if isinstance(element, Mapping):
        return f"only {sorted(map(str, element))}"
    length = f" of length {len(element)}" if isinstance(element, (list, tuple)) else ""
    return f"it is of type {type(element).__name__}{length}"


def _children(tree: Any) -> Iterable[tuple[Any, Any]]:
    """Return the (component, child) pairs of a container or module, none for a leaf."""
    if isinstance(tree, nn.Module):
        return tree.named_children()
    if isinstance(tree, Mapping):
        return tree.items()
    if dataclasses.is_dataclass(tree) and not isinstance(tree, type):
        return [(field.name, getattr(tree, field.name)) for field in dataclasses.fields(tree)]
    if is_namedtuple(tree):
        return zip(tree._fields, tree)
    return enumerate(tree) if isinstance(tree, (list, tuple)) else ()


def walk_tree_with_paths(
    tree: Any, path: Optional[Sequence[Any]] = None, instance_check: Callable[[Any], bool] = is_tensor_or_module
) -> Iterator[tuple[Sequence[Any], Any]]:
    """Yield (path, element) for each matching element, depth first and in container order.

    A matching element is not descended into. Modules that do not match are, by child name.

    Args:
        tree: the tree to walk.
        path: list of components in front of all paths.
        instance_check: predicate that selects elements.
    """
    path = path or []
    if instance_check(tree):
        yield path, tree
        return
    for component, child in _children(tree):
        yield from walk_tree_with_paths(child, [*path, component], instance_check)


def _map_leaves(tree: Any, fn: Callable[[Any, tuple], Any], path: tuple = ()) -> Any:
    """Copy the containers of a tree, and replace what has no children, and modules, by `fn(leaf, path)`."""
    children = () if isinstance(tree, nn.Module) else _children(tree)
    mapped = {component: _map_leaves(child, fn, (*path, component)) for component, child in children}
    if not mapped:
        return fn(tree, path)
    if isinstance(tree, tuple):
        return type(tree)(*mapped.values()) if is_namedtuple(tree) else type(tree)(mapped.values())
    result = copy.copy(tree)
    put: Callable = (
        operator.setitem if isinstance(tree, (Mapping, list)) else object.__setattr__
    )  # works if frozen, too
    for component, child in mapped.items():
        put(result, component, child)
    return result


def map_tree(tree: Any, fn: Callable[[Any], Any]) -> Any:
    """Return a deep copy of a tree with each tensor or module `x` replaced by `fn(x)`.

    An object that occurs several times is mapped once.
    """
    mapped: dict[int, Any] = {}

    def map_leaf(leaf: Any, path: tuple) -> Any:
        if not is_tensor_or_module(leaf):
            return copy.deepcopy(leaf)
        if id(leaf) not in mapped:
            mapped[id(leaf)] = fn(leaf)
        return mapped[id(leaf)]

    return _map_leaves(tree, map_leaf)


def reduce_tree(list_of_trees: Sequence[Any], fn: Callable[[list[Tensor]], Any]) -> Any:
    """Merge trees of the same structure: each tensor becomes `fn([its value in each tree])`.

    Args:
        list_of_trees: at least one tree; whatever is no tensor is taken from the first.
        fn: maps a list of tensors to the merged value.

    Raises:
        ValueError: if the list is empty, or a tree lacks a tensor of the first.
    """
    if not list_of_trees:
        raise ValueError("There are no trees to reduce.")

    def reduce_leaf(leaf: Any, path: tuple) -> Any:
        if isinstance(leaf, Tensor):
            return fn([get_tree_element(tree, path) for tree in list_of_trees])
        return leaf if isinstance(leaf, nn.Module) else copy.deepcopy(leaf)

    return _map_leaves(list_of_trees[0], reduce_leaf)


def split_tree(tree: Any, split_paths: Sequence[Sequence[Any]], split_axis: int, chunk_size: int) -> Iterator[Any]:
    """Yield copies of a tree in which the named tensors are replaced by their consecutive chunks.

    A named tensor is replaced wherever it occurs. Other tensors and all modules are shared with the original,
    other objects are deep copied.

    Args:
        tree: the tree to copy.
        split_paths: list of paths of the tensors to split.
        split_axis: axis to split.
        chunk_size: size of a chunk; with 1 the axis is removed.

    Raises:
        ValueError: if a path leads to no tensor, or the tensors differ in length.
    """
    tensors = {id(tensor): tensor for tensor in (get_tree_element(tree, path) for path in split_paths)}
    if not all(isinstance(tensor, Tensor) for tensor in tensors.values()):
        raise ValueError(f"Only tensors can be split, not all of {split_paths} are tensors.")
    if len({tensor.shape[split_axis] for tensor in tensors.values()}) > 1:
        shapes = [tuple(tensor.shape) for tensor in tensors.values()]
        raise ValueError(f"The tensors {split_paths} differ in length along axis {split_axis}: {shapes}.")
    chunks = [
        tensor.unbind(split_axis) if chunk_size == 1 else tensor.split(chunk_size, split_axis)
        for tensor in tensors.values()
    ]
    for step in zip(*chunks):
        replacements = dict(zip(tensors, step))

        def pick(leaf: Any, path: tuple, replacements: dict[int, Tensor] = replacements) -> Any:
            return replacements.get(id(leaf), leaf) if is_tensor_or_module(leaf) else copy.deepcopy(leaf)

        yield _map_leaves(tree, pick)
