"""Nested containers of tensors ("trees") and the paths into them.

Dicts, dataclasses, namedtuples, lists and tuples are the containers; everything else is a leaf. A path is a
list with one component per level: a key, a field name or an index.
"""
import copy
import dataclasses
from collections.abc import Mapping

import torch
from torch import nn

_MISSING = object()


def is_tensor_or_module(x):
    """Tell whether `x` is a tensor or a module."""
    return isinstance(x, (torch.Tensor, nn.Module))


def is_namedtuple(x):
    """Tell whether `x` is an instance of a namedtuple."""
    return isinstance(x, tuple) and hasattr(x, "_fields")


def get_tree_element(tree, path):
    """Return the element of a tree at a path.

    Each component is tried as a mapping key, then as an attribute, then as an index into a list or tuple.

    Args:
        tree: any nesting of mappings, objects and sequences.
        path: list of components; the empty path is the tree itself.

    Raises:
        ValueError: nothing is at that path.
    """
    element = tree
    for depth, component in enumerate(path):
        child = _get_child(element, component)
        if child is _MISSING:
            wanted = ".".join(map(str, path))
            reached = f"`{'.'.join(map(str, path[:depth]))}`" if depth else "the tree"
            raise ValueError(
                f"Nothing is at path `{wanted}`: {reached} has no `{component}`, {_describe(element)}."
            )
        element = child
    return element


def _get_child(element, component):
    if isinstance(element, Mapping) and component in element:
        return element[component]
    if isinstance(component, str):
        attribute = getattr(element, component, _MISSING)
        if attribute is not _MISSING:
            return attribute
    if isinstance(element, (list, tuple)):
        try:
            return element[int(component)]
        except (ValueError, IndexError):
            pass
    return _MISSING


def _describe(element):
    if isinstance(element, Mapping):
        return f"only {sorted(map(str, element))}"
    if isinstance(element, (list, tuple)) and not is_namedtuple(element):
        return f"it is a {type(element).__name__} of length {len(element)}"
    return f"it is of type {type(element).__name__}"


def _children(tree):
    """Return the (component, child) pairs of a container, None for a leaf."""
    if isinstance(tree, Mapping):
        return list(tree.items())
    if dataclasses.is_dataclass(tree) and not isinstance(tree, type):
        return [(field.name, getattr(tree, field.name)) for field in dataclasses.fields(tree)]
    if is_namedtuple(tree):
        return list(zip(tree._fields, tree))
    if isinstance(tree, (list, tuple)):
        return list(enumerate(tree))
    return None


def walk_tree_with_paths(tree, path=None, instance_check=is_tensor_or_module):
    """Yield (path, element) for each matching element, depth first and in container order.

    A matching element is not descended into. Unlike the other functions this one also descends into modules,
    by child name.

    Args:
        tree: the tree to walk.
        path: list of components in front of all paths.
        instance_check: predicate that selects elements.
    """
    path = path or []
    if instance_check(tree):
        yield path, tree
        return
    children = tree.named_children() if isinstance(tree, nn.Module) else _children(tree)
    for component, child in children or ():
        yield from walk_tree_with_paths(child, path + [component], instance_check)


def _map_leaves(tree, fn, path=()):
    """Copy the containers of a tree and replace each leaf by `fn(leaf, path)`."""
    children = None if is_tensor_or_module(tree) else _children(tree)
    if children is None:
        return fn(tree, path)
    mapped = [(component, _map_leaves(child, fn, (*path, component))) for component, child in children]
    if is_namedtuple(tree):
        return type(tree)._make(child for _, child in mapped)
    if isinstance(tree, tuple):
        return type(tree)([child for _, child in mapped])
    result = copy.copy(tree)
    for component, child in mapped:
        if isinstance(tree, (Mapping, list)):
            result[component] = child
        else:
            object.__setattr__(result, component, child)  # also sets fields of frozen dataclasses
    return result


def map_tree(tree, fn):
    """Return a deep copy of a tree with each tensor or module `x` replaced by `fn(x)`.

    An object that occurs several times is mapped once.
    """
    mapped = {}

    def map_leaf(leaf, path):
        if not is_tensor_or_module(leaf):
            return copy.deepcopy(leaf)
        if id(leaf) not in mapped:
            mapped[id(leaf)] = fn(leaf)
        return mapped[id(leaf)]

    return _map_leaves(tree, map_leaf)


def reduce_tree(list_of_trees, fn):
    """Merge trees of the same structure: each tensor becomes `fn([its value in each tree])`.

    Args:
        list_of_trees: at least one tree; whatever is no tensor is taken from the first.
        fn: maps a list of tensors to the merged value.

    Raises:
        ValueError: the list is empty, or a tree lacks a tensor of the first.
    """
    if not list_of_trees:
        raise ValueError("There are no trees to reduce.")

    def reduce_leaf(leaf, path):
        if isinstance(leaf, torch.Tensor):
            return fn([get_tree_element(tree, path) for tree in list_of_trees])
        return leaf if isinstance(leaf, nn.Module) else copy.deepcopy(leaf)

    return _map_leaves(list_of_trees[0], reduce_leaf)


def split_tree(tree, split_paths, split_axis, chunk_size):
    """Yield copies of a tree in which the named tensors are replaced by their consecutive chunks.

    A named tensor is replaced wherever it occurs. Other tensors and all modules are shared with the original,
    other objects are deep copied.

    Args:
        tree: the tree to copy.
        split_paths: list of paths of the tensors to split.
        split_axis: axis to split.
        chunk_size: size of a chunk; with 1 the axis is removed.

    Raises:
        ValueError: a path leads to no tensor, or the tensors differ in length.
    """
    tensors = {id(tensor): tensor for tensor in (get_tree_element(tree, path) for path in split_paths)}
    if not all(isinstance(tensor, torch.Tensor) for tensor in tensors.values()):
        raise ValueError(f"Only tensors can be split, not all of {split_paths} are tensors.")
    if len({tensor.shape[split_axis] for tensor in tensors.values()}) > 1:
        shapes = [tuple(tensor.shape) for tensor in tensors.values()]
        raise ValueError(f"The tensors {split_paths} differ in length along axis {split_axis}: {shapes}.")
    chunks = [tensor.split(chunk_size, split_axis) for tensor in tensors.values()]
    for step in zip(*chunks):
        if chunk_size == 1:
            step = [chunk.squeeze(split_axis) for chunk in step]
        replacements = dict(zip(tensors, step))

        def pick(leaf, path, replacements=replacements):
            return replacements.get(id(leaf), leaf) if is_tensor_or_module(leaf) else copy.deepcopy(leaf)

        yield _map_leaves(tree, pick)
