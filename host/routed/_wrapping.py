"""Subclasses that look up the arguments of one method in a tree."""
import inspect
from collections.abc import Mapping

from torch import nn
from torchmetrics import Metric

from ocl.utils.trees import get_tree_element


def route_class(cls, module_name, name):
    """Return a subclass of `cls`, known as `<module_name>.<name>`, whose routed method reads from a tree."""
    method_name = _routed_method(cls)
    if method_name is None:
        parameters = {}
    else:
        parameters = _named_parameters(getattr(cls, method_name))

    class Routed(cls):
        def __init__(self, *args, **kwargs):
            names = [parameter for parameter in parameters if f"{parameter}_path" in kwargs]
            paths = {parameter: kwargs.pop(f"{parameter}_path") for parameter in names}
            # Bypasses the attribute handling of modules, which are not yet initialized here.
            object.__setattr__(self, "_argument_paths", _split_paths(cls, paths))
            super().__init__(*args, **kwargs)

    def call(self, *args, inputs=None, **kwargs):
        method = getattr(super(Routed, self), method_name)
        if not self._argument_paths:
            if "inputs" in parameters and inputs is not None:
                kwargs["inputs"] = inputs
            return method(*args, **kwargs)
        tree = kwargs if _is_empty(inputs) else inputs
        given = {key: value for key, value in kwargs.items() if key in parameters}
        taken = {*given, *list(parameters)[: len(args)]}
        looked_up = _look_up(self, tree, parameters, taken)
        return method(*args, **looked_up, **given)

    if method_name is not None:
        call.__name__, call.__qualname__ = method_name, f"{name}.{method_name}"
        call.__doc__ = getattr(cls, method_name).__doc__
        setattr(Routed, method_name, call)
    Routed.__name__, Routed.__qualname__, Routed.__module__ = name, name, module_name
    Routed.__doc__ = cls.__doc__
    return Routed


def _routed_method(cls):
    if issubclass(cls, Metric):
        return "update"
    if issubclass(cls, nn.Module):
        return "forward"
    # Asking the class itself would find the method that constructs instances.
    return "__call__" if any("__call__" in vars(base) for base in cls.__mro__) else None


def _named_parameters(method):
    """Return what can be passed to an unbound method by keyword, in order and without `self`."""
    _, *parameters = inspect.signature(method).parameters.values()
    return {p.name: p for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}


def _split_paths(cls, paths):
    paths = {parameter: path for parameter, path in paths.items() if path is not None}
    for parameter, path in paths.items():
        if not isinstance(path, str):
            raise TypeError(f"`{parameter}_path` of `{cls.__name__}` must be a dotted path, got {path!r}.")
    return {parameter: path.split(".") if path else [] for parameter, path in paths.items()}


def _is_empty(inputs):
    return inputs is None or (isinstance(inputs, Mapping) and not inputs)


def _look_up(module, tree, parameters, taken):
    arguments = {}
    for parameter, path in module._argument_paths.items():
        if parameter in taken:
            continue
        try:
            arguments[parameter] = get_tree_element(tree, path)
        except ValueError as error:
            if parameters[parameter].default is inspect.Parameter.empty:
                name = type(module).__name__
                raise ValueError(f"`{name}` lacks its argument `{parameter}`. {error}") from error
    return arguments
