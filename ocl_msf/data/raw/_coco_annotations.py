"""COCO's annotations: JSON files, polygons and run lengths."""

import array
import contextlib
import json
import re
from typing import Any, Dict, List, NamedTuple, Optional, Tuple

import numpy as np

from ocl_msf.data.raw._sources import READ_ERRORS, Source
from ocl_msf.files import DataError

FARTHEST = 2  # from the image, in sides of it: where corners of polygons may be


class Segment(NamedTuple):
    """One thing or stuff region of the panoptic annotation; areas are in pixels of the raw image."""

    id: int
    category: int
    isthing: bool
    iscrowd: bool
    area: float
    box_area: float


class Instance(NamedTuple):
    """One object: its box is left, top, width and height; the segmentation is that of the file."""

    category: int
    iscrowd: bool
    box: Tuple[float, ...]
    area: float
    segmentation: Any


class ImageAnnotations(NamedTuple):
    """The annotations of one image; `image` and `panoptic` are names of files."""

    id: int
    image: str
    width: int
    height: int
    panoptic: str
    segments: List[Segment]
    instances: List[Instance]


def read_annotations(panoptic: Source, instances: Optional[Source]) -> List[ImageAnnotations]:
    """The annotations of all images in order of their ids, of images without any, too.

    Raises:
        DataError: a file is damaged or lacks the structure of COCO's.
    """
    content = _load(panoptic)
    try:
        is_thing = {_byte(entry["id"]): bool(entry["isthing"]) for entry in content["categories"]}
        images = {_natural(entry["id"]): entry for entry in content["images"]}
        _require(len(images) == len(content["images"]), "an image is there twice")
        segments = {}
        for entry in content["annotations"]:
            image = entry["image_id"]
            _require(image in images and image not in segments, f"annotation of image {image} without or again")
            segments[image] = (_text(entry["file_name"]), _segments(entry["segments_info"], is_thing))
        objects = _instances(instances)
        return [
            ImageAnnotations(
                number,
                _text(entry["file_name"]),
                _natural(entry["width"]),
                _natural(entry["height"]),
                *segments.get(number, ("", [])),
                objects.get(number, []),
            )
            for number, entry in sorted(images.items())
        ]
    except (KeyError, TypeError, ValueError, OverflowError, AttributeError) as error:
        raise _structure(panoptic, error) from error


def _load(source: Source) -> Any:
    try:
        return json.loads(source.read(), object_hook=_pack)
    except READ_ERRORS + (RecursionError,) as error:
        raise DataError(f"{source} is damaged ({error}). Download or unpack it again.") from error


def _pack(entry: Dict[str, Any]) -> Dict[str, Any]:
    """Keep polygons, the bulk of the files, in a quarter of the memory of lists."""
    if isinstance(entry.get("segmentation"), list):
        with contextlib.suppress(TypeError, OverflowError):  # `rasterize` says what is wrong
            entry["segmentation"] = [array.array("d", polygon) for polygon in entry["segmentation"]]
    return entry


def _structure(source: Source, error: Exception) -> DataError:
    what = f"no {error}" if isinstance(error, KeyError) else str(error)
    return DataError(f"{source} has not the structure of COCO 2017's ({what}). Download or unpack it again.")


def _require(condition: bool, what: str) -> None:
    if not condition:
        raise ValueError(what)


def _natural(value: Any) -> int:
    _require(isinstance(value, int) and 0 <= value < 1 << 53, f"{value!r:.40} is no number or id")
    return value


def _byte(value: Any) -> int:
    _require(_natural(value) < 256, f"{value} is no category")
    return value


def _number(value: Any) -> float:
    _require(abs(float(value)) < 1e12, f"{value!r:.40} is no size or place in an image")
    return float(value)


def _text(value: Any) -> str:
    _require(isinstance(value, str), f"{value!r:.40} is no name of a file")
    return value


def _box(values: Any) -> Tuple[float, ...]:
    _require(isinstance(values, list) and len(values) == 4, f"{values!r:.40} is no bounding box")
    return tuple(map(_number, values))


