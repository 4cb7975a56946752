"""LMDB files: one for each split, written from shards, read by any process.

A data set is a folder with `{train,val,test}.lmdb` and `summary.json`. In each file are

* `__schema__`: the number of this layout, 1, as ASCII digits;
* `__keys__`: the keys of all samples in their order, a line each;
* each key: the sample in the safetensors format. Images are uint8 (H, W, 3), arrays as they are, both under
  the field's name (`image`, `mask`); text stays UTF-8 bytes, uint8 (N,), under the name with its extension.
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
import tarfile
from pathlib import Path
from typing import Any, Callable, Dict, Iterable, Iterator, List, Optional, Sequence, Tuple

import lmdb
import numpy as np
from PIL import Image
from safetensors.numpy import save
from tqdm import tqdm

from ocl_msf.data.shards import (
    SUMMARY,
    Conversion,
    Sample,
    check_options,
    damage,
    has_damage,
    overview,
    read_json,
    read_summary,
    sha256,
    shard_records,
    write_json,
    write_shards,
)
from ocl_msf.files import DataError

SCHEMA = b"1"
PARTS = "parts"  # shards of encoded samples, until the files are written
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
    """Field and array of a file of a shard."""
    if name.endswith(".gz"):
        return _to_array(name[:-3], gzip.decompress(content))
    field, extension = os.path.splitext(name)
    if extension == ".npy":
        return field, np.load(io.BytesIO(content), allow_pickle=False)
    if extension in _IMAGES:
        with Image.open(io.BytesIO(content)) as image:
            return field, np.asarray(image.convert("RGB"))
    if extension in _TEXTS:
        return name, np.frombuffer(content, np.uint8)
    raise DataError(f"LMDB files have no {extension} fields ({name}): arrays, images and text only.")


def decode_files(files: Dict[str, bytes]) -> Dict[str, Any]:
    """The fields of a sample in a shard, as they are read from LMDB."""
    arrays = dict(_to_array(name, content) for name, content in files.items())
    return dict(_from_array(name, array) for name, array in arrays.items())


def _from_array(name: str, array: np.ndarray) -> Tuple[str, Any]:
    field, extension = os.path.splitext(name)
    return (field, _TEXTS[extension](array.tobytes())) if extension in _TEXTS else (name, array)


def _to_safetensors(encode: Callable[[Any], Sample], item: Any) -> Sample:
    key, files = encode(item)
    return key, {"safetensors": save(dict(_to_array(name, content) for name, content in files.items()))}


def decode(value: memoryview, fields: Optional[Sequence[str]] = None) -> Dict[str, Any]:
    """The fields of a sample, copied out of its bytes.

    Args:
        value: As in the file.
        fields: Beginnings of the names to take, and names that begin with `_`; all where None.
    """
    start = 8 + int.from_bytes(value[:8], "little")
    sample = {}
    for name, entry in json.loads(bytes(value[8:start])).items():
        if name == "__metadata__" or not (fields is None or name.startswith(("_", *fields))):
            continue
        begin, end = entry["data_offsets"]
        content = value[start + begin : start + end]
        array = np.frombuffer(bytearray(content), _DTYPES[entry["dtype"]]).reshape(entry["shape"])
        field, content = _from_array(name, array)
        sample[field] = content
    return sample


def _shard_samples(path: Path) -> Iterator[Tuple[bytes, bytes]]:
    with tarfile.open(path) as tar:
        for member in tar:
            yield member.name.split(".")[0].encode(), tar.extractfile(member).read()


def _pack(path: Path, records: Iterable[Dict[str, Any]]) -> None:
    """Write the samples of shards into one file, which takes its name only when it is complete."""
    partial = path.with_name(path.name + ".partial")
    if partial.exists():
        partial.unlink()
    bound = 16 << 20
    keys: List[bytes] = []
    try:
        with lmdb.open(str(partial), subdir=False, map_size=bound, lock=False, sync=False, metasync=False) as file:
            for record in tqdm(records, desc=path.name):
                # A value takes whole pages of 4 KiB; a fresh map needs no more than this, on any file system.
                bound += record["bytes"] + 3 * 4096 * record["samples"]
                file.set_mapsize(bound)
                with file.begin(write=True) as writing:
                    for key, value in _shard_samples(path.parent / PARTS / record["name"]):
                        if not writing.put(key, value, overwrite=False):
                            raise DataError(f"Key {key.decode()} is there twice: {path} was not written.")
                        keys.append(key)
            with file.begin(write=True) as writing:
                writing.put(b"__keys__", b"\n".join(keys))
                writing.put(b"__schema__", SCHEMA)
            file.sync(True)
        os.replace(partial, path)
    except (lmdb.Error, OSError) as error:
        partial.unlink()
        raise DataError(f"{path} was not written: {error}. Correct that and run again.") from error


def _remove(folder: Path) -> None:
    for path in [folder / SUMMARY, *folder.glob("*.lmdb"), *folder.glob("*.lmdb.partial")]:
        if path.exists():
            path.unlink()
    if (folder / PARTS).exists():
        shutil.rmtree(folder / PARTS)


def write_lmdb(
    folder: Path,
    conversion: Conversion,
    samples_per_shard: Optional[int] = None,
    workers: int = 2,
    overwrite: bool = False,
    strict: bool = False,
) -> Dict[str, Any]:
    """Write a data set's LMDB files and summary; whole ones of an earlier run with the same options stay.

    Samples are encoded into shards by all workers, and packed by this process in their order as they come; until
    the end they take twice the room. An interrupted run goes on with the shards that are there.

    Arguments, result and errors are those of `write_dataset`.
    """
    options = dict(conversion.options, format="lmdb", samples_per_shard=samples_per_shard)
    if overwrite:
        _remove(folder)
    path = folder / SUMMARY
    if path.exists():
        earlier = read_json(path)
        check_options(folder, earlier["options"], options)
        left_out = strict and has_damage(earlier)
        if not left_out and not any(damage(folder, record, checksum=True) for record in shard_records(earlier)):
            if (folder / PARTS).exists():
                shutil.rmtree(folder / PARTS)
            return earlier
        path.unlink()
    encode = functools.partial(_to_safetensors, conversion.encode)
    plan = dataclasses.replace(conversion, options=options, encode=encode)
    written = write_shards(folder / PARTS, plan, samples_per_shard, workers, strict)
    records = {}
    for split, shards in itertools.groupby(written, key=operator.itemgetter(0)):
        name = f"{split}.lmdb"
        _pack(folder / name, (record for _, record in shards))
        size, digest = (folder / name).stat().st_size, sha256(folder / name)
        records[split] = [{"name": name, "bytes": size, "sha256": digest}]
    parts = read_summary(folder / PARTS)
    for split, (record,) in records.items():
        record["samples"] = parts["splits"][split]["samples"]
    summary = dict(overview(folder.name, options, records), rejected=parts["rejected"])
    write_json(path, summary)
    shutil.rmtree(folder / PARTS)
    return summary


_opened: Dict[str, Tuple[int, int, Any]] = {}  # process, inode and environment by path


def _environment(path: Path) -> Any:
    """The file's environment, of which a process may have one; one from before a fork is not used after it."""
    name, identity = str(path), (os.getpid(), os.stat(path).st_ino)
    if name not in _opened or _opened[name][:2] != identity:
        _opened.pop(name, None)
        file = lmdb.open(name, subdir=False, readonly=True, lock=False, readahead=False)
        _opened[name] = (*identity, file)
    return _opened[name][2]


class LMDBFile:
    """One split; each process opens it for itself when it first reads.

    Args:
        path: The file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path.resolve()

    def keys(self) -> List[str]:
        """The keys of all samples in their order.

        Raises:
            DataError: The file is of another layout.
        """
        with _environment(self.path).begin() as reading:
            schema = reading.get(b"__schema__", b"")
            if schema != SCHEMA:
                raise DataError(f"{self.path} has schema {schema.decode()!r}, not {SCHEMA.decode()!r}. Convert again.")
            return reading.get(b"__keys__").decode().split()

    def read(self, key: str, fields: Optional[Sequence[str]] = None) -> Dict[str, Any]:
        """A sample's fields, see `decode`, and its `__key__`."""
        with _environment(self.path).begin(buffers=True) as reading:
            return {"__key__": key, **decode(reading.get(key.encode()), fields)}
