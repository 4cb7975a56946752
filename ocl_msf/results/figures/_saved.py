"""What evaluations save for figures: a sample of the data, and its file."""

import zipfile
import zlib
from pathlib import Path
from typing import Any, Callable, Dict, List, Sequence, Tuple

import numpy as np

from ocl_msf.files import DataError

Rank = Tuple[int, str]


def rank_of(name: str) -> Rank:
    """A rank as if by chance that depends only on the name."""
    return zlib.crc32(name.encode()), name


def frame_names(key: Sequence[str], count: int) -> List[str]:
    """Names of `count` images: those of the samples, or of the frames of as many videos, which follow one another."""
    frames = count // len(key)
    return [*key] if frames == 1 else [f"{name}-{frame}" for name in key for frame in range(frames)]


class LowestRanks:
    """The items of the lowest ranks among those that are offered.

    Args:
        size: how many are kept.
    """

    def __init__(self, size: int):
        self.size = size
        self.items: Dict[Rank, Any] = {}

    def offer(self, rank: Rank, make: Callable[[], Any]) -> bool:
        """Make and keep an item if its rank is low enough; returns whether it is."""
        if len(self.items) >= self.size and rank > max(self.items):
            return False
        self.items[rank] = make()
        if len(self.items) > self.size:
            del self.items[max(self.items)]
        return True


def load_arrays(path: Path, evaluation: str) -> Dict[str, np.ndarray]:
    """Read a file of arrays, in the order of writing.

    Args:
        path: the file, in the folder of a run.
        evaluation: the one that writes it, for the message if it does not exist.

    Raises:
        DataError: the file does not exist or is damaged.
    """
    if not path.is_file():
        command = f"ocl_eval +evaluation={evaluation} train_config_path={path.parent}/config/config.yaml"
        raise DataError(f"There is no {path}. Make it:  {command}")
    try:
        with np.load(path, allow_pickle=False) as file:
            return {name: file[name] for name in file.files}
    except (OSError, EOFError, ValueError, zipfile.BadZipFile) as error:
        raise DataError(f"{path} is damaged ({error}). Delete it and evaluate again.") from error
