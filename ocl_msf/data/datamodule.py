"""The data module of converted data sets."""

import re
from pathlib import Path
from typing import Any, Dict, List, Optional

from hydra.utils import to_absolute_path

from ocl_msf._host import require_host
from ocl_msf.data.catalog import conversion_command
from ocl_msf.data.summary import SPLITS, damage, read_summary
from ocl_msf.files import DataError

with require_host():
    from ocl.datasets import WebdatasetDataModule


class ShardDataModule(WebdatasetDataModule):
    """A data set in the shards that `ocl_msf.data.convert` wrote; their `summary.json` has all the numbers.

    Args:
        prefix: Folder of all data sets, usually the environment variable DATASET_PREFIX; a relative one starts where
            the program was started.
        name: Folder of this one below it.
        train_transforms: The host's transforms by name, for training samples.
        eval_transforms: The same for validation and test samples.
        **settings: Of the host's data module: `batch_size`, `eval_batch_size` (None: the same), `num_workers`,
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
        **settings: Any,
    ) -> None:
        splits = find_files(prefix, name, ".tar")
        shards = {f"{split}_shards": _literal(splits[split]["paths"]) if split in splits else None for split in SPLITS}
        sizes = {f"{split}_size": splits[split]["samples"] if split in splits else None for split in SPLITS}
        transforms = {"train_transforms": train_transforms, "eval_transforms": eval_transforms}
        super().__init__(**shards, **sizes, **transforms, **settings)


def find_files(prefix: Optional[str], name: str, suffix: str) -> Dict[str, Dict[str, Any]]:
    """Paths and number of samples, `paths` and `samples`, of every split, all there as the summary says.

    Args:
        prefix: Folder of all data sets.
        name: Folder of this one below it.
        suffix: Of the files, by their format.

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
        splits[split] = {"paths": paths, "samples": content["samples"]}
    return splits


def _literal(paths: List[str]) -> List[str]:
    """The paths, so that the host expands no braces in them."""
    return [re.sub(r"[\\{},]", r"\\\g<0>", path) for path in paths]
