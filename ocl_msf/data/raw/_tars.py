"""Members of tar archives, compressed by gzip or not, read without unpacking."""

import bisect
import functools
import io
import itertools
import os
import tarfile
import zlib
from pathlib import Path
from typing import BinaryIO, Iterator, List, NamedTuple, Sequence, Tuple

from tqdm import tqdm

SUFFIXES = (".tar", ".tar.gz", ".tgz")
MAX_STATES = 2048  # of a decompressor, each about 50 KB
_BLOCK = 512  # of a tar archive
_CHUNK = 1 << 15  # compressed bytes at a time
_LARGE = 1 << 28  # bytes of an archive whose listing shows progress


class TarMember(NamedTuple):
    """Where a file is in an archive; small and picklable, archives are opened once in every process that reads.

    Attributes:
        paths: The files that make the archive, in a row.
        name: Of the member.
        offset: Of its content in the archive, uncompressed, in bytes.
        size: Of its content in bytes.
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
    """All regular files of an archive that consists of files in a row, or of archives in a row.

    Raises:
        OSError, EOFError, zlib.error, tarfile.TarError: It is damaged or cut off.
    """
    names = tuple(map(str, paths))
    size = sum(path.stat().st_size for path in paths)
    with tqdm(total=size, desc=f"list {paths[0].name}", unit="B", unit_scale=True, disable=size < _LARGE) as progress:
        with _open(names) as file:
            start = 0
            while _skip_zeros(file, start):
                archive = tarfile.TarFile(fileobj=file)
                member = archive.next()
                while member is not None:
                    if member.isreg():
                        yield TarMember(names, member.name, member.offset_data, member.size)
                    progress.update(file.raw.consumed - progress.n)
                    archive.members.clear()
                    member = archive.next()
                start = archive.offset
                file.seek(start)
                if file.read(_BLOCK).strip(b"\0"):
                    raise tarfile.ReadError(f"no file begins at byte {start}")


def _skip_zeros(file: BinaryIO, start: int) -> bool:
    """Go to the first block that is not empty; False where there is none."""
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
    return _open(paths)


def _open(paths: Tuple[str, ...]) -> BinaryIO:
    """The archive, uncompressed, to seek in; its `raw` counts the bytes read of the files as `consumed`."""
    files = Concatenation(paths)
    magic = files.read(2)
    files.seek(0)
    return io.BufferedReader(Inflated(files) if magic == b"\x1f\x8b" else files, 1 << 16)


class _Seekable(io.RawIOBase):
    """What file-like objects have in common; subclasses fill a buffer from `self._position` on."""

    def __init__(self) -> None:
        super().__init__()
        self._position = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        position = offset + (0, self._position)[whence]
        if position < 0:
            raise ValueError(f"position {position} is before the start")
        self._position = position
        return position

    def readinto(self, buffer) -> int:
        content = self._content(len(buffer))
        buffer[: len(content)] = content
        self._position += len(content)
        return len(content)


class Concatenation(_Seekable):
    """Files in a row as one to seek in.

    Args:
        paths: The files.
    """

    def __init__(self, paths: Sequence[str]) -> None:
        super().__init__()
        self._files = [open(path, "rb", buffering=0) for path in paths]
        self._ends = list(itertools.accumulate(os.stat(path).st_size for path in paths))
        self.consumed = 0

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


class Inflated(_Seekable):
    """What gzip compressed, as a file to seek in.

    On the way, states of the decompressor are kept, from which it can go on later; a jump costs at most what
    lies between two of them. They are never more than `MAX_STATES`, so the memory is bounded.

    Args:
        file: One or more gzip streams in a row.
        interval: Uncompressed bytes between two states, at least; it doubles when there are too many.
    """

    def __init__(self, file: Concatenation, interval: int = 1 << 21) -> None:
        super().__init__()
        self._file = file
        self._interval = interval
        self._starts: List[int] = [0]
        self._states = [(0, True, zlib.decompressobj(31))]  # position in the file, before a stream?, decompressor
        self._go_to(0)

    @property
    def consumed(self) -> int:
        """How far the file was read."""
        return self._file.consumed

    def _go_to(self, number: int) -> None:
        """Take up a state that was kept."""
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
        """Decompress a bit more; False at the end."""
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
