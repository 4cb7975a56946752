"""Convert a raw download to shards or LMDB; the command is `ocl-msf convert`."""

import dataclasses
from pathlib import Path
from typing import Any, Dict, Optional, Tuple

from ocl_msf._renamed import refuse_old_names
from ocl_msf.data.catalog import OCLF_LAYOUTS, Layout
from ocl_msf.data.lmdb import write_lmdb
from ocl_msf.data.raw import authors_lmdb, clevrtex, coco, movi, openimages, voc
from ocl_msf.data.shards import write_dataset
from ocl_msf.data.summary import verify, why_empty
from ocl_msf.files import DataError

__getattr__ = refuse_old_names(__name__)

# Each module has `folder_name([variant])` and `prepare(raw, ...) -> Conversion`.
DATASETS = {
    "authors-lmdb": authors_lmdb,
    "clevrtex": clevrtex,
    "coco": coco,
    "movi": movi,
    "openimages": openimages,
    "voc": voc,
}


def convert(
    dataset: str,
    raw: Path,
    out: Path,
    samples_per_shard: Optional[int] = None,
    oclf_layout: bool = False,
    format: str = "webdataset",
    name: Optional[str] = None,
    workers: int = 2,
    strict: bool = False,
    overwrite: bool = False,
    verify_only: bool = False,
    **options: Any,
) -> Tuple[Path, Dict[str, Any]]:
    """Convert a data set, or continue an interrupted conversion.

    Args:
        dataset: one of `DATASETS`.
        raw: folder of the raw data.
        out: folder of all data sets, DATASET_PREFIX.
        samples_per_shard: at most; by default `ocl_msf.data.shards.SAMPLES`, or by OCLF's layout where that holds.
        oclf_layout: name folders and cut shards as the configs of OCLF expect.
        format: "webdataset" or "lmdb".
        name: folder below `out`; by default the name of the data set.
        workers: processes.
        strict: stop at the first sample that is damaged.
        overwrite: replace an earlier conversion.
        verify_only: only compare what was converted with its checksums; `raw` need not be there.
        options: of the data set: the parameters of its `prepare`.

    Returns:
        The data set's folder and its summary.

    Raises:
        DataError: the raw data, the options or the folder are not as they have to be, or a split is empty.
    """
    module = DATASETS[dataset]
    variant = {"variant": options["variant"]} if "variant" in options else {}
    layout = _layout(module.folder_name(**variant), oclf_layout)
    folder = out / (name or layout.folder)
    if verify_only:
        summary = verify(folder)
    else:
        conversion = dataclasses.replace(module.prepare(raw, **options), layout=layout.splits)
        write = write_lmdb if format == "lmdb" else write_dataset
        summary = write(folder, conversion, samples_per_shard, workers, overwrite, strict)
    empty = [reason for reason in (why_empty(summary, split) for split in summary["splits"]) if reason]
    if empty:
        raise DataError(f"{folder}: {'; '.join(empty)}. Correct the raw data or the options, then use --overwrite.")
    return folder, summary


def _layout(name: str, oclf_layout: bool) -> Layout:
    """Where a data set goes, below the folder of all."""
    if oclf_layout and name not in OCLF_LAYOUTS:
        known = ", ".join(sorted(OCLF_LAYOUTS))
        raise DataError(f"OCLF has no config for {name}, only for {known}. Omit --oclf-layout.")
    layout = OCLF_LAYOUTS.get(name, Layout(name))
    return layout if oclf_layout or layout.folder == name else Layout(name)
