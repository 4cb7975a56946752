"""From the bytes of a stored field to its value, as told by the extension of its name."""

import gzip
import io
import json

import numpy as np
import torch
from PIL import Image

from ocl._shards import ShardError


def decode_sample(raw_sample):
    """Decode all fields of a `RawSample`.

    Returns:
        dict of the values by field name without extension, plus `__key__`.

    Raises:
        ShardError: a field cannot be decoded.
    """
    sample = {"__key__": raw_sample.key}
    for name, data in raw_sample.fields.items():
        try:
            decoded_name, value = decode_field(name, data)
        except Exception as error:
            where = f"Field `{name}` of sample `{raw_sample.key}` in shard `{raw_sample.shard}`"
            problem = str(error).rstrip(".") or type(error).__name__
            raise ShardError(f"{where} cannot be decoded: {problem}. Fetch or write the shard again.") from error
        sample[decoded_name] = value
    return sample


def decode_samples(stream, reader):
    """Yield the decoded samples of a stream, without damaged ones if the reader tolerates them."""
    for raw_sample in stream:
        with reader.tolerance():
            yield decode_sample(raw_sample)


def decode_field(name, data):
    """Decode one field.

    Names that start with `_` are text and keep their name. Unknown extensions are kept, the bytes become a stream.

    Args:
        name: raw field name, for instance `mask.npy.gz`.
        data: bytes as stored.

    Returns:
        (name without the decoded extensions, value).
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


def _split_extension(name):
    stem, dot, extension = name.rpartition(".")
    # A field that is nothing but an extension, as in `0001.png`, goes by that name.
    return (stem if dot else name), extension.lower()


def _decode_image(data):
    return np.array(Image.open(io.BytesIO(data)).convert("RGB"))


def _refuse_pickle(data):
    raise ValueError("pickles can run any code and are not read; store arrays as .npy and the rest as .json")


_DECODERS = {
    "npy": lambda data: np.lib.format.read_array(io.BytesIO(data), allow_pickle=False),
    "npz": lambda data: dict(np.load(io.BytesIO(data), allow_pickle=False)),
    "pt": lambda data: torch.load(io.BytesIO(data), map_location="cpu", weights_only=True),
    **dict.fromkeys(("json", "jsn"), json.loads),
    **dict.fromkeys(("jpg", "jpeg", "png", "ppm", "pgm", "pbm", "pnm"), _decode_image),
    **dict.fromkeys(("txt", "text", "transcript"), bytes.decode),
    **dict.fromkeys(("cls", "cls2", "class", "count", "index", "inx", "id"), int),
    **dict.fromkeys(("pyd", "pickle"), _refuse_pickle),
}
