"""Synthetic scenes, converters from raw downloads to shards or LMDB, and the data modules that read them."""

from typing import Any


def __getattr__(name: str) -> Any:
    """`LMDBDataModule` and `ShardDataModule`, imported when they are first asked for: they need a host."""
    if name == "LMDBDataModule":
        from ocl_msf.data.lmdb_datamodule import LMDBDataModule

        return LMDBDataModule
    if name == "ShardDataModule":
        from ocl_msf.data.datamodule import ShardDataModule

        return ShardDataModule
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
