"""OpenImages' annotations: CSV files of millions of lines, read line by line and kept in packed arrays."""

import array
import csv
import functools
import io
import re
from pathlib import Path
from typing import BinaryIO, Dict, FrozenSet, Iterator, List, Optional, Sequence, Tuple

from tqdm import tqdm

from ocl_msf.data.raw._sources import READ_ERRORS, Source
from ocl_msf.files import DataError

ID = re.compile(rb"[0-9a-f]{16}")
_MASK_FILE = re.compile(rb"([0-9a-f]{16})_[\w-]+\.png")
_LONGEST = 1 << 20  # bytes of a line; one that is longer is damaged
_LARGE = 1 << 26  # bytes of a file whose reading shows progress
_MASK_COLUMNS = ("ImageID", "MaskPath", "LabelName", "BoxXMin", "BoxXMax", "BoxYMin", "BoxYMax")
_BOX_COLUMNS = ("ImageID", "LabelName", "XMin", "XMax", "YMin", "YMax", "IsGroupOf")


class ImageAnnotations:
    """The annotations of one image; corners are left, top, right and bottom as shares of its sides.

    Attributes:
        masks: names of the mask files, in the order of the CSV.
        categories: their classes.
        corners: of their objects' boxes, four each.
        box_categories: classes of all annotated boxes.
        box_corners: their corners, four each.
        box_groups: 1 for a box around a group of objects, 0 for one object, -1 if unknown.
        problem: what is wrong with the annotations, "" if nothing is.
    """

    __slots__ = ("masks", "categories", "corners", "box_categories", "box_corners", "box_groups", "problem")

    def __init__(self) -> None:
        self.masks: List[str] = []
        self.categories, self.corners = array.array("H"), array.array("f")
        self.box_categories, self.box_corners = array.array("H"), array.array("f")
        self.box_groups = array.array("b")
        self.problem = ""


class _LineError(Exception):
    """What is wrong with a line."""


def read_classes(source: Source) -> Dict[bytes, int]:
    """The number of each class, from 1 in the order of `class-descriptions-boxable.csv`, by its label.

    Raises:
        DataError: the file is damaged.
    """
    try:
        rows = list(csv.reader(io.StringIO(source.read().decode("utf-8-sig"), newline=""), strict=True))
        rows = rows[1:] if rows and rows[0][:1] == ["LabelName"] else rows
        labels = [label.encode() for label, _ in rows]
    except READ_ERRORS + (csv.Error,) as error:
        raise DataError(f"{source} is damaged ({error}). Download it again.") from error
    wrong = next((label for label in labels if not label.startswith(b"/")), None)
    if wrong is not None or not 0 < len(set(labels)) == len(labels) < 1 << 16:
        what = f"{wrong!r:.40} is no label such as /m/011k07" if wrong else "no labels, or one twice"
        raise DataError(f"{source} is damaged ({what}). Download it again.")
    return {label: number for number, label in enumerate(labels, 1)}


def read_ids(path: Path) -> FrozenSet[bytes]:
    """Image ids from a text file with a line for each: `id`, `split/id`, or a CSV whose first column they are.

    Raises:
        DataError: the file is missing or has other content.
    """
    ids = set()
    try:
        with open(path, "rb") as file:
            for number, line in enumerate(file, 1):
                text = line.split(b",", 1)[0].strip().rsplit(b"/", 1)[-1]
                if ID.fullmatch(text):
                    ids.add(text)
                elif text and not (number == 1 and text == b"ImageID"):
                    raise DataError(
                        f"{path}, line {number}, is no image id of 16 hexadecimal digits: {text[:40]!r}. Write a text "
                        "file with an id in each line (a pickled .npy file cannot be read here, only converted before)."
                    )
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}. Give the file with the image ids.") from error
    if not ids:
        raise DataError(f"{path} is empty. Write an image id in each line.")
    return frozenset(ids)


