"""The pictures and videos that a command line names: files, folders, patterns, and shards of converted data sets."""

import itertools
import tarfile
import zlib
from fractions import Fraction
from glob import glob
from pathlib import Path
from typing import Callable, Iterator, List, NamedTuple, Optional, Sequence, Set, Tuple, Union

import numpy as np
import torch

from ocl_msf.data.lmdb import decode_files
from ocl_msf.files import DataError
from ocl_msf.inference.inputs import read_picture
from ocl_msf.inference.videos import RATE, VIDEOS, VideoError, frame_rate, read_frames

PICTURES = frozenset(".png .jpg .jpeg .webp .bmp .gif .tif .tiff .ppm .pgm".split())
SHARD = ".tar"
SUFFIXES = frozenset({*PICTURES, *VIDEOS, SHARD})
VIDEO_FIELD, BOXES_FIELD = "video.npy.gz", "instance_bbox.npy.gz"  # of videos in shards of converted data


class Part(NamedTuple):
    """Bytes in a file."""

    path: Path
    offset: int
    size: int

    def read(self) -> bytes:
        """The bytes.

        Raises:
            DataError: the file cannot be read.
        """
        try:
            with open(self.path, "rb") as file:
                file.seek(self.offset)
                return file.read(self.size)
        except OSError as error:
            raise DataError(f"{self.path} cannot be read: {error.strerror}") from error


class Picture(NamedTuple):
    """A picture that has been found, but not read.

    Attributes:
        name: its path in the folder or shard that was given, without suffix; of a file, its stem.
        source: where it is, the same every time.
        path: its file, or the shard that holds it.
        part: of the shard; None if the file is the picture.
    """

    name: str
    source: str
    path: Path
    part: Optional[Part] = None

    def read(self) -> np.ndarray:
        """The picture, (h, w, 3) uint8.

        Raises:
            DataError: it cannot be read.
        """
        return read_picture(self.path) if self.part is None else read_picture(self.source, self.part.read())


class Video(NamedTuple):
    """A video that has been found, but not read.

    Attributes:
        name, source, path, part: see `Picture`.
        boxes_part: of the shard, with the boxes of its objects; None if there are none.
    """

    name: str
    source: str
    path: Path
    part: Optional[Part] = None
    boxes_part: Optional[Part] = None

    def frames(self) -> Iterator[np.ndarray]:
        """The frames, (h, w, 3) uint8; those of a file are read one by one.

        Raises:
            VideoError: it cannot be read, has no frames or ends too early.
        """
        return read_frames(self.path) if self.part is None else iter(self._decode(VIDEO_FIELD, self.part))

    def boxes(self) -> Optional[torch.Tensor]:
        """Boxes of the objects in the first frame, as `Model.forward` takes them, (1, n, 4); None if there are none.

        Raises:
            VideoError: they cannot be read.
        """
        part = self.boxes_part
        return None if part is None else torch.from_numpy(self._decode(BOXES_FIELD, part)[:1]).float()

    def rate(self) -> Fraction:
        """Frames per second."""
        return frame_rate(self.path) if self.part is None else Fraction(RATE)

    def _decode(self, field: str, part: Part) -> np.ndarray:
        try:
            (array,) = decode_files({field: part.read()}).values()
            return array
        except (DataError, OSError, EOFError, ValueError, zlib.error) as error:
            raise VideoError(f"{self.source} cannot be read as a video: {error}") from error


Source = Union[Picture, Video]


def find_sources(inputs: Sequence[str], report: Callable[[str], None], leave_out: Path) -> List[Source]:
    """Find pictures and videos, in the order of the inputs, those of a folder or pattern sorted; none comes twice.

    Args:
        inputs: files, which are taken for pictures unless their suffix is that of a video; shards (`.tar`); folders, in
            which all of these are found at any depth; or patterns such as `photos/**/*.jpg`.
        report: is told of each input that leads to none, and why.
        leave_out: a folder in which nothing is looked for: that of results.
    """
    found: List[Source] = []
    seen: Set[str] = set()
    for text in inputs:
        if not text.strip():  # of a variable of the shell that is not set; it would mean the current folder
            report("An input is empty: give a path.")
            continue
        base, paths = _expand(text, leave_out.resolve())
        if not paths:
            suffixes = ", ".join(sorted(SUFFIXES))
            reason = f"holds no pictures or videos ({suffixes})" if Path(text).is_dir() else "does not exist"
            report(f"{text} {reason}.")
        for path in paths:
            try:
                sources = list(_open(path, base))
            except (tarfile.TarError, OSError) as error:
                report(f"{path} cannot be read as a shard: {error}")
                continue
            found += [source for source in sources if source.source not in seen]
            seen.update(source.source for source in sources)
            if not sources:
                report(f"{path} holds no pictures or videos.")
    return found


def _expand(text: str, leave_out: Path) -> Tuple[Path, List[Path]]:
    """The files that an input names, and the folder relative to which they are named."""
    path = Path(text)
    if path.is_dir():
        inside = [file for file in sorted(path.rglob("*")) if file.suffix.lower() in SUFFIXES]
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


def _open(path: Path, base: Path) -> Iterator[Source]:
    name, source = path.relative_to(base).with_suffix("").as_posix(), str(path.absolute())
    if path.suffix.lower() != SHARD:
        yield (Video if path.suffix.lower() in VIDEOS else Picture)(name, source, path)
        return
    with tarfile.open(path, "r:") as tar:
        parts = {member.name: Part(path, member.offset_data, member.size) for member in tar if member.isfile()}
    for member, part in parts.items():
        key, _, field = member.partition(".")
        kind, _, suffix = field.rpartition(".")
        if field == VIDEO_FIELD:
            yield Video(f"{name}/{key}", f"{source}:{member}", path, part, parts.get(f"{key}.{BOXES_FIELD}"))
        elif kind in ("", "image") and f".{suffix.lower()}" in PICTURES:
            yield Picture(f"{name}/{key}", f"{source}:{member}", path, part)
