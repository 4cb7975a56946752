"""Decoding of stored fields by the extensions of their names."""

import gzip
import io
import json
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NoReturn

import numpy as np
import torch
from PIL import Image

from ocl._loader.shards import RawSample, ShardReader
from ocl.errors import ShardError


def decode_sample(raw_sample: RawSample) -> dict[str, Any]:
    """Decode all fields of a sample.

    Returns:
        The values by field name without extension, plus `__key__`.

    Raises:
        ShardError: if a field cannot be decoded.
    """
    sample: dict[str, Any] = {"__key__": raw_sample.key}
    for name, data in raw_sample.fields.items():
        try:
            decoded_name, value = decode_field(name, data)
        except Exception as error:
            where = f"Field `{name}` of sample `{raw_sample.key}` in shard `{raw_sample.shard}`"
            problem = str(error).rstrip(".") or type(error).__name__
            raise ShardError(f"{where} cannot be decoded: {problem}. Fetch or write the shard again.") from error
        sample[decoded_name] = value
    return sample


def decode_samples(stream: Iterable[RawSample], reader: ShardReader) -> Iterator[dict[str, Any]]:
    """Yield the decoded samples of a stream, without damaged ones if the reader tolerates them."""
    for raw_sample in stream:
        reader.current_shard = raw_sample.shard
        with reader.tolerance():
            yield decode_sample(raw_sample)


def decode_field(name: str, data: bytes) -> tuple[str, Any]:
    """Decode one field.

    Names that start with `_` are text and keep their name. Unknown extensions are kept, the bytes become a stream.

    Args:
        name: raw field name, for instance `mask.npy.gz`.
        data: bytes as stored.

    Returns:
        The name without the decoded extensions, and the value.
    """
    if name.startswith("_"):
        return name, data.decode("utf-8")
    stem, extension = _split_extension(name)
    if extension in ("gz", "gzip"):
        name, data = stem, gzip.decompress(data)
        stem, extension = _split_extension(name)
    if extension not in _DECODERS:
        return name, io.BytesIO(data)
    return stem, _DECODERS[extension](data)


def _split_extension(name: str) -> tuple[str, str]:
    stem, dot, extension = name.rpartition(".")
    # A field that is nothing but an extension, as in `0001.png`, goes by that name.
    return (stem if dot else name), extension.lower()


def _decode_image(data: bytes) -> np.ndarray:
    """Decode a picture to RGB (h, w, 3); of grey values of 16 bits the upper 8, as Pillow does with colours.

    Pixels stay in the order in which they are stored, whatever EXIF data say, like those of masks beside them.
    """
    image: Image.Image = Image.open(io.BytesIO(data))
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format in ("PNG", "PPM")):
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    elif image.mode in ("I", "F"):
        raise ValueError(f"pixels have 32 bits (mode {image.mode}). Store arrays as .npy")
    return np.array(image.convert("RGB"))


def _refuse_pickle(data: bytes) -> NoReturn:
    raise ValueError("pickles can run any code and are not read; store arrays as .npy and the rest as .json")


_DECODERS: dict[str, Callable[[bytes], Any]] = {
    "npy": lambda data: np.lib.format.read_array(io.BytesIO(data), allow_pickle=False),
    "npz": lambda data: dict(np.load(io.BytesIO(data), allow_pickle=False)),
    "pt": lambda data: torch.load(io.BytesIO(data), map_location="cpu", weights_only=True),
    **dict.fromkeys(("json", "jsn"), json.loads),
    **dict.fromkeys(("jpg", "jpeg", "png", "ppm", "pgm", "pbm", "pnm"), _decode_image),
    **dict.fromkeys(("txt", "text", "transcript"), bytes.decode),
    **dict.fromkeys(("cls", "cls2", "class", "count", "index", "inx", "id"), int),
    **dict.fromkeys(("pyd", "pickle"), _refuse_pickle),
}
