"""Mirrors of modules, and subclasses that look up the arguments of one method in a tree."""

import functools
import importlib.abc
import importlib.machinery
import inspect
import sys
import types
from collections.abc import Iterable
from typing import Any, Optional

from torch import nn
from torchmetrics import Metric

from ocl.utils.arguments import fill_arguments

_PREFIX = f"{__package__}."


class _Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Makes a mirror of any module importable, which also lets routed classes be pickled by name."""

    def find_spec(
        self, fullname: str, path: Any = None, target: Any = None
    ) -> Optional[importlib.machinery.ModuleSpec]:
        if not fullname.startswith(_PREFIX):
            return None
        return importlib.machinery.ModuleSpec(fullname, self, is_package=True)

    def exec_module(self, mirror: types.ModuleType) -> None:
        target = mirror.__name__[len(_PREFIX) :]
        try:
            original = importlib.import_module(target)
        except ModuleNotFoundError as error:
            if error.name != target:  # it exists, but one of its own imports does not
                raise
            message = f"There is no package, module or class `{target}` to route."
            raise ModuleNotFoundError(message, name=target) from None
        mirror.__dict__["__getattr__"] = functools.partial(get, mirror, original)


def get(mirror: types.ModuleType, original: Any, name: str) -> Any:
    """Return what a mirror has in place of an attribute of the original module; classes are routed on demand."""
    if name.startswith("__"):
        raise AttributeError(f"module {mirror.__name__!r} has no attribute {name!r}")
    if not hasattr(original, name):
        return importlib.import_module(f"{mirror.__name__}.{name}")
    value = getattr(original, name)
    if isinstance(value, types.ModuleType):
        return importlib.import_module(_PREFIX + value.__name__)
    if not isinstance(value, type):
        kind = type(value).__name__
        raise TypeError(f"Only classes can be routed, `{original.__name__}.{name}` is a {kind}.")
    return vars(mirror).setdefault(name, _route(value, mirror.__name__, name))


def _take_paths(parameters: Iterable[str], kwargs: dict[str, Any], name: str) -> dict[str, list[str]]:
    """Take the keywords `<parameter>_path` out of `kwargs`, and return the parts of each path by parameter."""
    paths = {}
    for parameter in parameters:
        path = kwargs.pop(f"{parameter}_path", None)
        if isinstance(path, str):
            paths[parameter] = path.split(".") if path else []
        elif path is not None:
            raise TypeError(f"`{parameter}_path` of `{name}` must be a dotted path, got {path!r}.")
    return paths


def _route(cls: Any, module_name: str, name: str) -> type:
    """Return a subclass of `cls`, known as `<module_name>.<name>`, whose routed method reads from a tree."""
    method_name = "update" if issubclass(cls, Metric) else "forward" if issubclass(cls, nn.Module) else "__call__"
    # Asking the class itself for `__call__` would find the method that constructs instances.
    original = getattr(cls, method_name) if any(method_name in vars(base) for base in cls.__mro__) else None
    signature = list(inspect.signature(original).parameters.values())[1:] if original else []
    parameters = {p.name: p for p in signature if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}

    class Routed(cls):
        __doc__, __module__, __qualname__ = cls.__doc__, module_name, name

        def __init__(self, *args: Any, **kwargs: Any):
            # Bypasses the attribute handling of modules, which are not yet initialized here.
            object.__setattr__(self, "_argument_paths", _take_paths(parameters, kwargs, name))
            super().__init__(*args, **kwargs)

    def call(self: Any, *args: Any, inputs: Any = None, **kwargs: Any) -> Any:
        method = getattr(super(Routed, self), method_name)
        if not self._argument_paths:
            if "inputs" in parameters and inputs is not None:
                kwargs["inputs"] = inputs
            return method(*args, **kwargs)
        arguments = fill_arguments(parameters, self._argument_paths, args, kwargs, inputs, name)
        return method(*args, **arguments)

    Routed.__name__ = name
    if original:
        call.__name__, call.__qualname__, call.__doc__ = method_name, f"{name}.{method_name}", original.__doc__
        setattr(Routed, method_name, call)
    return Routed


get_package = functools.partial(get, sys.modules[__package__], None)
sys.meta_path.append(_Finder())
