"""OmegaConf resolvers for configs: small functions, pieces of strings, files, switches for tests."""

import builtins
import os
from collections.abc import Callable
from typing import Any

import yaml
from hydra.utils import to_absolute_path
from omegaconf import OmegaConf

from ocl.cli.run_folder import run_folder


class LambdaFunction:
    """A function given by its source, so that it can be pickled and sent to data workers.

    Args:
        source: `lambda` expression; only builtins are in scope.

    Raises:
        ValueError: if the text is no lambda expression.
    """

    def __init__(self, source: str):
        self.source = source.strip()
        if not self.source.startswith("lambda"):
            raise ValueError(f"Expected a lambda expression, got: {source}")
        try:
            self._function = eval(self.source, {"__builtins__": builtins})
        except SyntaxError as error:
            raise ValueError(f"Not a lambda expression: {source} ({error.msg})") from error

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._function(*args, **kwargs)

    def __reduce__(self) -> tuple[type, tuple[str]]:
        return LambdaFunction, (self.source,)

    def __repr__(self) -> str:
        return f"LambdaFunction({self.source!r})"


def slice_string(string: str, separator: str, index: Any) -> str:
    """Return the piece (`0`) or pieces (`1:`, rejoined) of a string between separators."""
    pieces, bounds = string.split(separator), str(index).split(":")
    if len(bounds) == 1:
        return pieces[int(index)]
    return separator.join(pieces[slice(*(int(bound) if bound else None for bound in bounds))])


def read_yaml(path: str) -> Any:
    """Return the content of a YAML file; a relative path starts at the launch directory."""
    with open(to_absolute_path(path)) as file:
        return yaml.safe_load(file)


def when_testing(value: Any, otherwise: Any) -> Any:
    """Return the first value if the environment variable `RUNNING_TESTS` is on, else the second."""
    return value if os.environ.get("RUNNING_TESTS", "").lower() in ("true", "1", "yes", "on") else otherwise


def interpolation_mode(name: str) -> Any:
    """Return the mode of torchvision with this name, in lower or upper case."""
    from torchvision.transforms import InterpolationMode  # here, since it takes seconds

    return InterpolationMode[name.upper()]


def register_resolvers() -> None:
    """Make the resolvers known to OmegaConf."""
    resolvers: dict[str, Callable] = dict(
        lambda_fn=LambdaFunction,
        eval_lambda=lambda source, *args: LambdaFunction(source)(*args),
        slice=slice_string,
        read_yaml=read_yaml,
        run_folder=run_folder,
        when_testing=when_testing,
        torchvision_interpolation_mode=interpolation_mode,
    )
    for name, resolver in resolvers.items():
        OmegaConf.register_new_resolver(name, resolver, replace=True)
