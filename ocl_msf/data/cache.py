"""What frozen parts of a model make of training images, kept in files and found again by the content of an image.

A cache is a folder of parts, `part-*.npy`, arrays of records: the `image`'s digest and one field for each frozen part.
`index.npz` says where each image is; it is written last: where there is one, the cache is complete.
"""

import hashlib
import os
import shutil
import uuid
from pathlib import Path
from typing import Any, Dict, List, Mapping, Optional, Set, Tuple

import numpy as np

from ocl_msf.files import replacing

INDEX = "index.npz"
ROWS = 1000  # of a part; an interruption loses at most as many


def digest(image: Any) -> int:
    """64 bits that tell an image, a tensor or array, from others."""
    content = np.ascontiguousarray(image)
    return int.from_bytes(hashlib.blake2b(content.view(np.uint8).data, digest_size=8).digest(), "little")


def record_type(fields: Mapping[str, Tuple[str, Tuple[int, ...]]]) -> np.dtype:
    """The type of a cache's records, of NumPy's type and shape of each field."""
    return np.dtype([("image", "<u8"), *((name, kind, shape) for name, (kind, shape) in fields.items())])


class CacheWriter:
    """Adds records to a cache; each part appears when it is complete, and those of earlier passes are kept.

    Args:
        folder: of the cache.
        record: type of the records, see `record_type`.
    """

    def __init__(self, folder: Path, record: np.dtype) -> None:
        self.folder, self.record = folder, record
        self.known: Set[int] = {int(name) for part in _parts(folder) for name in _open(part)["image"]}
        self.waiting: List[np.ndarray] = []

    def add(self, images: List[int], fields: Mapping[str, np.ndarray]) -> None:
        """Add records, by the digests of their images; those of a part are written together."""
        records = np.empty(len(images), self.record)
        records["image"] = images
        for name, values in fields.items():
            records[name] = values
        self.known.update(images)
        self.waiting.append(records)
        if sum(map(len, self.waiting)) >= ROWS:
            self.flush()

    def flush(self) -> None:
        """Write what waits for its part.

        Raises:
            DataError: the disk is full, or may not be written to.
        """
        if self.waiting:
            with replacing(self.folder / f"part-{uuid.uuid4().hex}.npy") as file:  # names of ranks never meet
                np.save(file, np.concatenate(self.waiting), allow_pickle=False)
            self.waiting = []


def finish(folder: Path) -> None:
    """Write the index of all parts: the cache is complete."""
    parts = _parts(folder)
    images = [np.asarray(_open(part)["image"]) for part in parts]
    numbers = np.concatenate([np.full(len(names), number, np.uint32) for number, names in enumerate(images)])
    rows = np.concatenate([np.arange(len(names), dtype=np.uint32) for names in images])
    known, first = np.unique(np.concatenate(images), return_index=True)
    with replacing(folder / INDEX) as file:
        np.savez(file, image=known, part=numbers[first], row=rows[first], name=np.array([part.name for part in parts]))


def is_complete(folder: Path) -> bool:
    """Whether a cache has its index and all parts that are named there."""
    if not (folder / INDEX).is_file():
        return False
    with np.load(folder / INDEX, allow_pickle=False) as index:
        return all((folder / name).is_file() for name in index["name"])


class AddCached:
    """Transform of a sample: adds what a cache holds for its image, or for each frame of its video.

    Images are found by their content alone, so that whatever changed them, data or transforms, is an error, and never
    meets another image's entry.

    Args:
        folder: of a complete cache.
        image: name of the field with images (c, h, w), or with videos (t, c, h, w).
    """

    def __init__(self, folder: Path, image: str = "image") -> None:
        self.folder, self.image = folder, image
        self._opened: Optional[Tuple[int, Dict[str, np.ndarray], List[np.ndarray]]] = None

    def __getstate__(self) -> Dict[str, Any]:
        return {**vars(self), "_opened": None}  # each process opens the files when it first reads

    def __call__(self, sample: Dict[str, Any]) -> Dict[str, Any]:
        """Add the fields of the records, (...) or (t, ...), to a sample.

        Raises:
            ValueError: an image is not in the cache.
        """
        image = sample[self.image]
        frames = image if image.ndim == 4 else image[None]
        records = np.stack([self._find(digest(frame), sample) for frame in frames])
        records = records if image.ndim == 4 else records[0]
        names: Tuple[str, ...] = records.dtype.names or ()
        return {**sample, **{name: _for_torch(records[name]) for name in names if name != "image"}}

    def _find(self, image: int, sample: Dict[str, Any]) -> np.ndarray:
        if self._opened is None or self._opened[0] != os.getpid():
            with np.load(self.folder / INDEX, allow_pickle=False) as index:
                columns = {name: index[name] for name in ("image", "part", "row")}
                self._opened = os.getpid(), columns, [_open(self.folder / name) for name in index["name"]]
        _, index, parts = self._opened
        place = int(np.searchsorted(index["image"], np.uint64(image)))
        if place == len(index["image"]) or int(index["image"][place]) != image:
            raise ValueError(
                f"The image of sample {sample.get('__key__')} is not in the cache {self.folder}. If a transform of "
                "training images is random in another way than by flips, leave +msf/cache out; if the data have "
                "changed, or come from another machine, remove that folder, and the next training makes it anew."
            )
        return parts[index["part"][place]][index["row"][place]]


def _for_torch(values: np.ndarray) -> np.ndarray:
    """A copy, of a type that every torch has."""
    return np.array(values, np.int32 if values.dtype == np.uint16 else values.dtype)


def _parts(folder: Path) -> List[Path]:
    return sorted(folder.glob("part-*.npy"))


def _open(part: Path) -> np.ndarray:
    return np.load(part, mmap_mode="r", allow_pickle=False)


def bytes_left(folder: Path) -> int:
    """Bytes that can be written below a folder, which need not exist yet."""
    return shutil.disk_usage(next(place for place in (folder, *folder.parents) if place.is_dir())).free
