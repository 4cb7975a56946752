"""Members of tar archives, compressed by gzip or not, read at random without unpacking.

`tarfile` lists the members. Jumping within gzip is written here: `tarfile` by itself decompresses from the start for
each member before the last one read, and indexed_gzip (1.10) does not notice archives that are cut off or damaged
while it seeks, and can crash.
"""

import bisect
import functools
import io
import itertools
import os
import tarfile
import zlib
from pathlib import Path
from typing import BinaryIO, Iterator, List, NamedTuple, Optional, Sequence, Tuple

from tqdm import tqdm

SUFFIXES = (".tar", ".tar.gz", ".tgz")
_BLOCK = 512  # bytes, of a tar archive
MAX_STATES = 2048  # of a decompressor, each about 50 KB
_CHUNK = 1 << 15  # compressed bytes read at a time
_LARGE = 1 << 28  # bytes of an archive whose listing shows progress


class TarMember(NamedTuple):
    """A file in an archive; small and picklable, for every process that reads opens the archive once.

    Attributes:
        paths: the parts of the archive, in order.
        name: of the member.
        offset: of its content in the uncompressed archive, in bytes.
        size: of its content, in bytes.
    """

    paths: Tuple[str, ...]
    name: str
    offset: int
    size: int

    def __str__(self) -> str:
        return f"{self.paths[0]}:{self.name}"

    def read(self) -> bytes:
        """The content.

        Raises:
            OSError, EOFError, zlib.error: The archive is damaged or cut off.
        """
        file = _opened(self.paths, tuple(os.stat(path).st_mtime_ns for path in self.paths), os.getpid())
        file.seek(self.offset)
        content = file.read(self.size)
        if len(content) < self.size:
            raise EOFError("the archive is cut off")
        return content


def list_members(paths: Sequence[Path]) -> Iterator[TarMember]:
    """All regular files of an archive in one or more parts, each of which may be an archive of its own.

    Raises:
        OSError, EOFError, zlib.error, tarfile.TarError: It is damaged or cut off.
    """
    names = tuple(map(str, paths))
    parts = Concatenation(names)
    with tqdm(
        total=parts.size, desc=f"list {paths[0].name}", unit="B", unit_scale=True, disable=parts.size < _LARGE
    ) as progress, _decompressed(parts) as file:
        start = 0
        while _skip_zeros(file, start):
            archive = tarfile.TarFile(fileobj=file)
            member = archive.next()
            while member is not None:
                if member.isreg():
                    yield TarMember(names, member.name, member.offset_data, member.size)
                progress.update(parts.consumed - progress.n)
                archive.members.clear()  # type: ignore[attr-defined]
                member = archive.next()
            start = archive.offset
            file.seek(start)
            block = file.read(_BLOCK)
            if len(block) < _BLOCK:
                raise EOFError("the archive is cut off")
            if block.strip(b"\0"):
                raise tarfile.ReadError(f"no file begins at byte {start}")


def _skip_zeros(file: BinaryIO, start: int) -> bool:  # type: ignore[return]
    """Go to the first block from `start` on that is not empty; False if there is none."""
    for block in itertools.count():
        file.seek(start + block * _BLOCK)
        content = file.read(_BLOCK)
        if content.strip(b"\0"):
            file.seek(start + block * _BLOCK)
            return True
        if len(content) < _BLOCK:
            return False


@functools.lru_cache(maxsize=8)
def _opened(paths: Tuple[str, ...], times: Tuple[int, ...], process: int) -> BinaryIO:
    return _decompressed(Concatenation(paths))


def _decompressed(parts: "Concatenation") -> BinaryIO:
    """The uncompressed archive, with random access."""
    magic = parts.read(2)
    parts.seek(0)
    return io.BufferedReader(Inflated(parts) if magic == b"\x1f\x8b" else parts, 1 << 16)


