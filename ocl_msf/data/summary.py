"""The summary of a converted data set: what is recorded, checked and described in both formats, shards and LMDB.

A data set is a folder with `summary.json`, which names every file with its number of samples, size and SHA-256, and
counts the samples that were left out, by reason; the reasons of filters are marked. The summary is written last: where
there is one, the data set is complete.
"""

import functools
import hashlib
import json
import shutil
from pathlib import Path
from typing import Any, Dict, Iterable, List, Optional

from ocl_msf.files import DataError, encode_json, replacing

SPLITS = ("train", "val", "test")
FORMATS = ("webdataset", "lmdb")
VERSION = 1  # of the summary
MAX_NAMES = 100  # of samples left out for one reason
SUMMARY, UNFINISHED = "summary.json", "unfinished.json"
PARTS = "parts"  # folder of an LMDB conversion in progress


def sha256(path: Path) -> str:
    """The checksum of a file."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        for block in iter(functools.partial(file.read, 1 << 20), b""):
            digest.update(block)
    return digest.hexdigest()


def add_rejected(rejected: Dict[str, Any], reason: str, entry: Dict[str, Any]) -> None:
    """Add the count and names of `entry` to those already in `rejected` for the same reason."""
    earlier = rejected.get(reason, {"count": 0, "names": []})
    count, names = earlier["count"] + entry["count"], earlier["names"] + entry["names"]
    rejected[reason] = dict(entry, count=count, names=names[:MAX_NAMES])


def rejected_of(files: Iterable[Dict[str, Any]]) -> Dict[str, Any]:
    """The samples that several files lack, count and names by reason."""
    rejected: Dict[str, Any] = {}
    for file in files:
        for reason, entry in file.get("rejected", {}).items():
            add_rejected(rejected, reason, entry)
    return rejected


def has_damage(content: Dict[str, Any]) -> bool:
    """Whether a file or a summary lacks samples that were rejected as damaged, and not removed by a filter."""
    return any("filtered" not in entry for entry in content.get("rejected", {}).values())


def summarize(name: str, form: str, options: Dict[str, Any], files: Dict[str, List[Dict[str, Any]]]) -> Dict[str, Any]:
    """The summary of a data set.

    Args:
        name: of the data set.
        form: one of `FORMATS`.
        options: all that the content of the files depends on.
        files: by split; of each file the name, the number of samples, the size in bytes, the SHA-256, and `rejected`.
    """
    return {
        "version": VERSION,
        "format": form,
        "dataset": name,
        "options": options,
        "rejected": rejected_of(sum(files.values(), [])),
        "splits": {
            split: {"samples": sum(file["samples"] for file in content), "shards": content}
            for split, content in files.items()
        },
    }


def write_summary(path: Path, content: Dict[str, Any], indent: Optional[int] = 1) -> None:
    """Write a summary as JSON, which is much faster without indentation."""
    with replacing(path) as file:
        file.write(encode_json(content, indent) + b"\n")


def _read(path: Path) -> Dict[str, Any]:
    try:
        content = json.loads(path.read_text())
    except ValueError as error:
        raise DataError(f"{path} is damaged ({error}). Convert again with --overwrite.") from error
    if content.get("format") == 1:  # version 0.1 recorded here what is `version` now, and LMDB among the options
        content.update(version=1, format=content.get("options", {}).pop("format", "webdataset"))
    if content.get("version") != VERSION:
        raise DataError(f"{path} has version {content.get('version')}, not {VERSION}. Convert again with --overwrite.")
    return content


def read_summary(folder: Path) -> Dict[str, Any]:
    """The summary of a complete data set; its `format` is one of `FORMATS`.

    Raises:
        DataError: there is no summary, or it cannot be read.
    """
    if not (folder / SUMMARY).exists():
        interrupted = (folder / UNFINISHED).exists() or (folder / PARTS).exists()
        state = "its conversion was interrupted" if interrupted else "nothing was converted there"
        raise DataError(f"{folder / SUMMARY} is missing: {state}.")
    return _read(folder / SUMMARY)


def read_earlier(folder: Path, form: str, options: Dict[str, Any]) -> Optional[Dict[str, Any]]:
    """The summary, complete or not, of an earlier conversion into the same folder; None if there is none.

    Raises:
        DataError: the earlier conversion had another format or other options.
    """
    path = next((folder / name for name in (SUMMARY, UNFINISHED) if (folder / name).exists()), None)
    earlier = _read(path) if path else None
    earlier_form = earlier["format"] if earlier else "lmdb" if (folder / PARTS).exists() else form
    if earlier_form != form:
        raise DataError(f"{folder} holds the format {earlier_form}, not {form}. Choose another --name, or --overwrite.")
    if earlier and earlier["options"] != options:
        raise DataError(
            f"{folder} was made with other options: {json.dumps(earlier['options'])} there, {json.dumps(options)} now. "
            "Choose another --name, or --overwrite."
        )
    return earlier


def remove(folder: Path) -> None:
    """Remove what conversions to either format wrote, and only that."""
    for pattern in (SUMMARY, UNFINISHED, "*/shard-*.tar*", "*.lmdb", "*.lmdb.partial"):
        for path in folder.glob(pattern):
            path.unlink()
    if (folder / PARTS).exists():
        shutil.rmtree(folder / PARTS)


def describe(summary: Dict[str, Any]) -> str:
    """Lines for people: samples by split, size, format, and the samples that were left out, by reason."""
    counts = ", ".join(f"{name} {split['samples']}" for name, split in summary["splits"].items())
    size = sum(file["bytes"] for file in files_of(summary))
    lines = [f"{counts} samples, {size / 2**20:.1f} MiB, {summary['format']}"]
    for reason, entry in summary.get("rejected", {}).items():
        names = ", ".join(entry["names"][:3]) + (", ..." if entry["count"] > 3 else "")
        lines.append(f"left out {entry['count']}: {reason} ({names})")
    return "\n".join(lines)


def why_empty(summary: Dict[str, Any], split: str) -> str:
    """Why a split has no samples, "" if it has some: the most frequent reasons for leaving them out, with counts."""
    content = summary["splits"][split]
    if content["samples"]:
        return ""
    rejected = rejected_of(content["shards"]) or summary.get("rejected", {})
    entries = sorted(rejected.items(), key=lambda item: -item[1]["count"])
    reasons = [f'{entry["count"]} for "{reason}" ({", ".join(entry["names"][:3])})' for reason, entry in entries[:3]]
    more = sum(entry["count"] for _, entry in entries[3:])
    left_out = "; ".join(reasons + ([f"{more} for other reasons"] if more else []))
    return f"split {split} is empty: {f'all its samples were left out, {left_out}' if left_out else 'it has no data'}"


def files_of(summary: Dict[str, Any]) -> List[Dict[str, Any]]:
    """All files of a data set: name, samples, bytes, sha256."""
    return [file for split in summary["splits"].values() for file in split["shards"]]


def damage(folder: Path, file: Dict[str, Any], checksum: bool) -> str:
    """What is wrong with a file, "" if nothing is; checks its size and, if `checksum`, its content."""
    path = folder / file["name"]
    if not path.exists():
        return "is missing"
    size = path.stat().st_size
    if size != file["bytes"]:
        return f"has {size} bytes instead of {file['bytes']}"
    return "has another checksum than in its summary" if checksum and sha256(path) != file["sha256"] else ""


def check_files(folder: Path, summary: Dict[str, Any], checksum: bool) -> None:
    """Check that all files of a complete data set are there, with their sizes and, if `checksum`, their contents.

    Raises:
        DataError: names every damaged file.
    """
    messages = {folder / file["name"]: damage(folder, file, checksum) for file in files_of(summary)}
    damaged = [f"{path} {message}" for path, message in messages.items() if message]
    if damaged:
        raise DataError("; ".join(damaged) + ". Run the conversion again: it makes these files anew.")


def verify(folder: Path) -> Dict[str, Any]:
    """Check all files of a complete data set against the checksums in its summary, which is returned.

    Raises:
        DataError: names every damaged file.
    """
    summary = read_summary(folder)
    check_files(folder, summary, checksum=True)
    return summary
