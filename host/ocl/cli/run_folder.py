"""A folder of its own for every run, which the ranks of the run share."""

import atexit
import contextlib
import hashlib
import itertools
import logging
import os
import time
from pathlib import Path
from typing import Optional

from omegaconf import DictConfig, OmegaConf

PATIENCE = 120  # seconds that a rank waits for the first one
RECENT = 1800  # seconds; an older folder is of an earlier launch that shares its addresses and names

log = logging.getLogger(__name__)

# What the ranks of a launch have in common; on one node also the folder with those of their files for errors.
LAUNCH = (
    *("SLURM_JOB_ID", "SLURM_STEP_ID", "SLURM_RESTART_COUNT"),
    *("TORCHELASTIC_RUN_ID", "TORCHELASTIC_RESTART_COUNT", "MASTER_ADDR", "MASTER_PORT"),
)
ERRORS = "TORCHELASTIC_ERROR_FILE"


def run_folder(path: str, *, _root_: DictConfig) -> str:
    """The folder of a run, made at once, so that no other run takes it.

    Runs that want the same one get `path`, `path_2` and so on. Where SLURM or torchrun has started the ranks of a run,
    the first one makes the folder, with an ending that all of them know, and the others wait for it. Ranks that
    Lightning starts are told the folder by `hydra.run.dir`.

    Args:
        path: the folder that the run would like, relative to the launch directory.
        _root_: the whole configuration, with `hydra`.

    Returns:
        An absolute path; while the job runs, where it runs.
    """
    running = OmegaConf.select(_root_, "hydra.runtime.output_dir")
    if running is not None:
        return running
    trainer = OmegaConf.select(_root_, "trainer") or OmegaConf.create()
    rank = launched_rank(trainer)
    if rank is None:
        return claim(path)
    shared = [*map(os.environ.get, LAUNCH), OmegaConf.select(_root_, "hydra.job.num")]
    if trainer.get("num_nodes") in (None, 1):
        shared.append(os.path.dirname(os.path.dirname(os.environ.get(ERRORS, ""))))
    name = hashlib.sha256(repr(shared).encode("utf-8")).hexdigest()[:8]
    found = wait_for(Path(path).absolute().parent, name) if rank else None
    return found or claim(f"{path}_{name}")


def launched_rank(trainer: DictConfig) -> Optional[int]:
    """The rank of this process among those that SLURM or torchrun has started for one run; None if it runs alone."""
    import torch
    from pytorch_lightning.plugins.environments import SLURMEnvironment, TorchElasticEnvironment

    devices = trainer.get("devices")
    if devices in (None, "auto", -1, "-1"):
        devices = 1 if trainer.get("accelerator") == "cpu" else max(torch.cuda.device_count(), 1)
    one_device = str(devices) == "1" or (OmegaConf.is_list(devices) and len(devices) == 1)
    if one_device and trainer.get("num_nodes") in (None, 1):
        return None
    for kind in (SLURMEnvironment, TorchElasticEnvironment):
        if kind.detect():
            environment = kind()
            return environment.global_rank() if environment.world_size() > 1 else None
    return None


def claim(path: str) -> str:
    """Make a folder that does not exist yet: `path`, `path_2` and so on. One that stays empty is removed at the end."""
    for number in itertools.count(1):
        folder = os.path.abspath(path if number == 1 else f"{path}_{number}")
        with contextlib.suppress(FileExistsError):
            os.makedirs(folder)
            atexit.register(_remove_if_empty, folder, os.getpid())
            return folder
    raise AssertionError("numbers do not end")


def wait_for(parent: Path, name: str) -> Optional[str]:
    """The folder of this launch that the first rank makes; None where it cannot be seen, on a node of its own disk."""
    begin = time.monotonic()
    while time.monotonic() - begin < PATIENCE:
        times = {path: path.stat().st_mtime for path in parent.glob(f"*_{name}*")}
        if times and time.time() - max(times.values()) < RECENT:
            return str(max(times, key=lambda path: times[path]))
        time.sleep(0.1)
    log.warning("The first rank has made no folder %s/*_%s in %d s: this rank takes its own.", parent, name, PATIENCE)
    return None


def _remove_if_empty(folder: str, process: int) -> None:
    if os.getpid() == process:
        with contextlib.suppress(OSError):
            os.rmdir(folder)
