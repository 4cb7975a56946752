"""Files that appear under their final name only when they are complete, JSON, and errors that the user can correct."""

import contextlib
import json
import math
import os
from pathlib import Path
from typing import Any, BinaryIO, Iterator, Optional


class DataError(Exception):
    """Wrong data or paths, which the user can correct; the message says what is wrong and where."""


@contextlib.contextmanager
def explain_missing(advice: str) -> Iterator[None]:
    """Wrap the import of a package that an extra brings; without it, raise a DataError of this text."""
    try:
        yield
    except ImportError as error:
        raise DataError(advice) from error


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


def encode_json(content: Any, indent: Optional[int] = None) -> bytes:
    """Encode dicts, lists and plain values; NaN and the infinities, which JSON does not have, become null."""
    return json.dumps(_null_undefined(content), indent=indent, allow_nan=False).encode()


def decode_json(text: str) -> Any:
    """Decode JSON; the NaN and Infinity of other programs, which are none, become None.

    Raises:
        ValueError: it is damaged.
    """
    return json.loads(text, parse_constant=lambda _: None)


def _null_undefined(content: Any) -> Any:
    if isinstance(content, dict):
        return {name: _null_undefined(value) for name, value in content.items()}
    if isinstance(content, (list, tuple)):
        return [_null_undefined(value) for value in content]
    return None if isinstance(content, float) and not math.isfinite(content) else content
