"""Files that appear under their final name only when they are complete, and errors that the user can correct."""

import contextlib
import os
from pathlib import Path
from typing import BinaryIO, Iterator


class DataError(Exception):
    """Wrong data or paths, which the user can correct; the message says what is wrong and where."""


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """Open a file for writing; it appears under its name only when it is complete.

    Raises:
        DataError: the file cannot be written, for example because the disk is full.
    """
    partial = path.with_name(path.name + ".partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(partial, "wb") as file:
            yield file
        os.replace(partial, path)
    except BaseException as error:
        with contextlib.suppress(OSError):
            partial.unlink()
        if isinstance(error, OSError):
            raise DataError(f"{path} was not written: {error.strerror}. Correct that and run again.") from error
        raise
