"""The pictures that a command line names: files, folders, patterns, and shards of converted data sets."""

import itertools
import tarfile
from glob import glob
from pathlib import Path
from typing import Callable, Iterator, List, NamedTuple, Optional, Sequence, Set, Tuple

import numpy as np

from ocl_msf.files import DataError
from ocl_msf.inference.inputs import read_picture

PICTURES = frozenset(".png .jpg .jpeg .webp .bmp .gif .tif .tiff .ppm .pgm".split())
SHARD = ".tar"


class Picture(NamedTuple):
    """A picture that has been found, but not read.

    Attributes:
        name: its path in the folder or shard that was given, without suffix; of a file, its stem.
        source: where it is, the same every time.
        path: its file, or the shard that holds it.
        offset, size: of its bytes in the shard; None if the file is the picture.
    """

    name: str
    source: str
    path: Path
    offset: int = 0
    size: Optional[int] = None

    def read(self) -> np.ndarray:
        """The picture, (h, w, 3) uint8.

        Raises:
            DataError: it cannot be read.
        """
        if self.size is None:
            return read_picture(self.path)
        try:
            with open(self.path, "rb") as file:
                file.seek(self.offset)
                return read_picture(self.source, file.read(self.size))
        except OSError as error:
            raise DataError(f"{self.source} cannot be read: {error.strerror}") from error


def find_pictures(inputs: Sequence[str], report: Callable[[str], None], leave_out: Path) -> List[Picture]:
    """Find pictures, in the order of the inputs, those of a folder or pattern sorted; none comes twice.

    Args:
        inputs: files, which are taken for pictures whatever their suffix; shards (`.tar`); folders, in which pictures
            and shards are found at any depth; or patterns such as `photos/**/*.jpg`.
        report: is told of each input that leads to no picture, and why.
        leave_out: a folder in which nothing is looked for: that of results.
    """
    found: List[Picture] = []
    seen: Set[str] = set()
    for text in inputs:
        base, paths = _expand(text, leave_out.resolve())
        if not paths:
            suffixes = ", ".join(sorted({*PICTURES, SHARD}))
            reason = f"holds no pictures ({suffixes})" if Path(text).is_dir() else "does not exist"
            report(f"{text} {reason}.")
        for path in paths:
            try:
                pictures = list(_open(path, base))
            except (tarfile.TarError, OSError) as error:
                report(f"{path} cannot be read as a shard: {error}")
                continue
            found += [picture for picture in pictures if picture.source not in seen]
            seen.update(picture.source for picture in pictures)
            if not pictures:
                report(f"{path} holds no pictures.")
    return found


def _expand(text: str, leave_out: Path) -> Tuple[Path, List[Path]]:
    """The files that an input names, and the folder relative to which they are named."""
    path = Path(text)
    if path.is_dir():
        inside = [file for file in sorted(path.rglob("*")) if file.suffix.lower() in {*PICTURES, SHARD}]
        return path, [file for file in inside if _is_wanted(file, path, leave_out)]
    if path.exists():
        return path.parent, [path]
    base = Path(*itertools.takewhile(lambda part: not set(part) & set("*?["), path.parts))
    matches = [Path(match) for match in sorted(glob(text, recursive=True))]
    return base, [match for match in matches if _is_wanted(match, base, leave_out)]


def _is_wanted(file: Path, base: Path, leave_out: Path) -> bool:
    """Whether it is a file, neither hidden, as those that macOS adds, nor a result of before."""
    hidden = any(part.startswith(".") for part in file.relative_to(base).parts)
    return file.is_file() and not hidden and leave_out not in file.resolve().parents


def _open(path: Path, base: Path) -> Iterator[Picture]:
    name, source = path.relative_to(base).with_suffix("").as_posix(), str(path.absolute())
    if path.suffix.lower() != SHARD:
        yield Picture(name, source, path)
        return
    with tarfile.open(path, "r:") as tar:
        for member in tar:
            key, _, field = member.name.partition(".")
            kind, _, suffix = field.rpartition(".")
            if kind in ("", "image") and f".{suffix.lower()}" in PICTURES and member.isfile():
                yield Picture(f"{name}/{key}", f"{source}:{member.name}", path, member.offset_data, member.size)
