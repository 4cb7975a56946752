"""Opening files on any file system, with patience for those behind a network."""
import io
import logging
import time

from fsspec.implementations.local import LocalFileSystem

log = logging.getLogger(__name__)

WAITS = (0.5, 2, 8)  # seconds before each further attempt
HOPELESS = (FileNotFoundError, IsADirectoryError, PermissionError)


def open_stream(filesystem, path):
    """Open a file for reading; a failing read is tried again, remote files are opened anew for that."""
    if isinstance(filesystem, LocalFileSystem):
        return persistently(lambda: filesystem.open(path, "rb"), path)
    return io.BufferedReader(_PatientStream(filesystem, path), buffer_size=2**20)


def persistently(action, name):
    """Return what an action returns, and repeat it after a while when it fails.

    Raises:
        OSError: it failed too often.
    """
    for wait in (*WAITS, None):
        try:
            return action()
        except HOPELESS:
            raise
        except Exception as error:  # clients of file systems raise errors of their own
            if wait is None:
                raise OSError(f"{len(WAITS) + 1} attempts failed, the last one with: {error}") from error
            log.warning("Reading %s failed, trying again in %g s: %s", name, wait, error)
        time.sleep(wait)


class _PatientStream(io.RawIOBase):
    """A file that is read from the start to the end, and opened again where it failed."""

    def __init__(self, filesystem, path):
        super().__init__()
        self._filesystem = filesystem
        self._path = path
        self._position = 0
        self._file = None
        persistently(self._reopen, path)

    def readable(self):
        return True

    def readinto(self, buffer):
        data = persistently(lambda: self._read(len(buffer)), self._path)
        buffer[: len(data)] = data
        self._position += len(data)
        return len(data)

    def close(self):
        if self._file is not None:
            self._file.close()
        super().close()

    def _read(self, size):
        if self._file is None:
            self._reopen()
        try:
            return self._file.read(size)
        except Exception:
            self._file = None
            raise

    def _reopen(self):
        file, missing = self._filesystem.open(self._path, "rb"), self._position
        if missing and file.seekable():
            file.seek(missing)
            missing = 0
        while missing:  # a server that only sends whole files
            skipped = len(file.read(min(missing, 2**20)))
            if not skipped:
                raise OSError(f"{self._path} has become shorter")
            missing -= skipped
        self._file = file
