"""OpenImages (https://storage.googleapis.com/openimages/web): images with object masks, and their boxes.

Raw: a folder with `class-descriptions-boxable.csv`, `{train,validation,test}-annotations-object-segmentation.csv`, the
images, `train_{0..f}.tar.gz`, `{validation,test}.tar.gz` or `<id>.jpg`, and `{train,validation,test}-masks-{0..f}.zip`
or what they contain, wherever it lies; with `{train,validation,test}-annotations-bbox.csv` boxes are converted too.
"""

import functools
import hashlib
from pathlib import Path
from typing import Any, Collection, Dict, FrozenSet, Iterable, List, NamedTuple, Optional, Tuple

import numpy as np

from ocl_msf.data.raw import _openimages_annotations as annotations
from ocl_msf.data.raw._images import Box, box_area, central_square, crop_image, crop_mask, read_image
from ocl_msf.data.raw._openimages_annotations import Record
from ocl_msf.data.raw._sources import AnySource, Source, Sources
from ocl_msf.data.raw.filter import PAPER, ObjectFilter
from ocl_msf.data.shards import Conversion, Sample, encode_array
from ocl_msf.data.workers import Filtered, Rejected
from ocl_msf.files import DataError

SPLITS = {"train": "train", "val": "validation", "test": "test"}  # ours: OpenImages'
CLASSES = ("class-descriptions-boxable.csv", "oidv7-class-descriptions-boxable.csv")
MASKS = "{}-annotations-object-segmentation.csv"
TARS = [f"{name}.tar{suffix}" for name in ("train_?", "train", "validation", "test") for suffix in ("", ".gz")]
BOXES = ("{}-annotations-bbox.csv", "oidv6-{}-annotations-bbox.csv")


class Settings(NamedTuple):
    """How samples are made: the side of the output, the filter (None keeps all) and what it looks at."""

    size: int
    objects: Optional[ObjectFilter]
    measure: str


class Item(NamedTuple):
    """One image: its files, None where they are missing, its annotations, and whether boxes are among them."""

    name: str
    image: Optional[AnySource]
    masks: Tuple[Optional[AnySource], ...]
    record: Record
    boxes: bool


def folder_name() -> str:
    """Name of the converted data set."""
    return "openimages"


def prepare(
    raw: Path,
    splits: Optional[List[str]] = None,
    ids: Optional[Path] = None,
    size: int = 256,
    objects: Optional[ObjectFilter] = PAPER,
    measure: str = "resized",
) -> Conversion:
    """Find images and annotations in `raw` and plan their conversion; the images go by their ids.

    Args:
        raw: Folder of the download.
        splits: Some of `SPLITS`; by default those whose masks' CSV is in `raw`.
        ids: Text file with an image id in each line, as `id` or `split/id`: the subset to convert; by default all
            images with masks.
        size: Side of the output in pixels.
        objects: Which images and objects to keep; None keeps all.
        measure: Where the filter counts and measures: "resized", in the sample, or "original", by the boxes in the
            original image.

    Raises:
        DataError: They are not there, an archive is damaged, or annotations are not as they have to be.
    """
    tables = [table.format(split) for split in SPLITS.values() for table in (MASKS, *BOXES)]
    sources = Sources(raw, folders=(), files=[*CLASSES, *tables])
    splits = splits or [split for split in SPLITS if sources.find(MASKS.format(SPLITS[split]))]
    if not splits:
        raise DataError(f"No {MASKS.format('train')} in {raw}, nor another split's. Download it into there.")
    file = _first(sources, CLASSES)
    if file is None:
        raise DataError(f"No {CLASSES[0]} in {raw}. Download it into there: it has the names of the classes.")
    classes = annotations.read_classes(file)
    chosen = None if ids is None else annotations.read_ids(ids)
    boxes = {split: _first(sources, [name.format(SPLITS[split]) for name in BOXES]) for split in splits}
    records = {split: _read_split(sources, split, boxes[split], classes, chosen) for split in splits}
    described: Dict[str, Any] = {"size": size, "filter": None, "ids": None}
    if objects is not None:
        described["filter"] = {**objects._asdict(), "measure": measure}
    if chosen is not None:
        described["ids"] = _identity(sorted(chosen))
    described["classes"] = _identity(classes)
    described["boxes"] = [split for split in splits if boxes[split]]
    encode = functools.partial(encode_image, Settings(size, objects, measure))
    return Conversion(described, _find_files(raw, records, boxes), encode)


