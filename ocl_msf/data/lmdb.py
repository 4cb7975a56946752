"""LMDB files: one per split, written from shards, read by any process.

A data set is a folder with `{train,val,test}.lmdb` and `summary.json`. Each file holds

* `__schema__`: the version of this layout, 1, in ASCII digits;
* `__keys__`: the keys of all samples in order, one per line;
* under each key a sample in the safetensors format. Images, uint8 (H, W, 3), and arrays have the name of their field
  (`image`, `mask`); text is kept as UTF-8 bytes, uint8 (N,), under the name with its extension.
"""

import dataclasses
import functools
import gzip
import io
import itertools
import json
import operator
import os
import shutil
from pathlib import Path
from typing import Any, Callable, Dict, Iterable, List, Optional, Sequence, Tuple

import lmdb
import numpy as np
from PIL import Image
from safetensors.numpy import save
from tqdm import tqdm

from ocl_msf.data.pictures import to_rgb
from ocl_msf.data.shards import Conversion, Sample, read_shard, write_in_order
from ocl_msf.data.summary import (
    PARTS,
    SUMMARY,
    damage,
    files_of,
    has_damage,
    read_earlier,
    read_summary,
    rejected_of,
    remove,
    sha256,
    summarize,
    write_summary,
)
from ocl_msf.files import DataError

SCHEMA = b"1"
_IMAGES = (".png", ".jpg", ".jpeg")
_TEXTS: Dict[str, Callable[[bytes], Any]] = {
    ".txt": bytes.decode,
    ".json": json.loads,
    ".cls": int,
}
_DTYPES = {"BOOL": "bool", "F16": "float16", "F32": "float32", "F64": "float64"}
_DTYPES.update({f"I{bits}": f"int{bits}" for bits in (8, 16, 32, 64)})
_DTYPES.update({f"U{bits}": f"uint{bits}" for bits in (8, 16, 32, 64)})


def _to_array(name: str, content: bytes) -> Tuple[str, np.ndarray]:
    """Name and array of a file of a sample."""
    if name.endswith(".gz"):
        return _to_array(name[:-3], gzip.decompress(content))
    field, extension = os.path.splitext(name)
    if extension == ".npy":
        return field, np.load(io.BytesIO(content), allow_pickle=False)
    if extension in _IMAGES:
        with Image.open(io.BytesIO(content)) as image:
            return field, np.asarray(to_rgb(image))
    if extension in _TEXTS:
        return name, np.frombuffer(content, np.uint8)
    raise DataError(f"LMDB files have no {extension} fields ({name}): arrays, images and text only.")


def decode_files(files: Dict[str, bytes]) -> Dict[str, Any]:
    """The fields of a sample in a shard, with the values that LMDB gives."""
    arrays = dict(_to_array(name, content) for name, content in files.items())
    return dict(_from_array(name, array) for name, array in arrays.items())


def _from_array(name: str, array: np.ndarray) -> Tuple[str, Any]:
    field, extension = os.path.splitext(name)
    return (field, _TEXTS[extension](array.tobytes())) if extension in _TEXTS else (name, array)


def _encode_safetensors(encode: Callable[[Any], Sample], raw_sample: Any) -> Sample:
    key, files = encode(raw_sample)
    return key, {"safetensors": save(dict(_to_array(name, content) for name, content in files.items()))}


def decode(value: memoryview, fields: Optional[Sequence[str]] = None) -> Dict[str, Any]:
    """Decode fields of a sample, copying them; safetensors itself decodes all fields of what is in memory.

    Args:
        value: the sample in the safetensors format.
        fields: prefixes of the names to decode; names that begin with `_` always are. None decodes all.
    """
    start = 8 + int.from_bytes(value[:8], "little")
    sample = {}
    for name, entry in json.loads(bytes(value[8:start])).items():
        if name == "__metadata__" or not (fields is None or name.startswith(("_", *fields))):
            continue
        begin, end = entry["data_offsets"]
        content = bytearray(value[start + begin : start + end])
        field, decoded = _from_array(name, np.frombuffer(content, _DTYPES[entry["dtype"]]).reshape(entry["shape"]))
        sample[field] = decoded
    return sample


