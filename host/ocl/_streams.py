"""Opening files on any file system, with patience for those behind a network."""

import io
import logging
import time

from fsspec.implementations.local import LocalFileSystem

log = logging.getLogger(__name__)

WAITS = (0.5, 2, 8)  # seconds before each further attempt
HOPELESS = (FileNotFoundError, IsADirectoryError, PermissionError)


def open_stream(filesystem, path):
    """Open a file for reading; what fails is tried again, and remote files are opened anew where reading failed."""
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
        self._filesystem, self._path, self._options = filesystem, path, {}
        self._position = 0
        self._file = persistently(self._open, path)

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
        file, self._file = self._file or self._open(), None
        try:
            data = file.read(size)
        except ValueError:  # what fsspec says of a web server that does not send parts of files
            self._options = {"block_size": 0}  # asks for the whole
            raise
        self._file = file  # one that failed is not used again
        return data

    def _open(self):
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
