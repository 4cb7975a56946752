"""Webdataset shards, `{train,val,test}/shard-000000.tar ...`, written in parallel, continued if interrupted."""

import functools
import gzip
import io
import itertools
import tarfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Callable, Dict, Iterable, Iterator, List, Optional, Sequence, Tuple

import numpy as np
from PIL import Image

from ocl_msf._renamed import refuse_old_names
from ocl_msf.data.summary import (
    SUMMARY,
    UNFINISHED,
    add_rejected,
    damage,
    files_of,
    has_damage,
    read_earlier,
    read_summary,
    remove,
    sha256,
    summarize,
    write_summary,
)
from ocl_msf.data.workers import Filtered, Rejected, run_tasks
from ocl_msf.files import DataError, replacing

SAMPLES = 1000  # in a shard at most, by default
MIN_SHARDS = 4  # per split, if there are as many samples, so that several processes can read

__getattr__ = refuse_old_names(__name__)

Sample = Tuple[str, Dict[str, bytes]]


@dataclass(frozen=True)
class Conversion:
    """What a converter knows about one data set.

    Attributes:
        options: all that the samples depend on, as it goes into JSON.
        splits: the raw samples of every split, in order; they must be picklable.
        encode: maps a raw sample to its key (decimal digits) and its files by extension, such as "image.png"; raises
            `Rejected` for one to leave out.
        layout: folder and number of shards of a split, if they are prescribed; by default the folder has the name of
            the split.
    """

    options: Dict[str, Any]
    splits: Dict[str, Sequence[Any]]
    encode: Callable[[Any], Sample]
    layout: Dict[str, Tuple[str, int]] = field(default_factory=dict)


def encode_png(image: Image.Image, compress_level: int = 6) -> bytes:
    """The content of a PNG file."""
    buffer = io.BytesIO()
    image.save(buffer, "png", compress_level=compress_level)
    return buffer.getvalue()


def encode_array(array: np.ndarray) -> bytes:
    """The content of a `.npy.gz` file; equal arrays give equal bytes."""
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=False)
    return gzip.compress(buffer.getvalue(), compresslevel=1, mtime=0)


