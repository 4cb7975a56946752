"""The data module of converted data sets."""

import re
from pathlib import Path
from typing import Any, Dict, List, Optional, Tuple

import torch
from hydra.utils import to_absolute_path

from ocl_msf._host import require_host
from ocl_msf.data._workers import WORKER_TIMEOUT, with_such_workers
from ocl_msf.data.catalog import conversion_command
from ocl_msf.data.summary import SPLITS, damage, read_summary, why_empty
from ocl_msf.files import DataError

with require_host():
    from ocl.datasets import WebdatasetDataModule


class ShardDataModule(WebdatasetDataModule):
    """A data set in the shards that `ocl_msf.data.convert` wrote; their `summary.json` has all the numbers.

    Args:
        prefix: folder of all data sets, usually the environment variable DATASET_PREFIX; a relative one starts where
            the program was started.
        name: folder of this one below it.
        train_transforms: the host's transforms by name, for training samples.
        eval_transforms: the same for validation and test samples.
        worker_timeout: seconds that a worker may take for a batch before the run ends with an error; 0 for no limit.
        **settings: of the host's data module: `batch_size`, `eval_batch_size` (None: the same), `num_workers`,
            `shuffle_train`, `shuffle_buffer_size` (None: four batches), `use_autopadding`.

    Raises:
        ValueError: `prefix` is not set, or the data are missing, unfinished or cut off.
    """

    def __init__(
        self,
        prefix: Optional[str],
        name: str,
        train_transforms: Optional[Dict[str, Any]] = None,
        eval_transforms: Optional[Dict[str, Any]] = None,
        worker_timeout: float = WORKER_TIMEOUT,
        **settings: Any,
    ) -> None:
        splits = find_files(prefix, name, ".tar")
        self._empty = {split: content["empty"] for split, content in splits.items()}
        shards = {f"{split}_shards": _literal(splits[split]["paths"]) if split in splits else None for split in SPLITS}
        sizes = {f"{split}_size": splits[split]["samples"] if split in splits else None for split in SPLITS}
        transforms = {"train_transforms": train_transforms, "eval_transforms": eval_transforms}
        super().__init__(**shards, **sizes, **transforms, **settings)
        self.worker_timeout = worker_timeout  # the host's name for it, if it has such a limit

    def train_dataloader(self) -> Any:
        """The host's loader of training batches.

        Raises:
            ValueError: there are too few samples for a batch.
        """
        self._check("train")
        return with_such_workers(super().train_dataloader(), self.worker_timeout)

    def val_dataloader(self) -> Any:
        """The host's loader of validation batches.

        Raises:
            ValueError: the split is empty.
        """
        self._check("val")
        return with_such_workers(super().val_dataloader(), self.worker_timeout)

    def test_dataloader(self) -> Any:
        """The host's loader of test batches.

        Raises:
            ValueError: the split is empty.
        """
        self._check("test")
        return with_such_workers(super().test_dataloader(), self.worker_timeout)

    def _check(self, split: str) -> None:
        if self._empty.get(split):
            raise ValueError(self._empty[split])
        if split == "train" and self.train_size is not None:
            check_batch(self.train_size, self.batch_size, rank_and_count()[1])


def find_files(prefix: Optional[str], name: str, suffix: str) -> Dict[str, Dict[str, Any]]:
    """Paths and number of samples, `paths` and `samples`, of every split, all there as the summary says.

    `empty` says why there are no samples, "" where there are some.

    Args:
        prefix: folder of all data sets.
        name: folder of this one below it.
        suffix: of the files, by their format.

    Raises:
        ValueError: `prefix` is not set, the data are missing, unfinished or cut off, or of the other format.
    """
    if not prefix:
        raise ValueError(
            "DATASET_PREFIX is not set. Set this environment variable (or dataset.prefix) to the folder "
            f"of all data sets, OUT of `{conversion_command(name)}`."
        )
    folder = Path(to_absolute_path(prefix)) / name
    command = conversion_command(folder.name, str(folder.parent))
    try:
        summary = read_summary(folder)
    except DataError as error:
        raise ValueError(f"{error} Make the data: `{command}`.") from error
    splits = {}
    for split, content in summary["splits"].items():
        paths: List[str] = []
        for file in content["shards"]:
            if not file["name"].endswith(suffix):
                raise ValueError(f"{folder} has no {suffix} files. ocl_msf.data.open_dataset reads both formats.")
            what = damage(folder, file, checksum=False)
            if what:
                raise ValueError(f"{folder / file['name']} {what}. Make it again: `{command}`, options as before.")
            paths.append(str(folder / file["name"]))
        reason = why_empty(summary, split)
        empty = reason and f"{folder}: {reason}. Correct the raw data or the options of `{command}`."
        splits[split] = {"paths": paths, "samples": content["samples"], "empty": empty}
    return splits


def check_batch(samples: int, batch_size: int, ranks: int) -> None:
    """Make sure that training samples fill a batch on each of several ranks.

    Raises:
        ValueError: they do not.
    """
    if samples < batch_size * ranks:
        each = f" for each of {ranks} processes" if ranks > 1 else ""
        raise ValueError(
            f"There are {samples} training samples, too few for a batch of {batch_size}{each}: there would be no step. "
            "Set a smaller dataset.batch_size, or convert more data."
        )


def rank_and_count() -> Tuple[int, int]:
    """This process's rank and their number."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return torch.distributed.get_rank(), torch.distributed.get_world_size()
    return 0, 1


def _literal(paths: List[str]) -> List[str]:
    """The paths, so that the host expands no braces in them."""
    return [re.sub(r"[\\{},]", r"\\\g<0>", path) for path in paths]
