"""Opening files on any file system; reads over a network are retried."""

import io
import logging
import time
from collections.abc import Callable
from typing import Any, Optional, TypeVar

from fsspec import AbstractFileSystem
from fsspec.implementations.local import LocalFileSystem

log = logging.getLogger(__name__)

WAITS = (0.5, 2, 8)  # seconds before each further attempt
NOT_RETRIED = (FileNotFoundError, IsADirectoryError, PermissionError)
Result = TypeVar("Result")


def open_stream(filesystem: AbstractFileSystem, path: str) -> Any:
    """Open a file for reading; failures are retried, and remote files reopened where reading failed."""
    if isinstance(filesystem, LocalFileSystem):
        return retry(lambda: filesystem.open(path, "rb"), path)
    return io.BufferedReader(_ReopeningStream(filesystem, path), buffer_size=2**20)


def retry(action: Callable[[], Result], name: str) -> Result:
    """Return what an action returns; when it fails, wait and repeat it.

    Raises:
        OSError: if it failed too often.
    """
    waits = iter(WAITS)
    while True:
        try:
            return action()
        except NOT_RETRIED:
            raise
        except Exception as error:  # clients of file systems raise errors of their own
            wait = next(waits, None)
            if wait is None:
                raise OSError(f"{len(WAITS) + 1} attempts failed, the last one with: {error}") from error
            log.warning("Reading %s failed, trying again in %g s: %s", name, wait, error)
        time.sleep(wait)


class _ReopeningStream(io.RawIOBase):
    """A file that is read from start to end, and reopened where reading failed."""

    def __init__(self, filesystem: AbstractFileSystem, path: str):
        super().__init__()
        self._filesystem, self._path = filesystem, path
        self._options: dict[str, Any] = {}
        self._position = 0
        self._file: Optional[Any] = retry(self._open, path)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data = retry(lambda: self._read(len(buffer)), self._path)
        buffer[: len(data)] = data
        self._position += len(data)
        return len(data)

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
        super().close()

    def _read(self, size: int) -> bytes:
        file, self._file = self._file or self._open(), None
        try:
            data = file.read(size)
        except ValueError:  # what fsspec says of a web server that does not send parts of files
            self._options = {"block_size": 0}  # asks for the whole
            raise
        self._file = file  # one that failed is not used again
        return data

    def _open(self) -> Any:
        file, missing = self._filesystem.open(self._path, "rb", **self._options), self._position
        try:
            if missing:
                file.seek(missing)
        except ValueError:  # it cannot seek, whatever `seekable` says
            while missing:
                skipped = len(file.read(min(missing, 2**20)))
                if not skipped:
                    raise OSError(f"{self._path} has become shorter") from None
                missing -= skipped
        return file
