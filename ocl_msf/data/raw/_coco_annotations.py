"""COCO's annotations: its JSON files, polygons and run lengths."""

import array
import contextlib
import json
from typing import Any, Dict, List, NamedTuple, Optional, Tuple

import numpy as np
from PIL import Image, ImageDraw

from ocl_msf.data.raw._sources import READ_ERRORS, Source
from ocl_msf.files import DataError

SUBPIXELS = 5  # polygons are drawn in so many rows and columns for each pixel; the middle one decides


class Segment(NamedTuple):
    """One thing or stuff region of the panoptic annotation; areas are in pixels of the original image."""

    id: int
    category: int
    isthing: bool
    iscrowd: bool
    area: float
    box_area: float


class Instance(NamedTuple):
    """One object; its box is left, top, width and height, the segmentation is as in the file."""

    category: int
    box: Tuple[float, ...]
    area: float
    segmentation: Any


class Record(NamedTuple):
    """What is known about one image; `panoptic` is the name of its PNG."""

    id: int
    image: str
    width: int
    height: int
    panoptic: str
    segments: List[Segment]
    instances: List[Instance]


def read(panoptic: Source, instances: Optional[Source]) -> List[Record]:
    """Join the annotations of all images, by their ids; images without any are there too.

    Raises:
        DataError: A file is damaged or has not the structure of COCO's.
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
            Record(
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
    """Keep polygons, most of what the files hold, in a quarter of the memory of lists."""
    if isinstance(entry.get("segmentation"), list):
        with contextlib.suppress(TypeError, OverflowError):  # `rasterize` says what is wrong with them
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
                _byte(entry["category_id"]), _box(entry["bbox"]), _number(entry["area"]), entry["segmentation"]
            )
            objects.setdefault(_natural(entry["image_id"]), []).append(instance)
    except (KeyError, TypeError, ValueError, OverflowError, AttributeError) as error:
        raise _structure(source, error) from error
    return objects


def rasterize(segmentation: Any, height: int, width: int) -> np.ndarray:
    """The mask (H, W) uint8 of a list of polygons or of run lengths, in which `counts` is a list or a string.

    A pixel belongs to a polygon when its centre does. Parts with less than three corners are empty.

    Raises:
        TypeError, ValueError, KeyError, OverflowError: The segmentation is not one of these.
    """
    if isinstance(segmentation, dict):
        _require(segmentation["size"] == [height, width], f"run lengths of size {segmentation['size']!r:.40}")
        counts = segmentation["counts"]
        return decode_runs(decode_counts(counts) if isinstance(counts, str) else counts, height, width)
    _require(isinstance(segmentation, list), "a segmentation is neither polygons nor run lengths")
    polygons = [_corners(polygon, height, width) for polygon in segmentation]
    polygons = [polygon for polygon in polygons if len(polygon) > 2]
    mask = np.zeros((height, width), np.uint8)
    if not polygons:
        return mask
    everything = np.concatenate(polygons)
    start = np.clip(np.floor(everything.min(axis=0)), 0, (width, height)).astype(int)
    stop = np.clip(np.ceil(everything.max(axis=0)), start, (width, height)).astype(int)
    canvas = Image.new("L", tuple(((stop - start) * SUBPIXELS).tolist()))
    draw = ImageDraw.Draw(canvas)
    for polygon in polygons:
        places = np.rint((polygon - start) * SUBPIXELS - 0.5).astype(int)
        draw.polygon(places.ravel().tolist(), fill=1)
    middles = slice(SUBPIXELS // 2, None, SUBPIXELS)
    mask[start[1] : stop[1], start[0] : stop[0]] = np.asarray(canvas)[middles, middles]
    return mask


def _corners(polygon: Any, height: int, width: int) -> np.ndarray:
    """Places (N, 2) of x and y, of which those far from the image are brought near."""
    corners = np.array(polygon, np.float64)
    _require(corners.ndim == 1 and len(corners) % 2 == 0, "a polygon is no list of x and y")
    _require(bool(np.isfinite(corners).all()), "a polygon has a corner that is no number")
    return np.clip(corners, -1, 2 * max(height, width)).reshape(-1, 2)


def decode_runs(counts: List[int], height: int, width: int) -> np.ndarray:
    """The mask (H, W) uint8 of run lengths of zeros and ones in turns, down the columns.

    Raises:
        ValueError: They do not add up to the size.
    """
    _require(all(isinstance(count, int) and 0 <= count for count in counts), "a run length is no number")
    _require(sum(counts) == height * width, f"run lengths do not add up to {height} x {width}")
    values = np.arange(len(counts), dtype=np.int64) % 2
    return np.repeat(values, counts).astype(np.uint8).reshape(width, height).T


def decode_counts(text: str) -> List[int]:
    """Run lengths from their compressed string.

    A character is 48 plus six bits: five of the number, the lowest first, and one that says that more follow. The
    numbers are signed, and from the fourth on they are differences to the run length two before.

    Raises:
        ValueError: The string ends within a number or has other characters.
    """
    counts: List[int] = []
    value = shift = 0
    for character in text:
        bits = ord(character) - 48
        _require(0 <= bits < 64, f"{character!r} in run lengths")
        value |= (bits & 31) << shift
        shift += 5
        if bits & 32:
            continue
        if bits & 16:
            value -= 1 << shift
        counts.append(value + (counts[-2] if len(counts) > 2 else 0))
        value = shift = 0
    _require(not shift, "run lengths end within a number")
    return counts
