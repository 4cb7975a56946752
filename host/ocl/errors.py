"""Errors that users can cause and mend, in a module that imports nothing but what is asked for."""

import importlib
from types import ModuleType


class CheckpointError(RuntimeError):
    """A checkpoint cannot be read or written, or does not fit the model."""


class ShardError(RuntimeError):
    """A shard or one of its samples is damaged, or the shards do not suffice."""


def require(module: str, extra: str) -> ModuleType:
    """Import a module of an optional dependency, or raise an ImportError that says which extra brings it."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ImportError(f"This needs {module}: pip install 'ocl-msf-host[{extra}]' ({error}).") from error