def _add_member(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    member = tarfile.TarInfo(name)  # owned by root, of time 0: equal samples give equal bytes
    member.size = len(content)
    tar.addfile(member, io.BytesIO(content))


def _encode_all(
    encode: Callable[[Any], Sample], raw_samples: Iterable[Any], strict: bool, rejected: Dict[str, Any]
) -> Iterator[Sample]:
    """Encode raw samples; those that cannot be used are counted in `rejected`, or are errors if `strict`."""
    for raw_sample in raw_samples:
        try:
            yield encode(raw_sample)
        except Rejected as error:
            if strict and not isinstance(error, Filtered):
                raise DataError(f"{error}. Correct this sample, or leave it out: without --strict.") from error
            entry = {"count": 1, "names": [error.sample]}
            add_rejected(rejected, error.reason, dict(entry, filtered=True) if isinstance(error, Filtered) else entry)


def _write_shard(
    folder: Path, encode: Callable[[Any], Sample], strict: bool, task: Tuple[str, Sequence[Any]]
) -> Dict[str, Any]:
    """Write one shard; returns its entry in the summary."""
    name, raw_samples = task
    path = folder / name
    rejected: Dict[str, Any] = {}
    samples = 0
    with replacing(path) as file, tarfile.open(fileobj=file, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for key, files in _encode_all(encode, raw_samples, strict, rejected):
            samples += 1
            for extension in sorted(files):
                _add_member(tar, f"{key}.{extension}", files[extension])
    shard = {"name": name, "samples": samples, "bytes": path.stat().st_size, "sha256": sha256(path)}
    return dict(shard, rejected=rejected) if rejected else shard


def read_shard(path: Path) -> Iterator[Sample]:
    """The samples of a shard."""
    with tarfile.open(path) as tar:
        for key, members in itertools.groupby(tar, lambda member: member.name.partition(".")[0]):
            yield key, {member.name.partition(".")[2]: tar.extractfile(member).read() for member in members}


def _plan(conversion: Conversion, samples_per_shard: Optional[int]) -> Dict[str, List[Tuple[str, Sequence[Any]]]]:
    """Name and raw samples of every shard of each split; the shards of a split have nearly the same length."""
    plan = {}
    for split, raw_samples in conversion.splits.items():
        folder, count = conversion.layout.get(split, (split, 0))
        if samples_per_shard or not count:
            count = max(-(-len(raw_samples) // (samples_per_shard or SAMPLES)), MIN_SHARDS)
        count = max(min(count, len(raw_samples)), 1)
        edges = [len(raw_samples) * i // count for i in range(count + 1)]
        names = [f"{folder}/shard-{number:06d}.tar" for number in range(count)]
        plan[split] = [(name, raw_samples[start:stop]) for name, start, stop in zip(names, edges, edges[1:])]
    return plan


def _intact_shards(folder: Path, options: Dict[str, Any]) -> List[Dict[str, Any]]:
    """The undamaged shards of an earlier conversion with the same options."""
    earlier = read_earlier(folder, "webdataset", options)
    return [shard for shard in files_of(earlier) if not damage(folder, shard, checksum=True)] if earlier else []


def write_dataset(
    folder: Path,
    conversion: Conversion,
    samples_per_shard: Optional[int] = None,
    workers: int = 2,
    overwrite: bool = False,
    strict: bool = False,
) -> Dict[str, Any]:
    """Write the shards and the summary of a data set; undamaged shards of an earlier run with the same options stay.

    Args:
        folder: of this data set; its name is the name of the data set.
        conversion: what to write.
        samples_per_shard: at most; there are `MIN_SHARDS` or more if there are as many samples. None: as the layout
            prescribes, or `SAMPLES`.
        workers: number of processes.
        overwrite: first remove what an earlier conversion wrote.
        strict: a rejected sample is an error, unless a filter removed it.

    Returns:
        The summary, as in `summary.json`.

    Raises:
        DataError: the folder holds another format or other options, a raw file is damaged, or the disk is full.
    """
    if overwrite:
        remove(folder)
    for _ in write_in_order(folder, conversion, samples_per_shard, workers, strict):
        pass
    return read_summary(folder)


def write_in_order(
    folder: Path, conversion: Conversion, samples_per_shard: Optional[int], workers: int, strict: bool
) -> Iterator[Tuple[str, Dict[str, Any]]]:
    """Do what `write_dataset` does, yielding the split and the entry of every shard, in order, once it is written."""
    options = dict(conversion.options, samples_per_shard=samples_per_shard)
    intact = _intact_shards(folder, options)
    shards = {shard["name"]: shard for shard in intact if not (strict and has_damage(shard))}
    plan = _plan(conversion, samples_per_shard)
    missing = [task for tasks in plan.values() for task in tasks if task[0] not in shards]

    def summary() -> Dict[str, Any]:
        written = {split: [shards[name] for name, _ in tasks if name in shards] for split, tasks in plan.items()}
        return summarize(folder.name, "webdataset", options, written)

    if missing:
        write_summary(folder / UNFINISHED, summary(), indent=None)
        if (folder / SUMMARY).exists():
            (folder / SUMMARY).unlink()
    write = functools.partial(_write_shard, folder, conversion.encode, strict)
    results = iter(run_tasks(write, missing, workers, f"{folder.name} shards"))
    for split, tasks in plan.items():
        for name, _ in tasks:
            while name not in shards:
                shard = next(results)
                shards[shard["name"]] = shard
                write_summary(folder / UNFINISHED, summary(), indent=None)
            yield split, shards[name]
    next(results, None)  # completes the progress bar
    write_summary(folder / SUMMARY, summary())
    if (folder / UNFINISHED).exists():
        (folder / UNFINISHED).unlink()
