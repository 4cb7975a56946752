"""Synthetic scenes, converters from raw downloads to shards or LMDB, and the data modules that read them."""

from pathlib import Path
from typing import Any, Optional


def open_dataset(prefix: Optional[str], name: str, seed: Optional[int] = 0, **settings: Any) -> Any:
    """Make the data module of a converted data set, according to its format.

    Args:
        prefix: folder of all data sets, usually the environment variable DATASET_PREFIX; a relative one starts where
            the program was started.
        name: folder of this one below it.
        seed: of `LMDBDataModule`; reading shards follows the seed of the run.
        **settings: other arguments of `ShardDataModule` or `LMDBDataModule`.

    Returns:
        An `LMDBDataModule` if the folder has LMDB files, otherwise a `ShardDataModule`.

    Raises:
        ValueError: `prefix` is not set, or the data are missing, unfinished or cut off.
    """
    from hydra.utils import to_absolute_path

    prefix = to_absolute_path(prefix) if prefix else None
    if prefix and any(Path(prefix, name).glob("*.lmdb")):
        from ocl_msf.data.lmdb_datamodule import LMDBDataModule

        return LMDBDataModule(prefix, name, seed=seed, **settings)
    from ocl_msf.data.datamodule import ShardDataModule

    return ShardDataModule(prefix, name, **settings)


def __getattr__(name: str) -> Any:
    """`LMDBDataModule` and `ShardDataModule`, imported when they are first asked for: they need a host."""
    if name == "LMDBDataModule":
        from ocl_msf.data.lmdb_datamodule import LMDBDataModule

        return LMDBDataModule
    if name == "ShardDataModule":
        from ocl_msf.data.datamodule import ShardDataModule

        return ShardDataModule
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