def read_masks(
    source: Source, classes: Dict[bytes, int], ids: Optional[FrozenSet[bytes]]
) -> Dict[bytes, ImageAnnotations]:
    """The images that have masks, by their ids; only those in `ids` unless it is None.

    A line that cannot be used is recorded as the problem of its image, or under its number if it names no image.

    Raises:
        DataError: the file cannot be read or has other columns.
    """
    images: Dict[bytes, ImageAnnotations] = {}
    for name, values, damage in _lines(source, _MASK_COLUMNS, ids):
        image = _image(images, name)
        try:
            if damage:
                raise _LineError(damage)
            file, label, *corners = values
            match = _MASK_FILE.fullmatch(file)
            if match is None or match.group(1) != name:
                raise _LineError(f"{file[:60]!r} is no mask file of this image")
            category, box = _category(classes, label), _corners(corners)
            image.masks.append(file.decode())
            image.categories.append(category)
            image.corners.extend(box)
        except _LineError as error:
            image.problem = image.problem or str(error)
    return images


def add_boxes(
    source: Source, classes: Dict[bytes, int], ids: Optional[FrozenSet[bytes]], images: Dict[bytes, ImageAnnotations]
) -> None:
    """Add boxes to `images`, and add the images in `ids` that have boxes but no masks.

    Raises:
        DataError: the file cannot be read or has other columns.
    """
    for name, values, damage in _lines(source, _BOX_COLUMNS, frozenset(images) if ids is None else ids):
        image = _image(images, name)
        try:
            if damage:
                raise _LineError(damage)
            label, *corners, group = values
            if group not in (b"0", b"1", b"-1"):
                raise _LineError(f"{group[:40]!r} is not 0, 1 or -1")
            category, box = _category(classes, label), _corners(corners)
            image.box_categories.append(category)
            image.box_corners.extend(box)
            image.box_groups.append(int(group))
        except _LineError as error:
            image.problem = image.problem or f"box: {error}"


def _image(images: Dict[bytes, ImageAnnotations], name: bytes) -> ImageAnnotations:
    if name not in images:
        images[name] = ImageAnnotations()
    return images[name]


def _lines(
    source: Source, columns: Sequence[str], ids: Optional[FrozenSet[bytes]]
) -> Iterator[Tuple[bytes, List[bytes], str]]:
    """For each line of an image in `ids`: image id, values of the other columns, and what is wrong, "" if nothing."""
    try:
        with _open(source) as file, _progress(source, file) as progress:
            header = file.readline(_LONGEST).decode("utf-8-sig", "replace").strip().split(",")
            missing = [column for column in columns if column not in header]
            if missing:
                raise DataError(f"{source} has no column {', '.join(missing)}. Download it again.")
            first, *places = map(header.index, columns)
            for number, line in enumerate(iter(functools.partial(file.readline, _LONGEST), b""), 2):
                progress.update(len(line))
                values = line.strip().split(b",")
                name = values[first] if first < len(values) else b""
                if not ID.fullmatch(name):
                    if line.strip():
                        yield f"{Path(str(source)).name} line {number}".encode(), [], "no image id of 16 digits"
                elif ids is None or name in ids:
                    whole = len(values) == len(header)
                    damage = "" if whole else f"line {number} has {len(values)} values instead of {len(header)}"
                    yield name, [values[i] for i in places] if whole else [], damage
    except READ_ERRORS as error:
        raise DataError(f"{source} cannot be read ({error}). Download it again.") from error


def _progress(source: Source, file: BinaryIO) -> tqdm:
    size = file.seek(0, io.SEEK_END)
    file.seek(0)
    return tqdm(total=size, desc=Path(str(source)).name, unit="B", unit_scale=True, disable=size < _LARGE)


def _open(source: Source) -> BinaryIO:
    return io.BytesIO(source.read()) if source.member else open(source.path, "rb")


def _category(classes: Dict[bytes, int], label: bytes) -> int:
    if label not in classes:
        raise _LineError(f"{label[:40]!r} is not among the class descriptions")
    return classes[label]


def _corners(texts: Sequence[bytes]) -> Tuple[float, ...]:
    """Left, top, right and bottom from XMin, XMax, YMin and YMax."""
    try:
        left, right, top, bottom = map(float, texts)
    except ValueError as error:
        raise _LineError(str(error)) from error
    if not (0 <= left <= right <= 1 and 0 <= top <= bottom <= 1):
        raise _LineError(f"{left:g} to {right:g}, {top:g} to {bottom:g} is no box in an image")
    return left, top, right, bottom
