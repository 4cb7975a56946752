"""Webdataset shards: what every converter writes, resumes and verifies.

A data set is a folder with `{train,val,test}/shard-000000.tar ...` and `summary.json`, which names every
shard with its number of samples, size and SHA-256, and the samples that were left out by the reason; those
that a filter left out are marked. The summary is written last: where it is, all is complete.
"""

import functools
import gzip
import hashlib
import io
import json
import tarfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Callable, Dict, Iterable, Iterator, List, Optional, Sequence, Tuple

import numpy as np

from ocl_msf.data.workers import Filtered, Rejected, run_tasks
from ocl_msf.files import DataError, replacing

SPLITS = ("train", "val", "test")
FORMAT = 1
MAX_NAMES = 100  # of rejected samples in a summary, for each reason
SAMPLES = 1000  # at most in a shard, where nothing else is said
MIN_SHARDS = 4  # per split where there are as many samples, so that several readers get something each
SUMMARY, _UNFINISHED = "summary.json", "unfinished.json"

Sample = Tuple[str, Dict[str, bytes]]


@dataclass(frozen=True)
class Conversion:
    """What a converter knows about one data set.

    Attributes:
        options: All that the shards' content depends on, as JSON knows it.
        splits: The items of every split, in order; they must be picklable.
        encode: Maps an item to its key (decimal digits) and its files by extension, e.g. "image.png"; raises
            `Rejected` for an item to leave out.
        layout: Folder and number of the shards of a split, where others have fixed them; by default the
            folder is named like the split.
    """

    options: Dict[str, Any]
    splits: Dict[str, Sequence[Any]]
    encode: Callable[[Any], Sample]
    layout: Dict[str, Tuple[str, int]] = field(default_factory=dict)


def encode_array(array: np.ndarray) -> bytes:
    """The bytes of a `.npy.gz` file, the same for the same array."""
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=False)
    return gzip.compress(buffer.getvalue(), compresslevel=1, mtime=0)


