"""Lets a process parse each file of a configuration once, since the tests compose hundreds of the same files."""

import copy
import os
from pathlib import Path

from omegaconf import OmegaConf


def keep_configs(warm=()):
    """Replace `OmegaConf.load` by one that returns copies of what it has read, as long as a file stays as it is.

    Args:
        warm: files to read at once, for the forks of this process.
    """
    load, kept = OmegaConf.load, {}

    def load_once(file):
        if isinstance(file, (str, Path)):
            return load(file)
        status = os.fstat(file.fileno())
        key = (status.st_dev, status.st_ino, status.st_mtime_ns, status.st_size)
        if key not in kept:
            kept[key] = load(file)
        return copy.deepcopy(kept[key])

    OmegaConf.load = staticmethod(load_once)
    for path in warm:
        with open(path, encoding="utf-8") as file:
            load_once(file)
