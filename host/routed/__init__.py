"""Classes whose calls take their arguments from a tree: `routed.<module>.<Class>` mirrors `<module>.<Class>`.

A routed class is a subclass of the original one. Its constructor takes a further keyword `<argument>_path`
for every argument of the routed method, a dotted path into the tree that a call receives as `inputs`:

    layer = routed.torch.nn.Linear(4, 2, input_path="encoder.features")
    layer(inputs={"encoder": {"features": torch.zeros(1, 4)}})

The routed method is `update` of a metric, `forward` of a module and `__call__` of everything else.
"""
import importlib
import importlib.abc
import importlib.machinery
import importlib.util
import sys
import types

_PREFIX = __name__ + "."


class _RoutedModule(types.ModuleType):
    """Mirror of a module; classes are routed when first asked for."""

    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(f"module {self.__name__!r} has no attribute {name!r}")
        value = _resolve(self.__name__[len(_PREFIX):], name)
        setattr(self, name, value)
        return value


def _resolve(module_name, name):
    module = importlib.import_module(module_name)
    try:
        value = getattr(module, name)
    except AttributeError:
        return _import_routed(f"{module_name}.{name}")
    if isinstance(value, types.ModuleType):
        return _import_routed(value.__name__)
    if not isinstance(value, type):
        raise TypeError(f"Only classes can be routed, `{module_name}.{name}` is a {type(value).__name__}.")
    from routed._wrapping import route_class

    return route_class(value, _PREFIX + module_name, name)


def _import_routed(target):
    try:
        return importlib.import_module(_PREFIX + target)
    except ModuleNotFoundError as error:
        if error.name != _PREFIX + target:  # the target exists, one of its own imports does not
            raise
        kind = "class or module" if "." in target else "package"
        message = f"There is no {kind} `{target}` to route."
        raise ModuleNotFoundError(message, name=target) from None


def _is_importable(target):
    try:
        return target in sys.modules or importlib.util.find_spec(target) is not None
    except ModuleNotFoundError as error:
        if error.name != target:  # one of the imports of a parent is missing
            raise
        return False  # the parent is no package


class _RoutedFinder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Makes the mirrors importable, which also lets routed classes be pickled by name."""

    def find_spec(self, fullname, path=None, target=None):
        if not fullname.startswith(_PREFIX):
            return None
        if not _is_importable(fullname[len(_PREFIX):]):
            return None
        return importlib.machinery.ModuleSpec(fullname, self, is_package=True)

    def create_module(self, spec):
        return _RoutedModule(spec.name)

    def exec_module(self, module):
        importlib.import_module(module.__name__[len(_PREFIX):])


def __getattr__(name):
    if name.startswith("__"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return _import_routed(name)


sys.meta_path.append(_RoutedFinder())
