"""Reading and writing checkpoints: nothing is unpickled, and no half-written file looks like a whole one."""

import os
import pickle
import re
import zipfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Union

import torch
from pytorch_lightning.plugins.io import TorchCheckpointIO
from torch import nn

from ocl.errors import CheckpointError

_Path = Union[str, Path]


def load_checkpoint(path: str, map_location: Any = "cpu") -> dict[str, Any]:
    """Read a checkpoint that consists of tensors and plain values.

    Args:
        path: local file.
        map_location: where to put the tensors, as in `torch.load`.

    Returns:
        The dictionary that was saved.

    Raises:
        FileNotFoundError: if there is no such file.
        CheckpointError: if the file is damaged, or contains other objects than tensors and plain values.
    """
    if not os.path.isfile(path):
        raise FileNotFoundError(f"Checkpoint {path} does not exist.")
    try:
        checkpoint = torch.load(path, map_location=map_location, weights_only=True)
    except OSError:
        raise
    except Exception as error:  # bytes that are no checkpoint can make the reader fail in any way
        problem = f"is damaged, cut off or no checkpoint: {_reason(error)}"
        if isinstance(error, pickle.UnpicklingError) and zipfile.is_zipfile(path):
            names = re.findall(r"GLOBAL (\S+)", str(error)) or ["other objects"]
            problem = (
                f"is refused: besides tensors and plain values it holds {names[0]}, "
                "and unpickling objects can run any code. Save it again without them."
            )
        raise CheckpointError(f"Checkpoint {path} {problem}") from error
    if not isinstance(checkpoint, dict):
        raise CheckpointError(f"Checkpoint {path} holds a {type(checkpoint).__name__}, not a dictionary.")
    return checkpoint


def load_weights(module: nn.Module, path: str, target_path: str = "", source_path: str = "") -> dict[str, Any]:
    """Load the weights of a module, or of a part of it, from a checkpoint.

    Args:
        module: module to load into.
        path: local checkpoint file.
        target_path: dotted path of the submodule to load, by default the whole module.
        source_path: dotted path of the entries in the checkpoint that belong to this submodule.

    Returns:
        The whole checkpoint.

    Raises:
        FileNotFoundError: if there is no such file.
        CheckpointError: if the checkpoint cannot be read, or its keys or shapes are not those of the module.
        ValueError: if there is no submodule `target_path`.
    """
    try:
        target = module.get_submodule(target_path)
    except AttributeError as error:
        raise ValueError(f"The model has no module `{target_path}`: {error}") from error
    checkpoint = load_checkpoint(path)
    state = select_weights(checkpoint, path, source_path)
    check_weights(target, state, f"Checkpoint {path} does not fit {target_path or 'the model'}")
    target.load_state_dict(state)
    return checkpoint


def select_weights(checkpoint: dict[str, Any], path: str, source_path: str = "") -> dict[str, torch.Tensor]:
    """Return the entries of a checkpoint's `state_dict` below a dotted path, named relative to it."""
    state = checkpoint.get("state_dict")
    if not isinstance(state, dict):
        raise CheckpointError(f"Checkpoint {path} has no `state_dict`, only {_first(checkpoint)}.")
    prefix = f"{source_path}." if source_path else ""
    selected = {name[len(prefix) :]: value for name, value in state.items() if name.startswith(prefix)}
    if not selected:
        parents = sorted({name.rpartition(".")[0] for name in state})
        raise CheckpointError(f"Checkpoint {path} has no weights below `{source_path}`; it has {_first(parents)}.")
    return selected


def check_weights(module: nn.Module, state: dict[str, torch.Tensor], message: str) -> None:
    """Raise a `CheckpointError` with the first differences unless keys and shapes are those of the module.

    A module's extra state, which has no shape, is left to the module.
    """
    own = module.state_dict()
    differences = {
        "missing": [name for name in own if name not in state],
        "unexpected": [name for name in state if name not in own],
        "of another shape": [
            f"{name} {tuple(state[name].shape)} instead of {tuple(value.shape)}"
            for name, value in own.items()
            if torch.is_tensor(value) and name in state and state[name].shape != value.shape
        ],
    }
    problems = [f"{len(names)} {kind} ({_first(names)})" for kind, names in differences.items() if names]
    if problems:
        raise CheckpointError(f"{message}: {', '.join(problems)}.")


class AtomicCheckpointIO(TorchCheckpointIO):
    """Lightning's way of storing checkpoints, safe against interruptions, full disks and untrusted files.

    Files appear under their name only when complete, loading never unpickles, and only files that this
    process has written are removed: after resuming, the names that Lightning remembers are of another run.
    """

    def __init__(self) -> None:
        super().__init__()
        self._written: set[str] = set()

    def save_checkpoint(self, checkpoint: dict[str, Any], path: _Path, storage_options: Any = None) -> None:
        if "://" in str(path):
            super().save_checkpoint(checkpoint, path, storage_options)
            return
        path = os.path.abspath(path)
        temporary = f"{path}.{os.getpid()}.tmp"
        os.makedirs(os.path.dirname(path), exist_ok=True)
        try:
            with open(temporary, "wb") as file:
                torch.save(checkpoint, file)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        except (OSError, RuntimeError) as error:
            # A full disk shows as an error of the writer, raised while closing the file.
            cause = error.__context__ if isinstance(error.__context__, OSError) else error
            raise CheckpointError(f"Checkpoint {path} could not be written: {_reason(cause)}") from error
        finally:
            if os.path.exists(temporary):
                os.remove(temporary)
        self._written.add(path)

    def load_checkpoint(  # type: ignore[override]  # Lightning's options would allow to unpickle
        self, path: _Path, map_location: Any = "cpu", **_: Any
    ) -> dict[str, Any]:
        return load_checkpoint(str(path), map_location)

    def remove_checkpoint(self, path: _Path) -> None:
        if "://" in str(path) or os.path.abspath(path) in self._written:
            super().remove_checkpoint(path)


def _reason(error: Exception) -> str:
    """First sentence of what may be a page."""
    return re.split(r"\n|\. ", str(error).strip() or type(error).__name__)[0]


def _first(names: Iterable, count: int = 3) -> str:
    names = [str(name) for name in names]
    return ", ".join(names[:count] + ["..."] * (len(names) > count))
