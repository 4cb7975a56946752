"""Optimizers for parts of a model, together with their learning-rate schedule."""

from collections.abc import Iterable, Sequence
from typing import Any, Callable, Optional

from torch import nn
from torch.optim import Optimizer

from ocl.utils.trees import get_tree_element


class OptimizationWrapper:
    """Build an optimizer, its parameter groups and its learning-rate schedule.

    Args:
        optimizer: called with the parameters or parameter groups, returns an optimizer.
        lr_scheduler: called with the optimizer, returns further entries of Lightning's description of it.
        parameter_groups: which parameters to optimize, by default all. Each group has `params`, one or several dotted
            paths below the model (such as `models.decoder`), optionally `predicate`, a function of the name (relative
            to the path) and the parameter which selects some of them, and options of the optimizer such as `lr`.
            Parameters in no group are not optimized.

    Raises:
        ValueError: if a group is malformed.
    """

    def __init__(
        self,
        optimizer: Callable[[Iterable], Optimizer],
        lr_scheduler: Optional[Callable[[Optimizer], dict[str, Any]]] = None,
        parameter_groups: Optional[list[dict[str, Any]]] = None,
    ):
        self.optimizer, self.lr_scheduler = optimizer, lr_scheduler
        self.parameter_groups = None if parameter_groups is None else check_parameter_groups(parameter_groups)

    def __call__(self, model: nn.Module) -> dict[str, Any]:
        """Return Lightning's description of the optimizer of `model`.

        Raises:
            ValueError: if a path of a parameter group does not exist in `model`.
        """
        parameters: Iterable = model.parameters()
        if self.parameter_groups is not None:
            groups = [{**group, "params": select_parameters(model, group)} for group in self.parameter_groups]
            parameters = [{key: value for key, value in group.items() if key != "predicate"} for group in groups]
        optimizer = self.optimizer(parameters)
        return {"optimizer": optimizer, **(self.lr_scheduler(optimizer) if self.lr_scheduler else {})}


def check_parameter_groups(groups: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the groups with `params` as a list of paths.

    Raises:
        ValueError: unless `params` is a path or a list of paths, and `predicate` is callable.
    """
    checked = []
    for group in groups:
        paths = [group["params"]] if isinstance(group.get("params"), str) else group.get("params")
        if not paths or not isinstance(paths, Sequence) or not all(isinstance(path, str) for path in paths):
            expected = "`params`, a dotted module path or a list of them"
            raise ValueError(f"A parameter group needs {expected}, got {dict(group)}.")
        if not callable(group.get("predicate") or callable):
            raise ValueError(f"`predicate` of a parameter group has to be callable, got {group['predicate']!r}.")
        checked.append({**group, "params": paths})
    return checked


def select_parameters(model: nn.Module, group: dict[str, Any]) -> list[nn.Parameter]:
    """Return the parameters that a group names.

    Args:
        model: module that the paths start from.
        group: checked parameter group, see `OptimizationWrapper`; a path can name a single parameter, too.

    Returns:
        The parameters in the order of the paths, each one once.

    Raises:
        ValueError: if a path does not exist in `model`.
    """
    predicate = group.get("predicate") or (lambda name, parameter: True)
    candidates = [named for path in group["params"] for named in _named_parameters(model, path)]
    return list(dict.fromkeys(parameter for name, parameter in candidates if predicate(name, parameter)))


def _named_parameters(model: nn.Module, path: str) -> Iterable[tuple[str, nn.Parameter]]:
    element = get_tree_element(model, path.split("."))
    if isinstance(element, nn.Parameter):
        return [(path.rpartition(".")[2], element)]
    if not isinstance(element, nn.Module):
        raise ValueError(f"`{path}` names neither a module nor a parameter of the model.")
    return element.named_parameters()
