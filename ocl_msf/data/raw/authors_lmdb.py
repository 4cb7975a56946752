"""Data sets as the authors of MSF publish them, in LMDB (https://github.com/Genera1Z/VQ-VFM-OCL).

Raw: `train.lmdb` and `val.lmdb`, or one of them. Under `__keys__` each has the pickled list of its keys, under each key
a pickled dict: `image`, the file of an image, `segment`, a WebP file of one number for each pixel, 0 for the
background, and for COCO the `clazz`, `isthing` and `bbox` of each segment from 1 on; or `video` and `segment`, AVI
files without loss, and `bbox` (T, N, 4). They are read without running what pickles name (`_pickles`).
"""

import functools
import io
import os
from pathlib import Path
from typing import Any, Callable, Dict, List, NamedTuple, Tuple

import lmdb
import numpy as np
from PIL import Image

from ocl_msf.data.raw import clevrtex, movi
from ocl_msf.data.raw._images import Box, bounding_box, central_square, crop_image, crop_mask, read_image, resize_mask
from ocl_msf.data.raw._pickles import UnsafePickle, loads
from ocl_msf.data.shards import Conversion, Sample, encode_array
from ocl_msf.data.workers import Rejected
from ocl_msf.files import DataError, explain_missing

SPLITS = ("train", "val", "test")


class RawSample(NamedTuple):
    """A sample's file and key."""

    path: str
    key: bytes


class _Content(NamedTuple):
    """A file within a sample, for `read_image`."""

    content: bytes
    name: str

    def __str__(self) -> str:
        return self.name

    def read(self) -> bytes:
        return self.content


def folder_name(variant: str = "clevrtex") -> str:
    """Name of the converted data set."""
    return variant


def prepare(raw: Path, variant: str = "clevrtex", size: int = 128) -> Conversion:
    """List the samples of `raw` and plan their conversion, with their keys.

    Args:
        raw: an LMDB file, or the folder that holds one for each split.
        variant: which of `VARIANTS` it is.
        size: side of the output in pixels.

    Raises:
        DataError: there is no such file, it is none of LMDB, or its keys are not as they have to be.
    """
    files = [raw] if raw.is_file() else [raw / f"{split}.lmdb" for split in SPLITS]
    files = [file for file in files if file.is_file()]
    names = [file.stem.rsplit("-", 1)[-1].rsplit("_", 1)[-1] for file in files]
    if not files or not set(names) <= set(SPLITS):
        raise DataError(f"{raw} is neither a file like train.lmdb or val.lmdb, nor a folder of such files.")
    return Conversion(
        options={"variant": variant, "size": size},
        splits={name: _list_samples(file) for name, file in zip(names, files)},
        encode=functools.partial(encode_sample, variant, size),
    )


@functools.lru_cache(maxsize=4)
def _open(path: str, process: int) -> lmdb.Environment:
    return lmdb.open(path, subdir=False, readonly=True, lock=False, readahead=False)


def _list_samples(path: Path) -> List[RawSample]:
    try:
        keys = _read(RawSample(str(path), b"__keys__"))
    except (UnsafePickle, lmdb.Error) as error:
        raise DataError(f"{path} is damaged, or no LMDB file of the authors: {error}. Download it again.") from error
    if not isinstance(keys, list) or not all(isinstance(key, bytes) and key.isalnum() for key in keys):
        raise DataError(f"{path}: __keys__ is no list of keys. Download it again.")
    return [RawSample(str(path), key) for key in keys]


def _read(sample: RawSample) -> Any:
    with _open(sample.path, os.getpid()).begin() as transaction:
        content = transaction.get(sample.key)
    if content is None:
        raise UnsafePickle(f"nothing under {sample.key.decode()}")
    return loads(content)


def encode_sample(variant: str, size: int, raw: RawSample) -> Sample:
    """Crop the central square of an image, or take the frames of a video, and resize them.

    Returns:
        The key, and the files that the converter of the data set writes: see `encode_scene` in `clevrtex`,
        `encode_image` in `coco` and `voc`, and `encode_video` in `movi`. Crowds are not known in COCO and count as
        none, areas are those of the segments; classes are not known in VOC, and `segmentation-class` has the objects.

    Raises:
        Rejected: the sample is damaged, or of another data set.
    """
    name = raw.key.decode()
    try:
        fields = _read(raw)
    except (UnsafePickle, lmdb.Error) as error:
        raise Rejected("damaged sample", name, str(error)) from error
    wanted, encode = VARIANTS[variant]
    if not isinstance(fields, dict) or not wanted <= set(fields) or ("isthing" in fields) != ("isthing" in wanted):
        there = ", ".join(sorted(map(str, fields))) if isinstance(fields, dict) else type(fields).__name__
        raise Rejected(f"no sample of {variant}", name, f"it has {there}")
    return name, encode(name, fields, size)


def _read_picture(name: str, fields: Dict[str, Any]) -> Tuple[Image.Image, np.ndarray, Box]:
    """The image, the number of each pixel's segment (H, W), and the square to crop."""
    contents = {key: _Content(_bytes(name, fields, key), key) for key in ("image", "segment")}
    image = read_image(name, "image", contents["image"], rgb=True)  # type: ignore[arg-type]
    mask = read_image(name, "segment", contents["segment"], image.size, formats=("WEBP", "PNG"))  # type: ignore[arg-type]
    numbers = np.asarray(mask)
    return image, numbers if numbers.ndim == 2 else numbers[..., 0], central_square(*image.size)