def _add_member(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    member = tarfile.TarInfo(name)  # its owner is root and its time 0
    member.size = len(content)
    tar.addfile(member, io.BytesIO(content))


def sha256(path: Path) -> str:
    """The checksum of a file."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        for block in iter(functools.partial(file.read, 1 << 20), b""):
            digest.update(block)
    return digest.hexdigest()


def _encoded(
    encode: Callable[[Any], Sample], items: Iterable[Any], strict: bool, rejected: Dict[str, Any]
) -> Iterator[Sample]:
    """The samples of items; those that are rejected are put down in `rejected`, or stop a strict one."""
    for item in items:
        try:
            yield encode(item)
        except Rejected as error:
            if strict and not isinstance(error, Filtered):
                raise DataError(f"{error}. Correct this sample, or leave it out: without --strict.") from error
            entry = {"count": 1, "names": [error.sample]}
            _put_down(rejected, error.reason, dict(entry, filtered=True) if isinstance(error, Filtered) else entry)


def _put_down(rejected: Dict[str, Any], reason: str, entry: Dict[str, Any]) -> None:
    so_far = rejected.get(reason, {"count": 0, "names": []})
    count, names = so_far["count"] + entry["count"], so_far["names"] + entry["names"]
    rejected[reason] = dict(entry, count=count, names=names[:MAX_NAMES])


def has_damage(record: Dict[str, Any]) -> bool:
    """Whether samples of a shard, or of a summary, were left out that no filter left out."""
    return any("filtered" not in entry for entry in record.get("rejected", {}).values())


def _write_shard(
    folder: Path, encode: Callable[[Any], Sample], strict: bool, task: Tuple[str, Sequence[Any]]
) -> Dict[str, Any]:
    """Write one shard; returns its record of the summary."""
    name, items = task
    path = folder / name
    rejected: Dict[str, Any] = {}
    samples = 0
    with replacing(path) as file, tarfile.open(fileobj=file, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for key, files in _encoded(encode, items, strict, rejected):
            samples += 1
            for extension in sorted(files):
                _add_member(tar, f"{key}.{extension}", files[extension])
    record = {"name": name, "samples": samples, "bytes": path.stat().st_size, "sha256": sha256(path)}
    return dict(record, rejected=rejected) if rejected else record


def _plan(conversion: Conversion, samples_per_shard: Optional[int]) -> Dict[str, List[Tuple[str, Sequence[Any]]]]:
    """Name and items of every shard of each split; the shards of a split are of nearly the same length."""
    plan = {}
    for split, items in conversion.splits.items():
        folder, count = conversion.layout.get(split, (split, 0))
        if samples_per_shard or not count:
            count = max(-(-len(items) // (samples_per_shard or SAMPLES)), MIN_SHARDS)
        count = max(min(count, len(items)), 1)
        edges = [len(items) * i // count for i in range(count + 1)]
        names = [f"{folder}/shard-{number:06d}.tar" for number in range(count)]
        plan[split] = [(name, items[start:stop]) for name, start, stop in zip(names, edges, edges[1:])]
    return plan


def write_json(path: Path, content: Dict[str, Any], indent: Optional[int] = 1) -> None:
    """Write a summary, whole or not at all; much faster without indentation."""
    with replacing(path) as file:
        file.write(json.dumps(content, indent=indent).encode() + b"\n")


def overview(name: str, options: Dict[str, Any], records: Dict[str, List[Dict[str, Any]]]) -> Dict[str, Any]:
    """The summary of a data set's files, given as the records of every split."""
    rejected: Dict[str, Any] = {}
    for record in sum(records.values(), []):
        for reason, entry in record.get("rejected", {}).items():
            _put_down(rejected, reason, entry)
    return {
        "format": FORMAT,
        "dataset": name,
        "options": options,
        "rejected": rejected,
        "splits": {
            split: {"samples": sum(shard["samples"] for shard in shards), "shards": shards}
            for split, shards in records.items()
        },
    }


def describe(summary: Dict[str, Any]) -> str:
    """Lines for people: samples kept, samples left out by the reason, and the size."""
    counts = ", ".join(f"{name} {split['samples']}" for name, split in summary["splits"].items())
    size = sum(shard["bytes"] for shard in shard_records(summary))
    lines = [f"{counts} samples, {size / 2**20:.1f} MiB"]
    for reason, entry in summary.get("rejected", {}).items():
        names = ", ".join(entry["names"][:3]) + (", ..." if entry["count"] > 3 else "")
        lines.append(f"left out {entry['count']}: {reason} ({names})")
    return "\n".join(lines)


def read_json(path: Path) -> Dict[str, Any]:
    """Read a summary.

    Raises:
        DataError: It is damaged or of another format.
    """
    try:
        content = json.loads(path.read_text())
    except ValueError as error:
        raise DataError(f"{path} is damaged ({error}). Convert again with --overwrite.") from error
    if content.get("format") != FORMAT:
        raise DataError(f"{path} has format {content.get('format')}, not {FORMAT}. Convert again with --overwrite.")
    return content


def read_summary(folder: Path) -> Dict[str, Any]:
    """The summary of a complete data set.

    Raises:
        DataError: There is none, or it cannot be read.
    """
    if not (folder / SUMMARY).exists():
        state = (
            "its conversion was interrupted"
            if (folder / _UNFINISHED).exists() or (folder / "parts").exists()
            else "nothing was converted there"
        )
        raise DataError(f"{folder / SUMMARY} is missing: {state}.")
    return read_json(folder / SUMMARY)


def shard_records(summary: Dict[str, Any]) -> List[Dict[str, Any]]:
    """All shards of a summary: name, samples, bytes, sha256."""
    return [shard for split in summary["splits"].values() for shard in split["shards"]]


def damage(folder: Path, record: Dict[str, Any], checksum: bool) -> str:
    """What is wrong with a shard, "" if nothing is; looks at its size, and at its content with `checksum`."""
    path = folder / record["name"]
    if not path.exists():
        return "is missing"
    size = path.stat().st_size
    if size != record["bytes"]:
        return f"has {size} bytes instead of {record['bytes']}"
    return "has another checksum than in its summary" if checksum and sha256(path) != record["sha256"] else ""


def verify(folder: Path) -> Dict[str, Any]:
    """Check all shards of a complete data set against the checksums in its summary, which is returned.

    Raises:
        DataError: Names every damaged shard.
    """
    summary = read_summary(folder)
    found = {shard["name"]: damage(folder, shard, checksum=True) for shard in shard_records(summary)}
    bad = [f"{folder / name} {what}" for name, what in found.items() if what]
    if bad:
        raise DataError("; ".join(bad) + ". Run the conversion again: it makes these shards anew.")
    return summary


def _remove(folder: Path) -> None:
    """Remove what a conversion wrote, and only that."""
    for path in [folder / SUMMARY, folder / _UNFINISHED]:
        if path.exists():
            path.unlink()
    for path in folder.glob("*/shard-*.tar*"):
        path.unlink()


def check_options(folder: Path, earlier: Dict[str, Any], options: Dict[str, Any]) -> None:
    """Raise a DataError where a folder was made with other options."""
    if earlier != options:
        raise DataError(
            f"{folder} holds shards made with other options: {json.dumps(earlier)} there, "
            f"{json.dumps(options)} now. Choose another output folder, or --overwrite."
        )


def _intact_records(folder: Path, options: Dict[str, Any]) -> List[Dict[str, Any]]:
    """The shards of an earlier conversion with the same options that are whole."""
    path = next((folder / name for name in (SUMMARY, _UNFINISHED) if (folder / name).exists()), None)
    if path is None:
        return []
    earlier = read_json(path)
    check_options(folder, earlier["options"], options)
    return [shard for shard in shard_records(earlier) if not damage(folder, shard, checksum=True)]


def write_dataset(
    folder: Path,
    conversion: Conversion,
    samples_per_shard: Optional[int] = None,
    workers: int = 2,
    overwrite: bool = False,
    strict: bool = False,
) -> Dict[str, Any]:
    """Write a data set's shards and summary; whole shards of an earlier run with the same options stay.

    Args:
        folder: Of this data set; its name is the data set's.
        conversion: What to write.
        samples_per_shard: At most, but there are `MIN_SHARDS` where the samples suffice; None: by layout or `SAMPLES`.
        workers: Processes.
        overwrite: First remove what an earlier conversion wrote.
        strict: A rejected sample is an error, unless a filter left it out.

    Returns:
        The summary, as in `summary.json`.

    Raises:
        DataError: The folder holds shards of other options, a raw file is broken, or the disk is full.
    """
    if overwrite:
        _remove(folder)
    for _ in write_shards(folder, conversion, samples_per_shard, workers, strict):
        pass
    return read_summary(folder)


def write_shards(
    folder: Path, conversion: Conversion, samples_per_shard: Optional[int], workers: int, strict: bool
) -> Iterator[Tuple[str, Dict[str, Any]]]:
    """Do what `write_dataset` does, and give split and record of every shard in order as soon as it is there."""
    options = dict(conversion.options, samples_per_shard=samples_per_shard)
    intact = _intact_records(folder, options)
    records = {record["name"]: record for record in intact if not (strict and has_damage(record))}
    plan = _plan(conversion, samples_per_shard)
    missing = [task for tasks in plan.values() for task in tasks if task[0] not in records]

    def so_far() -> Dict[str, Any]:
        done = {split: [records[name] for name, _ in tasks if name in records] for split, tasks in plan.items()}
        return overview(folder.name, options, done)

    if missing:
        write_json(folder / _UNFINISHED, so_far(), indent=None)
        if (folder / SUMMARY).exists():
            (folder / SUMMARY).unlink()
    write = functools.partial(_write_shard, folder, conversion.encode, strict)
    written = iter(run_tasks(write, missing, workers, f"{folder.name} shards"))
    for split, tasks in plan.items():
        for name, _ in tasks:
            while name not in records:
                record = next(written)
                records[record["name"]] = record
                write_json(folder / _UNFINISHED, so_far(), indent=None)
            yield split, records[name]
    next(written, None)  # lets the progress bar come to its end
    write_json(folder / SUMMARY, so_far())
    if (folder / _UNFINISHED).exists():
        (folder / _UNFINISHED).unlink()
