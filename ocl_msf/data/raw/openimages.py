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

from ocl_msf.data.raw._images import (
    Box,
    box_area,
    central_square,
    crop_image,
    crop_mask,
    read_image,
    renumber,
    resize_mask,
)
from ocl_msf.data.raw._openimages_annotations import ImageAnnotations, add_boxes, read_classes, read_ids, read_masks
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


class RawImage(NamedTuple):
    """The files of one image, None if they are missing, its annotations, and whether these include boxes."""

    name: str
    image: Optional[AnySource]
    masks: Tuple[Optional[AnySource], ...]
    annotations: ImageAnnotations
    has_boxes: bool


def folder_name() -> str:
    """Name of the converted data set."""
    return "openimages"


def prepare(
    raw: Path,
    splits: Optional[List[str]] = None,
    ids: Optional[Path] = None,
    size: int = 256,
    object_filter: Optional[ObjectFilter] = PAPER,
    measure: str = "resized",
) -> Conversion:
    """Find images and annotations in `raw` and plan their conversion, in the order of the images' ids.

    Args:
        raw: folder of the download.
        splits: some of `SPLITS`; by default those whose masks' CSV is in `raw`.
        ids: text file with an image id in each line, as `id` or `split/id`: the subset to convert; by default all
            images with masks.
        size: side of the output in pixels.
        object_filter: which images and objects to keep; None keeps all.
        measure: where the filter counts and measures: "resized", in the sample, or "original", by the boxes in the
            original image.

    Raises:
        DataError: files are missing, or an archive or the annotations are damaged.
    """
    tables = [table.format(split) for split in SPLITS.values() for table in (MASKS, *BOXES)]
    sources = Sources(raw, folders=(), files=[*CLASSES, *tables])
    splits = splits or [split for split in SPLITS if sources.find(MASKS.format(SPLITS[split]))]
    if not splits:
        raise DataError(f"No {MASKS.format('train')} in {raw}, nor another split's. Download it into there.")
    file = _first(sources, CLASSES)
    if file is None:
        raise DataError(f"No {CLASSES[0]} in {raw}. Download it into there: it has the names of the classes.")
    classes = read_classes(file)
    subset = None if ids is None else read_ids(ids)
    boxes = {split: _first(sources, [name.format(SPLITS[split]) for name in BOXES]) for split in splits}
    annotations = {split: _read_split(sources, split, boxes[split], classes, subset) for split in splits}
    object_filter = object_filter and object_filter._replace(measure=measure)
    options = {
        "size": size,
        "filter": object_filter and object_filter.describe(),
        "ids": None if subset is None else _identify(sorted(subset)),
        "classes": _identify(classes),
        "boxes": [split for split in splits if boxes[split]],
    }
    images = _find_files(raw, annotations, boxes)
    return Conversion(options, images, functools.partial(encode_image, size, object_filter))


def _first(sources: Sources, names: Iterable[str]) -> Optional[AnySource]:
    return next((source for source in map(sources.find, names) if source), None)


def _identify(names: Collection[bytes]) -> Dict[str, Any]:
    """Values that identify a list of names."""
    return {"number": len(names), "sha256": hashlib.sha256(b"\n".join(names)).hexdigest()}


def _read_split(
    sources: Sources,
    split: str,
    boxes: Optional[Source],
    classes: Dict[bytes, int],
    ids: Optional[FrozenSet[bytes]],
) -> Dict[bytes, ImageAnnotations]:
    """The annotations of the images of a split, by their ids and in their order."""
    name = MASKS.format(SPLITS[split])
    source = sources.find(name)
    if source is None:
        raise DataError(f"{name} is missing. Download it, or choose other --splits.")
    annotations = read_masks(source, classes, ids)
    if boxes is not None:
        add_boxes(boxes, classes, ids, annotations)
    if not annotations:
        raise DataError(f"{source} has no masks" + (" of the images in --ids." if ids else ". Download it again."))
    return dict(sorted(annotations.items()))


def _find_files(
    raw: Path, annotations: Dict[str, Dict[bytes, ImageAnnotations]], boxes: Dict[str, Optional[Source]]
) -> Dict[str, List[RawImage]]:
    """The images of every split, with their files."""
    wanted = {f"{name.decode()}.jpg" for split in annotations.values() for name in split}
    wanted.update(mask for split in annotations.values() for image in split.values() for mask in image.masks)
    files = Sources(raw, folders=(), files=wanted, tars=TARS)
    images = {
        split: [
            RawImage(
                name.decode(),
                files.find(f"{name.decode()}.jpg"),
                tuple(map(files.find, image.masks)),
                image,
                boxes[split] is not None,
            )
            for name, image in content.items()
        ]
        for split, content in annotations.items()
    }
    for split, content in images.items():
        if not any(image.image for image in content):
            raise DataError(f"None of the images of {split} is in {raw}. Download them into there: <id>.jpg")
        if not any(mask for image in content for mask in image.masks):
            archives = f"{SPLITS[split]}-masks-0.zip to {SPLITS[split]}-masks-f.zip"
            raise DataError(f"None of the masks of {split} is in {raw}. Download {archives} into there.")
    return images