class RandomAccess(io.RawIOBase):
    """A file to read and to seek in; subclasses give its content from `self._position` on.

    Args:
        size: in bytes; None where it is not known, and nothing can be sought from the end.
    """

    def __init__(self, size: Optional[int] = None) -> None:
        super().__init__()
        self.size = size
        self._position = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        if whence == io.SEEK_END and self.size is None:
            raise io.UnsupportedOperation("the end is not known")
        position = offset + (0, self._position, self.size)[whence]
        if position < 0:
            raise ValueError(f"position {position} is before the start")
        self._position = position
        return position

    def readinto(self, buffer) -> int:
        content = self._content(len(buffer))
        buffer[: len(content)] = content
        self._position += len(content)
        return len(content)

    def _content(self, count: int) -> bytes:
        """At most `count` bytes; none at the end only."""
        raise NotImplementedError


class Concatenation(RandomAccess):
    """Files one after the other, as a single one.

    Args:
        paths: the files.
    """

    def __init__(self, paths: Sequence[str]) -> None:
        self._ends = list(itertools.accumulate(os.stat(path).st_size for path in paths))
        super().__init__(self._ends[-1])
        self._files = [open(path, "rb", buffering=0) for path in paths]
        self.consumed = 0  # how far it was read

    def _content(self, count: int) -> bytes:
        number = bisect.bisect_right(self._ends, self._position)
        if number == len(self._files):
            return b""
        file, start = self._files[number], ([0] + self._ends)[number]
        file.seek(self._position - start)
        content = file.read(count)
        self.consumed = max(self.consumed, self._position + len(content))
        return content

    def close(self) -> None:
        for file in self._files:
            file.close()
        super().close()


class Inflated(RandomAccess):
    """The uncompressed content of gzip streams, one after the other.

    States of the decompressor are kept at intervals, to continue from them later, so that a jump costs at most one
    interval. There are never more than `MAX_STATES`, so that memory is bounded.

    Args:
        file: the gzip streams.
        interval: least number of uncompressed bytes between two states; it doubles when there are too many states.
    """

    def __init__(self, file: Concatenation, interval: int = 1 << 21) -> None:
        super().__init__()
        self._file = file
        self._interval = interval
        self._starts: List[int] = [0]
        self._states = [
            (0, True, zlib.decompressobj(31))
        ]  # position in the file, whether between streams, decompressor
        self._go_to(0)

    def _go_to(self, number: int) -> None:
        """Continue from a state that was kept."""
        self._start, self._chunk = self._starts[number], b""
        self._place, self._between, state = self._states[number]
        self._state = state.copy()

    def _content(self, count: int) -> bytes:
        nearest = bisect.bisect_right(self._starts, self._position) - 1
        if self._position < self._start or self._starts[nearest] > self._start + len(self._chunk):
            self._go_to(nearest)
        while self._position >= self._start + len(self._chunk):
            if not self._advance():
                return b""
        begin = self._position - self._start
        return self._chunk[begin : begin + count]

    def _advance(self) -> bool:
        """Decompress the next chunk; False at the end."""
        self._start, self._chunk = self._start + len(self._chunk), b""
        self._keep_state()
        self._file.seek(self._place)
        packed = self._file.read(_CHUNK)
        if not packed and not self._between:
            raise EOFError("the archive is cut off")
        if self._between:
            padding = len(packed) - len(packed.lstrip(b"\0"))
            self._place, packed = self._place + padding, packed[padding:]
            if not packed:
                return padding > 0
            self._state, self._between = zlib.decompressobj(31), False
        self._chunk = self._state.decompress(packed)
        self._place += len(packed) - len(self._state.unused_data)
        self._between = self._state.eof
        return True

    def _keep_state(self) -> None:
        if self._between or self._start < self._starts[-1] + self._interval:
            return
        self._starts.append(self._start)
        self._states.append((self._place, False, self._state.copy()))
        if len(self._states) > MAX_STATES:
            self._starts, self._states = self._starts[::2], self._states[::2]
            self._interval *= 2