def _first(sources: Sources, names: Iterable[str]) -> Optional[Source]:
    return next((source for source in map(sources.find, names) if source), None)


def _identity(names: Collection[bytes]) -> Dict[str, Any]:
    """What distinguishes one list of names from another."""
    return {"number": len(names), "sha256": hashlib.sha256(b"\n".join(names)).hexdigest()}


def _read_split(
    sources: Sources,
    split: str,
    boxes: Optional[Source],
    classes: Dict[bytes, int],
    ids: Optional[FrozenSet[bytes]],
) -> Dict[bytes, Record]:
    """The annotations of a split's images by their ids, in their order."""
    name = MASKS.format(SPLITS[split])
    source = sources.find(name)
    if source is None:
        raise DataError(f"{name} is missing. Download it, or choose other --splits.")
    records = annotations.read_masks(source, classes, ids)
    if boxes is not None:
        annotations.add_boxes(boxes, classes, ids, records)
    if not records:
        raise DataError(f"{source} has no masks" + (" of the images in --ids." if ids else ". Download it again."))
    return dict(sorted(records.items()))


def _find_files(
    raw: Path, records: Dict[str, Dict[bytes, Record]], boxes: Dict[str, Optional[Source]]
) -> Dict[str, List[Item]]:
    """The items of every split, with the files that they need."""
    wanted = {f"{name.decode()}.jpg" for split in records.values() for name in split}
    wanted.update(mask for split in records.values() for record in split.values() for mask in record.masks)
    files = Sources(raw, folders=(), files=wanted, tars=TARS)
    items = {
        split: [
            Item(
                name.decode(),
                files.find(f"{name.decode()}.jpg"),
                tuple(map(files.find, record.masks)),
                record,
                boxes[split] is not None,
            )
            for name, record in images.items()
        ]
        for split, images in records.items()
    }
    for split, content in items.items():
        if not any(item.image for item in content):
            raise DataError(f"None of the images of {split} is in {raw}. Download them into there: <id>.jpg")
        if not any(mask for item in content for mask in item.masks):
            archives = f"{SPLITS[split]}-masks-0.zip to {SPLITS[split]}-masks-f.zip"
            raise DataError(f"None of the masks of {split} is in {raw}. Download {archives} into there.")
    return items


def encode_image(settings: Settings, item: Item) -> Sample:
    """Crop the central square of an image and its masks, resize and filter.

    Masks have sizes of their own: each is resized to its image's first. Where masks overlap, the smaller one is on
    top, by the share of the image that it covers; of equal ones the later in the annotation.

    Returns:
        The image id as a decimal number, for `f"{int(key):016x}"` is the id, and with S = `settings.size`, N objects
        and K boxes that the crop leaves,

        * `image.png`, RGB (S, S), without further loss;
        * `segmentation.npy.gz` (S, S, 1) uint8, 0 where there is no mask, 1 to N in the order of the annotation;
        * `segment_category` (N,) uint16, a class by its line of `class-descriptions-boxable.csv`, from 1, and
          `segment_area` (N,) float32 in pixels of the original image, overlaps counted for both;
        * where the split has boxes, `bbox` (K, 4) float32, left, top, width and height in pixels of the sample,
          `bbox_category` (K,) uint16 and `bbox_isgroup` (K,) int8, 1 for a group of objects, -1 where unknown. They
          are not filtered, and there are more of them than masks.

    Raises:
        Rejected: A file is missing or damaged, the annotations are, or the filter leaves the image out.
    """
    record = item.record
    if record.problem:
        raise Rejected("damaged annotation", item.name, record.problem)
    if not record.masks:
        raise Filtered("no masks", item.name)
    if len(record.masks) > 254:
        raise Rejected("more than 254 masks", item.name, str(len(record.masks)))
    image = read_image(item.name, "image", item.image, mode="RGB")
    box = central_square(*image.size)
    numbers, shares = _paint(item, image.size, box, settings.size)
    numbers, kept = _choose(settings, item, numbers, image.size)
    files = {
        "image.png": crop_image(image, box, settings.size),
        "segmentation.npy.gz": encode_array(numbers[..., None]),
        "segment_category.npy.gz": encode_array(np.array(record.categories, np.uint16)[kept]),
        "segment_area.npy.gz": encode_array((shares * image.width * image.height).astype(np.float32)[kept]),
    }
    if item.boxes:
        files.update(_encode_boxes(record, image.size, box, settings.size))
    return str(int(item.name, 16)), files