def _segments(entries: Any, is_thing: Dict[int, bool]) -> List[Segment]:
    segments = []
    for entry in entries:
        category, box = entry["category_id"], _box(entry["bbox"])
        _require(category in is_thing, f"category {category!r:.40} of a segment is not among the categories")
        segments.append(
            Segment(
                _natural(entry["id"]),
                category,
                is_thing[category],
                bool(entry["iscrowd"]),
                _number(entry["area"]),
                box[2] * box[3],
            )
        )
    return segments


def _instances(source: Optional[Source]) -> Dict[int, List[Instance]]:
    """The objects of every image, in the order of the file."""
    objects: Dict[int, List[Instance]] = {}
    if source is None:
        return objects
    content = _load(source)
    try:
        for entry in content["annotations"]:
            instance = Instance(
                _byte(entry["category_id"]),
                bool(entry["iscrowd"]),
                _box(entry["bbox"]),
                _number(entry["area"]),
                entry["segmentation"],
            )
            objects.setdefault(_natural(entry["image_id"]), []).append(instance)
    except (KeyError, TypeError, ValueError, OverflowError, AttributeError) as error:
        raise _structure(source, error) from error
    return objects


def rasterize(segmentation: Any, height: int, width: int) -> np.ndarray:
    """The mask (H, W) uint8 of a list of polygons, or of run lengths whose `counts` are a list or a string.

    It is what pycocotools draws. As its C code trusts its input, that is checked here. Polygons with fewer than three
    corners are empty.

    Raises:
        TypeError, ValueError, KeyError, OverflowError: the segmentation is not one of these.
    """
    from pycocotools import mask  # here, because nothing but COCO's instances needs it

    if isinstance(segmentation, dict):
        _require(segmentation["size"] == [height, width], f"run lengths of size {segmentation['size']!r:.40}")
        counts = segmentation["counts"]
        counts = decode_counts(counts) if isinstance(counts, str) else counts
        _require(isinstance(counts, list), "run lengths are neither a list nor a string")
        _require(all(isinstance(count, int) and 0 <= count for count in counts), "a run length is no number")
        _require(sum(counts) == height * width, f"run lengths do not add up to {height} x {width}")
        return mask.decode(mask.frPyObjects({"size": [height, width], "counts": counts}, height, width))
    _require(isinstance(segmentation, list), "a segmentation is neither polygons nor run lengths")
    polygons = [_polygon(polygon, height, width) for polygon in segmentation]
    polygons = [polygon for polygon in polygons if len(polygon) >= 6]
    if not polygons:
        return np.zeros((height, width), np.uint8)
    return mask.decode(mask.merge(mask.frPyObjects(polygons, height, width)))


def _polygon(values: Any, height: int, width: int) -> np.ndarray:
    """The corners x, y, x, y, ... (2N,); pycocotools takes memory and time for the length of the outline."""
    polygon = np.array(values, np.float64)
    _require(polygon.ndim == 1 and len(polygon) % 2 == 0, "a polygon is no list of x and y")
    _require(
        bool((np.abs(polygon) <= FARTHEST * max(height, width)).all()), "a corner is far from the image or no number"
    )
    return polygon


def decode_counts(text: str) -> List[int]:
    """Run lengths from their compressed string, because pycocotools gives none to check before it draws them.

    A character is 48 plus six bits: five of the number, the lowest first, and one that says that more follow. The
    numbers are signed, and from the fourth on they are differences to the run length two before.

    Raises:
        ValueError: the string ends within a number or has other characters.
    """
    _require(re.fullmatch("([P-o]*[0-O])*", text) is not None, "run lengths have other characters or end in a number")
    counts: List[int] = []
    for digits in re.findall("[P-o]*[0-O]", text):
        value = sum((ord(digit) - 48 & 31) << 5 * place for place, digit in enumerate(digits))
        if ord(digits[-1]) - 48 & 16:
            value -= 1 << 5 * len(digits)
        counts.append(value + (counts[-2] if len(counts) > 2 else 0))
    return counts