def encode_image(size: int, object_filter: Optional[ObjectFilter], raw_image: RawImage) -> Sample:
    """Crop the central square of an image and its masks, resize and filter.

    Masks have sizes of their own: each is first resized to that of its image. Where masks overlap, the one that covers
    the smaller share of the image is on top; of equal ones, the later in the annotation.

    Returns:
        The image id as a decimal number (`f"{int(key):016x}"` is the id) and, with S = `size`, N objects and K boxes
        within the crop,

        * `image.png`, RGB (S, S), compressed without loss;
        * `segmentation.npy.gz` (S, S, 1) uint8, 0 where there is no mask, 1 to N in the order of the annotation;
        * `segment_category` (N,) uint16, a class by its line of `class-descriptions-boxable.csv`, from 1, and
          `segment_area` (N,) float32 in pixels of the original image, overlaps counted for both;
        * if the split has boxes, `bbox` (K, 4) float32, left, top, width and height in pixels of the sample,
          `bbox_category` (K,) uint16 and `bbox_isgroup` (K,) int8, 1 for a group of objects, -1 where unknown. They
          are not filtered, and there are more of them than masks.

    Raises:
        Rejected: a file or the annotations are missing or damaged, or the filter removes the image.
    """
    annotations, name = raw_image.annotations, raw_image.name
    if annotations.problem:
        raise Rejected("damaged annotation", name, annotations.problem)
    if not annotations.masks:
        raise Filtered("no masks", name)
    if len(annotations.masks) > 254:
        raise Rejected("more than 254 masks", name, str(len(annotations.masks)))
    image = read_image(name, "image", raw_image.image, rgb=True)
    box = central_square(*image.size)
    numbers, shares = _merge_masks(raw_image, image.size, box, size)
    kept = _filter_objects(object_filter, raw_image, numbers, image.size)
    files = {
        "image.png": crop_image(image, box, size),
        "segmentation.npy.gz": encode_array(renumber(numbers, kept)[..., None]),
        "segment_category.npy.gz": encode_array(np.array(annotations.categories, np.uint16)[kept]),
        "segment_area.npy.gz": encode_array((shares * image.width * image.height).astype(np.float32)[kept]),
    }
    if raw_image.has_boxes:
        files.update(_encode_boxes(annotations, image.size, box, size))
    return str(int(name, 16)), files


def _merge_masks(
    raw_image: RawImage, image_size: Tuple[int, int], box: Box, size: int
) -> Tuple[np.ndarray, np.ndarray]:
    """The number of each pixel's object, i + 1 for object i: (size, size) uint8, and shares of the image (N,)."""
    masks, shares = [], []
    for source in raw_image.masks:
        mask = _read_mask(raw_image.name, source, image_size)
        shares.append(np.count_nonzero(mask) / mask.size)
        masks.append(crop_mask(resize_mask(mask, *image_size), box, size))
    numbers = np.zeros((size, size), np.uint8)
    for i in sorted(range(len(masks)), key=lambda i: (-shares[i], i)):
        numbers[masks[i]] = i + 1
    return numbers, np.array(shares)


def _read_mask(name: str, source: Optional[AnySource], image_size: Tuple[int, int]) -> np.ndarray:
    """The mask in a file: (H, W) bool."""
    image = read_image(name, "mask", source)
    if len(image.getbands()) > 1:
        raise Rejected("mask is not greyscale", name, f"{source}: {image.mode}")
    (width, height), (mask_width, mask_height) = image_size, image.size
    # All four sides are rounded, by half a pixel at most, and each counts by the side that multiplies it.
    if abs(mask_width * height - mask_height * width) > width + height + mask_width + mask_height:
        raise Rejected("mask of another shape than its image", name, f"{source}: {image.size}, not {image_size}")
    return np.asarray(image) != 0


def _filter_objects(
    object_filter: Optional[ObjectFilter], raw_image: RawImage, numbers: np.ndarray, image_size: Tuple[int, int]
) -> np.ndarray:
    """Which objects are visible in `numbers` (S, S) and kept by the filter: (N,) bool."""
    masks = numbers == np.arange(1, len(raw_image.masks) + 1)[:, None, None]
    kept = masks.any(axis=(1, 2))
    if object_filter is not None and object_filter.measure == "resized":
        kept[kept] = object_filter(raw_image.name, np.array([box_area(mask) for mask in masks[kept]]))
    elif object_filter is not None:
        left, top, right, bottom = np.array(raw_image.annotations.corners).reshape(-1, 4).T
        kept &= object_filter(raw_image.name, (right - left) * (bottom - top) * image_size[0] * image_size[1])
    return kept


def _encode_boxes(annotations: ImageAnnotations, image_size: Tuple[int, int], box: Box, size: int) -> Dict[str, bytes]:
    origin, side = np.array(box[:2]), box[2] - box[0]
    corners = np.array(annotations.box_corners, np.float64).reshape(-1, 2, 2) * image_size
    starts, stops = np.moveaxis(((corners - origin) * size / side).clip(0, size), 1, 0)
    kept = (stops > starts).all(axis=1)
    return {
        "bbox.npy.gz": encode_array(np.hstack([starts, stops - starts])[kept].astype(np.float32)),
        "bbox_category.npy.gz": encode_array(np.array(annotations.box_categories, np.uint16)[kept]),
        "bbox_isgroup.npy.gz": encode_array(np.array(annotations.box_groups, np.int8)[kept]),
    }
