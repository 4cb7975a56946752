"""PASCAL VOC 2012 segmentation (http://host.robots.ox.ac.uk/pascal/VOC/voc2012/): masks of classes and of objects.

Raw: a folder with `VOCtrainval_11-May-2012.tar`, or with its content, in whatever subfolders. For more training images
(trainaug) also the Semantic Boundaries Dataset, SBD: `benchmark.tgz`, or its content.
"""

import functools
import io
import re
from pathlib import Path
from typing import Dict, List, NamedTuple, Optional, Sequence, Set, Tuple

import numpy as np

from ocl_msf.data.raw._images import bounding_box, box_area, central_square, crop_image, crop_mask, read_image
from ocl_msf.data.raw._sources import READ_ERRORS, AnySource, Sources
from ocl_msf.data.raw.filter import PAPER, ObjectFilter
from ocl_msf.data.shards import Conversion, Sample, encode_array
from ocl_msf.data.workers import Rejected
from ocl_msf.files import DataError

VARIANTS = ("train", "trainaug")
SPLITS = ("train", "val")
CLASSES = 20  # numbered from 1
VOID = 255  # outlines of objects, and regions that are too difficult to label
_FOLDERS = ("JPEGImages", "SegmentationClass", "SegmentationObject", "Segmentation")
_SBD_FOLDERS = ("img", "cls", "inst", "dataset")
_TARS = ("VOCtrainval*2012*.tar", "VOCtrainval*2012*.t*gz")
_SBD_TARS = ("benchmark*.t*gz", "benchmark*.tar")


class RawImage(NamedTuple):
    """One image: its id and its files, None if they are missing; masks are PNG files, or .mat files of SBD."""

    name: str
    image: Optional[AnySource]
    classes: Optional[AnySource]
    objects: Optional[AnySource]
    from_sbd: bool


def folder_name(variant: str = "train") -> str:
    """Name of the converted data set."""
    return "voc" if variant == "train" else f"voc_{variant}"


def prepare(
    raw: Path,
    variant: str = "train",
    splits: Sequence[str] = SPLITS,
    size: int = 128,
    object_filter: Optional[ObjectFilter] = PAPER,
    count: str = "classes",
    measure: str = "resized",
) -> Conversion:
    """Find images and masks in `raw` and plan their conversion, in the order of VOC's lists.

    Args:
        raw: folder of the download.
        variant: images of the train split: "train", VOC's, or "trainaug", also those of SBD that are not in VOC's val.
        splits: some of `SPLITS`.
        size: side of the output in pixels.
        object_filter: which images and objects to keep; None keeps all.
        count: what the filter takes for an object: "classes", all pixels of a class, as the paper's semantic masks
            do, or "objects".
        measure: where the filter counts and measures: "resized", in the sample, as the paper's remark on its
            resolution suggests, or "original", in the original image.

    Raises:
        DataError: lists or images are missing, or an archive or a list is damaged.
    """
    object_filter = object_filter and object_filter._replace(count=count, measure=measure)
    augmented = variant == "trainaug"
    folders, tars = (_FOLDERS + _SBD_FOLDERS, _TARS + _SBD_TARS) if augmented else (_FOLDERS, _TARS)
    sources = Sources(raw, folders, tars=tars, without=["VOC2007"])
    if not sources.count("JPEGImages"):
        raise DataError(
            f"No files of a folder JPEGImages in {raw}. Give the folder with VOCtrainval_11-May-2012.tar or "
            "what it contains."
        )
    names = {split: _read_list(sources, f"Segmentation/{split}.txt") for split in SPLITS}
    images = {split: [_voc_image(sources, name) for name in names[split]] for split in dict.fromkeys(splits)}
    if augmented and "train" in images:
        images["train"] += _sbd_images(sources, without={*names["train"], *names["val"]})
    options = {"variant": variant, "size": size, "filter": object_filter and object_filter.describe()}
    return Conversion(options, images, functools.partial(encode_image, size, object_filter))


def _read_list(sources: Sources, name: str) -> List[str]:
    """The ids in a list, without repetitions."""
    source = sources.find(name)
    if source is None:
        raise DataError(f"The list {name} is missing. Unpack or download VOCtrainval_11-May-2012.tar and SBD again.")
    try:
        lines = source.read().decode("ascii").splitlines()
    except READ_ERRORS as error:
        raise DataError(f"{source} is damaged ({error}). Download it again.") from error
    names = [line.strip() for line in lines if line.strip()]
    for name in names:
        if not re.fullmatch(r"\d{4}_\d{6}", name):
            raise DataError(f"{source} has the line {name[:40]!r}, which is no id of VOC 2012 such as 2007_000032.")
    return list(dict.fromkeys(names))


def _voc_image(sources: Sources, name: str) -> RawImage:
    masks = [sources.find(f"{folder}/{name}.png") for folder in ("SegmentationClass", "SegmentationObject")]
    return RawImage(name, sources.find(f"JPEGImages/{name}.jpg"), *masks, from_sbd=False)  # type: ignore[misc]


def _sbd_images(sources: Sources, without: Set[str]) -> List[RawImage]:
    """The images of SBD in order of their ids."""
    if not sources.count("cls"):
        raise DataError("--variant trainaug needs SBD: put benchmark.tgz, or what it contains, into the same folder.")
    names = {name for split in SPLITS for name in _read_list(sources, f"dataset/{split}.txt")}
    images = []
    for name in sorted(names - without):
        image = sources.find(f"JPEGImages/{name}.jpg") or sources.find(f"img/{name}.jpg")
        masks = [sources.find(f"{folder}/{name}.mat") for folder in ("cls", "inst")]
        images.append(RawImage(name, image, *masks, from_sbd=True))  # type: ignore[misc]
    return images


