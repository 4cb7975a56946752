"""Optimizers for parts of a model, together with their learning-rate schedule."""
from collections.abc import Iterable
from typing import Any, Callable, Optional

from torch import nn
from torch.optim import Optimizer


class OptimizationWrapper:
    """Build an optimizer, its parameter groups and its learning-rate schedule.

    Args:
        optimizer: Called with the parameters or parameter groups, returns an optimizer.
        lr_scheduler: Called with the optimizer, returns further entries of Lightning's description of it.
        parameter_groups: Which parameters to optimize, by default all. Each group has `params`, one or
            several dotted paths below the model (such as `models.decoder`), optionally `predicate`, a
            function of the name (relative to the path) and the parameter which selects some of them, and
            options of the optimizer such as `lr`. Parameters in no group are not optimized.

    Raises:
        ValueError: If a group is malformed.
    """

    def __init__(
        self,
        optimizer: Callable[[Iterable], Optimizer],
        lr_scheduler: Optional[Callable[[Optimizer], dict[str, Any]]] = None,
        parameter_groups: Optional[list[dict[str, Any]]] = None,
    ):
        self.optimizer = optimizer
        self.lr_scheduler = lr_scheduler
        self.parameter_groups = None if parameter_groups is None else list(parameter_groups)
        for group in self.parameter_groups or ():
            check_parameter_group(group)

    def __call__(self, model: nn.Module) -> dict[str, Any]:
        """Return Lightning's description of the optimizer of `model`.

        Raises:
            ValueError: If a path of a parameter group does not exist in `model`.
        """
        if self.parameter_groups is None:
            optimizer = self.optimizer(model.parameters())
        else:
            optimizer = self.optimizer([self._expand(model, group) for group in self.parameter_groups])
        schedule = self.lr_scheduler(optimizer) if self.lr_scheduler else {}
        return {"optimizer": optimizer, **schedule}

    @staticmethod
    def _expand(model: nn.Module, group: dict[str, Any]) -> dict[str, Any]:
        options = {key: value for key, value in group.items() if key not in ("params", "predicate")}
        return {"params": select_parameters(model, group), **options}


def check_parameter_group(group: dict[str, Any]) -> None:
    """Raise a `ValueError` unless `params` is a path or a list of paths, and `predicate` is callable."""
    paths = _paths(group)
    if not paths or not all(isinstance(path, str) for path in paths):
        raise ValueError(
            f"A parameter group needs `params`, a dotted module path or a list of them, got {dict(group)}."
        )
    if not callable(group.get("predicate") or callable):
        raise ValueError(f"`predicate` of a parameter group has to be callable, got {group['predicate']!r}.")


def select_parameters(model: nn.Module, group: dict[str, Any]) -> list[nn.Parameter]:
    """Return the parameters that a group names.

    Args:
        model: Module that the paths start from.
        group: Parameter group, see `OptimizationWrapper`; a path can name a single parameter, too.

    Returns:
        The parameters in the order of the paths, each one once.

    Raises:
        ValueError: If a path does not exist in `model`.
    """
    predicate = group.get("predicate") or (lambda name, parameter: True)
    selected = {}
    for path in _paths(group):
        for name, parameter in _parameters_below(model, path).items():
            if predicate(name, parameter):
                selected[id(parameter)] = parameter
    return list(selected.values())


def _paths(group: dict[str, Any]) -> list[str]:
    paths = group.get("params") or []
    return [paths] if isinstance(paths, str) or not hasattr(paths, "__iter__") else list(paths)


def _parameters_below(model: nn.Module, path: str) -> dict[str, nn.Parameter]:
    parents, _, last = path.rpartition(".")
    try:
        parent = model.get_submodule(parents)
        if isinstance(getattr(parent, last), nn.Parameter):
            return {last: getattr(parent, last)}
        return dict(model.get_submodule(path).named_parameters())
    except AttributeError as error:
        raise ValueError(f"`{path}` names neither a module nor a parameter of the model: {error}") from error
