"""What the command-line programs share: finding checkpoints and configs, and reporting errors."""

import contextlib
import functools
import glob
import logging
import os
import re
import signal
import sys
import traceback
import warnings
from collections.abc import Iterator
from typing import Any, Callable, Optional

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from ocl.errors import CheckpointError, ShardError

log = logging.getLogger(__name__)


def user_errors() -> tuple[type[Exception], ...]:
    """What a user can cause by a wrong config, path or file; everything else is shown with its traceback."""
    # Only after an error: importing Lightning takes seconds.
    from pytorch_lightning.utilities.exceptions import MisconfigurationException

    ours = (CheckpointError, ShardError, HydraException, OmegaConfBaseException)
    return (*ours, KeyError, MisconfigurationException, OSError, ValueError)


def find_checkpoint(path: str) -> str:
    """Return the newest checkpoint of a run: of the last version, by step, or by age if names have no step.

    Args:
        path: run folder, the one with `lightning_logs`.

    Raises:
        IndexError: if there is no checkpoint.
    """
    checkpoints = glob.glob(os.path.join(glob.escape(path), "lightning_logs", "version_*", "checkpoints", "*.ckpt"))
    if not checkpoints:
        raise IndexError(f"No checkpoint in {path}/lightning_logs/version_*/checkpoints.")
    have_steps = all(re.search(r"step=?\d", os.path.basename(file)) for file in checkpoints)

    def number(name: str, text: str) -> int:
        match = re.search(rf"{name}(\d+)", text)
        return int(match[1]) if match else -1

    def age(file: str) -> tuple[int, int, float]:
        step = number("step=?", os.path.basename(file)) if have_steps else 0
        return number("version_", file[len(path) :]), step, os.path.getmtime(file)

    return max(checkpoints, key=age)


def get_commandline_config_path() -> Optional[str]:
    """Return the folder given as `--config-dir`, or None if there is none or no program is running."""
    if not HydraConfig.initialized():
        return None
    sources = HydraConfig.get().runtime.config_sources
    return next((source.path for source in sources if source.provider == "command-line"), None)


@contextlib.contextmanager
def hydra_1_1() -> Iterator[None]:
    """Keep Hydra from advising against the behaviour of version 1.1, which community configs expect."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "(?s).*version_base", UserWarning)
        warnings.filterwarnings("ignore", "Future Hydra versions will no longer change", UserWarning)
        yield


def hydra_main(config_name: str) -> Callable:
    """Make a function of a config a Hydra program with the configs of `pkg://configs`.

    Called with a config, the function runs in the current process and directory, and raises its errors.
    """

    def decorate(task: Callable) -> Callable:
        with hydra_1_1():
            main = hydra.main(config_name=config_name, config_path="pkg://configs", version_base="1.1")
        return hydra_1_1()(main(report_errors(task)))

    return decorate


def report_errors(task: Callable) -> Callable:
    """Let a program end with one message for errors that users can cause, unless HYDRA_FULL_ERROR is set."""

    @functools.wraps(task)
    def reporting(config: DictConfig) -> Any:
        try:
            return task(config)
        except KeyboardInterrupt:
            sys.exit(128 + signal.SIGINT)
        except user_errors() as error:
            if not HydraConfig.initialized() or os.environ.get("HYDRA_FULL_ERROR", "0") not in ("", "0"):
                raise
            log.error("%s\nHYDRA_FULL_ERROR=1 shows the whole traceback.", describe(error))
            sys.exit(1)

    return reporting


def describe(error: BaseException) -> str:
    """Say in one paragraph what went wrong, with the place where it was raised."""
    message = str(error).strip()
    if "Original Traceback" in message:  # an error of a data worker brings its traceback as text
        lines = message.splitlines()
        starts = [number for number, line in enumerate(lines) if re.match(r"[\w.]+: ", line)]
        return "\n".join(lines[starts[-1] if starts else -1 :])
    frame = traceback.extract_tb(error.__traceback__)[-1]
    cause = error
    while cause.__cause__ is not None:
        cause = cause.__cause__
    if isinstance(error, HydraException) and str(cause) not in message:
        message = f"{message}\n{cause}"
    return f"{message}\n({type(error).__name__} in {frame.filename}:{frame.lineno})"