def _paint(item: Item, image_size: Tuple[int, int], box: Box, size: int) -> Tuple[np.ndarray, np.ndarray]:
    """The number of every pixel's mask, from 1: (size, size) uint8, and the masks' shares of the image (N,)."""
    masks, shares = [], []
    for source in item.masks:
        mask = _read_mask(item.name, source, image_size)
        shares.append(np.count_nonzero(mask) / mask.size)
        masks.append(crop_mask(_resize(mask, *image_size), box, size))
    numbers = np.zeros((size, size), np.uint8)
    for i in sorted(range(len(masks)), key=lambda i: (-shares[i], i)):
        numbers[masks[i]] = i + 1
    return numbers, np.array(shares)


def _read_mask(name: str, source: Optional[AnySource], image_size: Tuple[int, int]) -> np.ndarray:
    """A mask as it is in its file: (H, W) bool."""
    image = read_image(name, "mask", source)
    if len(image.getbands()) > 1:
        raise Rejected("mask is not greyscale", name, f"{source}: {image.mode}")
    (width, height), (mask_width, mask_height) = image_size, image.size
    # The sides of both are rounded: each product is off by half a pixel of each side that it stands for, at most.
    if abs(mask_width * height - mask_height * width) > width + height + mask_width + mask_height:
        raise Rejected("mask of another shape than its image", name, f"{source}: {image.size}, not {image_size}")
    return np.asarray(image) != 0


def _resize(mask: np.ndarray, width: int, height: int) -> np.ndarray:
    """Nearest exact: pixel i shows floor((i + 0.5) * side / new side)."""
    rows, columns = ((2 * np.arange(new) + 1) * old // (2 * new) for new, old in zip((height, width), mask.shape))
    return mask[rows[:, None], columns]


def _choose(
    settings: Settings, item: Item, numbers: np.ndarray, image_size: Tuple[int, int]
) -> Tuple[np.ndarray, np.ndarray]:
    """Filter objects and number those that are left in the sample without gaps; which ones these are (N,) bool."""
    each = numbers == np.arange(1, len(item.masks) + 1)[:, None, None]
    kept = each.any(axis=(1, 2))
    if settings.objects is not None and settings.measure == "resized":
        kept[kept] = settings.objects(item.name, np.array([box_area(mask) for mask in each[kept]]))
    elif settings.objects is not None:
        left, top, right, bottom = np.array(item.record.corners).reshape(-1, 4).T
        kept &= settings.objects(item.name, (right - left) * (bottom - top) * image_size[0] * image_size[1])
    table = np.concatenate([[0], np.where(kept, np.cumsum(kept), 0)]).astype(np.uint8)
    return table[numbers], kept


def _encode_boxes(record: Record, image_size: Tuple[int, int], box: Box, size: int) -> Dict[str, bytes]:
    origin, side = np.array(box[:2]), box[2] - box[0]
    corners = np.array(record.box_corners, np.float64).reshape(-1, 2, 2) * image_size
    starts, stops = np.moveaxis(((corners - origin) * size / side).clip(0, size), 1, 0)
    kept = (stops > starts).all(axis=1)
    return {
        "bbox.npy.gz": encode_array(np.hstack([starts, stops - starts])[kept].astype(np.float32)),
        "bbox_category.npy.gz": encode_array(np.array(record.box_categories, np.uint16)[kept]),
        "bbox_isgroup.npy.gz": encode_array(np.array(record.box_groups, np.int8)[kept]),
    }