def _bytes(name: str, fields: Dict[str, Any], key: str) -> bytes:
    value = fields[key]
    if isinstance(value, np.ndarray) and value.dtype == np.uint8:
        return value.tobytes()
    if isinstance(value, bytes):
        return value
    raise Rejected(f"{key} is no file", name, type(value).__name__)


def _encode_clevrtex(name: str, fields: Dict[str, Any], size: int) -> Dict[str, bytes]:
    image, numbers, box = _read_picture(name, fields)
    return clevrtex.encode_files(name, "segment", image, numbers, box, size)


def _encode_coco(name: str, fields: Dict[str, Any], size: int) -> Dict[str, bytes]:
    image, numbers, box = _read_picture(name, fields)
    classes, things = (np.asarray(fields[key]) for key in ("clazz", "isthing"))
    if classes.ndim != 1 or classes.shape != things.shape or numbers.max(initial=0) > len(classes):
        raise Rejected("segments and their classes do not fit", name, f"{numbers.max()}, {classes.shape}")
    areas = (numbers == np.arange(1, len(classes) + 1)[:, None, None]).sum((1, 2))
    cropped, numbers = _renumber(crop_mask(numbers, box, size))
    kept = cropped - 1
    return {
        "image.png": crop_image(image, box, size),
        "segmentation.npy.gz": encode_array(numbers[..., None]),
        "segment_category.npy.gz": encode_array(classes[kept].astype(np.uint8)),
        "segment_isthing.npy.gz": encode_array(things[kept].astype(np.uint8)),
        "segment_iscrowd.npy.gz": encode_array(np.zeros(len(kept), np.uint8)),
        "segment_area.npy.gz": encode_array(areas[kept].astype(np.float32)),
    }


def _encode_voc(name: str, fields: Dict[str, Any], size: int) -> Dict[str, bytes]:
    image, numbers, box = _read_picture(name, fields)
    objects, numbers = _renumber(crop_mask(numbers, box, size))
    boxes = [bounding_box(numbers == number) for number in range(1, len(objects) + 1)]
    mask = encode_array(numbers[..., None])
    return {
        "image.png": crop_image(image, box, size),
        "segmentation-class.npy.gz": mask,
        "segmentation-instance.npy.gz": mask,
        "instance_category.npy.gz": encode_array(np.zeros(len(objects), np.uint8)),
        "instance_bbox.npy.gz": encode_array(np.array(boxes, np.float32).reshape(-1, 4)),
    }


def _renumber(numbers: np.ndarray) -> Tuple[np.ndarray, np.ndarray]:
    """The numbers above 0 that are there, in order, and the mask with 1, 2, ... in their place, uint8."""
    present = np.unique(numbers)
    present = present[present > 0].astype(np.int64)
    return present, np.where(numbers > 0, np.searchsorted(present, numbers) + 1, 0).astype(np.uint8)


def _encode_movi(most: int, name: str, fields: Dict[str, Any], size: int) -> Dict[str, bytes]:
    video, masks = (_read_video(name, fields, key, form) for key, form in (("video", "rgb24"), ("segment", "gray")))
    boxes = np.asarray(fields["bbox"], np.float32)
    if video.shape[:3] != masks.shape[:3] or boxes.ndim != 3 or (len(boxes), boxes.shape[2]) != (len(video), 4):
        raise Rejected("video, masks and boxes do not fit", name, f"{video.shape}, {masks.shape}, {boxes.shape}")
    if masks.max() > boxes.shape[1]:
        raise Rejected("mask of an unknown object", name, f"{masks.max()} of {boxes.shape[1]}")
    table = np.zeros((len(video), most, 4), np.float32)
    table[:, : boxes.shape[1]] = boxes[:, :most]
    frames = [np.asarray(Image.fromarray(x).resize((size, size), Image.Resampling.BILINEAR)) for x in video]
    return {
        "video.npy.gz": encode_array(np.stack(frames)),
        "segmentations.npy.gz": encode_array(np.stack([resize_mask(mask, size, size) for mask in masks])[..., None]),
        "instance_bbox.npy.gz": encode_array(table),
    }


def _read_video(name: str, fields: Dict[str, Any], key: str, form: str) -> np.ndarray:
    with explain_missing("The authors' videos are AVI files, which need PyAV: pip install av"):
        import av
    try:
        with av.open(io.BytesIO(_bytes(name, fields, key)), format="avi") as container:
            return np.stack([frame.to_ndarray(format=form) for frame in container.decode(video=0)])
    except Rejected:
        raise
    except Exception as error:  # PyAV has no common class for what a damaged file can cause
        raise Rejected(f"damaged {key}", name, str(error) or repr(error)) from error


# What tells the samples of each, and how they are encoded.
VARIANTS: Dict[str, Tuple[frozenset, Callable[..., Dict[str, bytes]]]] = {
    "clevrtex": (frozenset({"image", "segment"}), _encode_clevrtex),
    "coco_panoptic": (frozenset({"image", "segment", "clazz", "isthing"}), _encode_coco),
    "voc": (frozenset({"image", "segment"}), _encode_voc),
    **{
        f"movi_{variant}": (frozenset({"video", "segment", "bbox"}), functools.partial(_encode_movi, most))
        for variant, most in movi.MAX_OBJECTS.items()
    },
}