def encode_image(size: int, object_filter: Optional[ObjectFilter], raw_image: RawImage) -> Sample:
    """Crop the central square of an image and its masks, resize and filter.

    Returns:
        The digits of the id and, with S = `size` and N objects within the crop,

        * `image.png`, RGB (S, S), compressed without loss;
        * `segmentation-class.npy.gz` (S, S, 1) uint8, 0 for the background, classes 1 to 20, 255 void;
        * `segmentation-instance.npy.gz` (S, S, 1) uint8, 0 for the background, 1 to N in the order of the original,
          255 void; background and void are those of the classes;
        * `instance_category.npy.gz` (N,) uint8, and `instance_bbox.npy.gz` (N, 4) float32, left, top, width and
          height in pixels of the sample, around the visible pixels.

        Objects that the filter removes without their image become void.

    Raises:
        Rejected: a file is missing or damaged, the masks do not fit, or the filter removes the image.
    """
    name = raw_image.name
    image = read_image(name, "image", raw_image.image, rgb=True)
    read = _read_mat if raw_image.from_sbd else _read_png
    classes = read(name, "class mask", raw_image.classes, image.size)
    objects = read(name, "object mask", raw_image.objects, image.size)
    original = {"classes": classes, "objects": _align_objects(name, classes, objects)}
    box = central_square(*image.size)
    masks = {kind: crop_mask(mask, box, size) for kind, mask in original.items()}
    if object_filter is not None:
        counted = (masks if object_filter.measure == "resized" else original)[object_filter.count]
        numbers = _numbers(counted)
        areas = np.array([box_area(counted == number) for number in numbers])
        removed = np.isin(masks[object_filter.count], numbers[~object_filter(name, areas)])
        masks = {kind: np.where(removed, np.uint8(VOID), mask) for kind, mask in masks.items()}
    return name.replace("_", ""), {"image.png": crop_image(image, box, size), **_encode_masks(**masks)}


def _read_png(name: str, what: str, source: Optional[AnySource], size: Tuple[int, int]) -> np.ndarray:
    """A palette image's indices, never its colours: (H, W) uint8."""
    mask = read_image(name, what, source, size, formats=("PNG",))
    if mask.mode not in ("P", "L"):
        raise Rejected(f"{what} is neither a palette nor a grey image of 8 bits", name, mask.mode)
    return np.asarray(mask)


def _read_mat(name: str, what: str, source: Optional[AnySource], size: Tuple[int, int]) -> np.ndarray:
    """A mask of SBD: (H, W) uint8."""
    from scipy.io import loadmat  # here, because it takes longer to start than all the rest of a conversion

    if source is None:
        raise Rejected(f"missing {what}", name)
    variable = "GTcls" if what == "class mask" else "GTinst"
    try:
        content = loadmat(io.BytesIO(source.read()), variable_names=[variable])
        mask = np.asarray(content[variable][0, 0]["Segmentation"])
        if mask.ndim != 2 or mask.dtype.kind not in "iuf" or not np.isin(mask, np.arange(256)).all():
            raise ValueError(f"Segmentation is {mask.dtype} {mask.shape}, not (H, W) of whole numbers up to 255")
    except Exception as error:  # SciPy has no common class for what a damaged file can cause
        raise Rejected(f"damaged {what}", name, f"{source}: {str(error) or repr(error)}") from error
    if mask.shape != size[::-1]:
        raise Rejected(f"{what} of another size", name, f"{mask.shape[::-1]}, not {size}")
    return mask.astype(np.uint8)


def _numbers(mask: np.ndarray) -> np.ndarray:
    """The numbers in a mask other than background and void."""
    return np.setdiff1d(mask, (0, VOID))


def _align_objects(name: str, classes: np.ndarray, objects: np.ndarray) -> np.ndarray:
    """Objects (H, W), with background and void as in the classes; pixels of a class without an object become void."""
    known = _numbers(classes)
    if known.size and known[-1] > CLASSES:
        raise Rejected("class mask with a class that VOC does not have", name, f"{known[-1]}")
    objects = np.where(np.isin(classes, known), np.where(objects == 0, VOID, objects), classes).astype(np.uint8)
    for number in _numbers(objects):
        own = np.unique(classes[objects == number])
        if len(own) > 1:
            raise Rejected("an object of several classes", name, f"object {number}: {own.tolist()}")
    return objects


def _encode_masks(classes: np.ndarray, objects: np.ndarray) -> Dict[str, bytes]:
    """Number the remaining objects without gaps, and describe them."""
    numbers = _numbers(objects)
    table = np.zeros(256, np.uint8)
    table[VOID] = VOID
    table[numbers] = np.arange(1, len(numbers) + 1)
    masks = [objects == number for number in numbers]
    boxes = np.array([bounding_box(mask) for mask in masks], np.float32).reshape(-1, 4)
    return {
        "segmentation-class.npy.gz": encode_array(classes[..., None]),
        "segmentation-instance.npy.gz": encode_array(table[objects][..., None]),
        "instance_category.npy.gz": encode_array(np.array([classes[mask][0] for mask in masks], np.uint8)),
        "instance_bbox.npy.gz": encode_array(boxes),
    }