def _pack(path: Path, shards: Iterable[Dict[str, Any]]) -> None:
    """Write the samples of shards into one file, which appears under its name only when it is complete."""
    partial = path.with_name(path.name + ".partial")
    if partial.exists():
        partial.unlink()
    bound = 16 << 20
    keys: List[str] = []
    try:
        with lmdb.open(str(partial), subdir=False, map_size=bound, lock=False, sync=False, metasync=False) as file:
            for shard in tqdm(shards, desc=path.name):
                # Values fill whole pages of 4 KiB: a new file never needs more than this.
                bound += shard["bytes"] + 3 * 4096 * shard["samples"]
                file.set_mapsize(bound)
                with file.begin(write=True) as writing:
                    for key, sample in read_shard(path.parent / PARTS / shard["name"]):
                        if not writing.put(key.encode(), sample["safetensors"], overwrite=False):
                            raise DataError(f"Key {key} is there twice: {path} was not written.")
                        keys.append(key)
            with file.begin(write=True) as writing:
                writing.put(b"__keys__", "\n".join(keys).encode())
                writing.put(b"__schema__", SCHEMA)
            file.sync(True)
        os.replace(partial, path)
    except (lmdb.Error, OSError) as error:
        partial.unlink()
        raise DataError(f"{path} was not written: {error}. Correct that and run again.") from error


def write_lmdb(
    folder: Path,
    conversion: Conversion,
    samples_per_shard: Optional[int] = None,
    workers: int = 2,
    overwrite: bool = False,
    strict: bool = False,
) -> Dict[str, Any]:
    """Write the LMDB files and the summary of a data set; undamaged ones of an earlier run with the same options stay.

    All workers encode samples into temporary shards, which this process packs in order as they come; it needs twice
    the disk space while running. An interrupted run continues with the existing shards.

    Arguments, result and errors are those of `write_dataset`.
    """
    if overwrite:
        remove(folder)
    options = dict(conversion.options, samples_per_shard=samples_per_shard)
    earlier = read_earlier(folder, "lmdb", options)
    if earlier and not (strict and has_damage(earlier)):
        if not any(damage(folder, file, checksum=True) for file in files_of(earlier)):
            shutil.rmtree(folder / PARTS, ignore_errors=True)
            return earlier
    if earlier:
        (folder / SUMMARY).unlink()
    encode = functools.partial(_encode_safetensors, conversion.encode)
    written = write_in_order(
        folder / PARTS, dataclasses.replace(conversion, encode=encode), samples_per_shard, workers, strict
    )
    files = {}
    for split, shards in itertools.groupby(written, key=operator.itemgetter(0)):
        path = folder / f"{split}.lmdb"
        _pack(path, (shard for _, shard in shards))
        files[split] = [{"name": path.name, "bytes": path.stat().st_size, "sha256": sha256(path)}]
    parts = read_summary(folder / PARTS)
    for split, (file,) in files.items():
        file["samples"] = parts["splits"][split]["samples"]
        rejected = rejected_of(parts["splits"][split]["shards"])
        file.update({"rejected": rejected} if rejected else {})
    summary = summarize(folder.name, "lmdb", options, files)
    write_summary(folder / SUMMARY, summary)
    shutil.rmtree(folder / PARTS)
    return summary


_opened: Dict[str, Tuple[int, int, Any]] = {}  # by path: process, inode and LMDB environment


def _environment(path: Path) -> Any:
    """The LMDB environment of a file, one per process; one opened before a fork is not used after it."""
    name, identity = str(path), (os.getpid(), os.stat(path).st_ino)
    if name not in _opened or _opened[name][:2] != identity:
        _opened.pop(name, None)
        file = lmdb.open(name, subdir=False, readonly=True, lock=False, readahead=False)
        _opened[name] = (*identity, file)
    return _opened[name][2]


class LMDBFile:
    """The samples of one split; each process opens the file when it first reads.

    Args:
        path: the file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path.resolve()

    def keys(self) -> List[str]:
        """The keys of all samples, in order.

        Raises:
            DataError: the file has another layout.
        """
        with _environment(self.path).begin() as reading:
            schema = reading.get(b"__schema__", b"")
            if schema != SCHEMA:
                raise DataError(f"{self.path} has schema {schema.decode()!r}, not {SCHEMA.decode()!r}. Convert again.")
            return reading.get(b"__keys__").decode().split()

    def read(self, key: str, fields: Optional[Sequence[str]] = None) -> Dict[str, Any]:
        """The fields of a sample, as `decode` gives them, and its `__key__`."""
        with _environment(self.path).begin(buffers=True) as reading:
            return {"__key__": key, **decode(reading.get(key.encode()), fields)}
