"""PASCAL VOC 2012 segmentation (http://host.robots.ox.ac.uk/pascal/VOC/voc2012/): masks of classes and of objects.

Raw: a folder with `VOCtrainval_11-May-2012.tar`, or with what it contains, wherever it lies. For more training images
(trainaug) also the Semantic Boundaries Dataset, SBD: `benchmark.tgz`, or what it contains.
"""

import functools
import io
import re
from pathlib import Path
from typing import Dict, List, NamedTuple, Optional, Sequence, Tuple

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
VOID = 255  # borders of objects, and what is too difficult to tell
_FOLDERS = ("JPEGImages", "SegmentationClass", "SegmentationObject", "Segmentation")
_SBD_FOLDERS = ("img", "cls", "inst", "dataset")
_TARS = ("VOCtrainval*2012*.tar", "VOCtrainval*2012*.t*gz")
_SBD_TARS = ("benchmark*.t*gz", "benchmark*.tar")


class Settings(NamedTuple):
    """How samples are made: the side of the output, the filter (None keeps all) and what it looks at."""

    size: int
    objects: Optional[ObjectFilter]
    count: str
    measure: str


class Item(NamedTuple):
    """One image: its id and its files, None where they are missing; masks are PNG files, or .mat files of SBD."""

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
    objects: Optional[ObjectFilter] = PAPER,
    count: str = "classes",
    measure: str = "resized",
) -> Conversion:
    """Find images and masks in `raw` and plan their conversion, in the order of VOC's lists.

    Args:
        raw: Folder of the download.
        variant: Images of the train split: "train", VOC's, or "trainaug", also those of SBD that are not in VOC's val.
        splits: Some of `SPLITS`.
        size: Side of the output in pixels.
        objects: Which images and objects to keep; None keeps all.
        count: What the filter takes for an object: "classes", all pixels of a class, as the paper's semantic masks
            do, or "objects".
        measure: Where the filter counts and measures: "resized", in the sample, as the paper's remark on its
            resolution suggests, or "original", in the original image.

    Raises:
        DataError: Lists or images are not there, an archive is damaged, or a list is not one of ids.
    """
    settings = Settings(size, objects, count, measure)
    augmented = variant == "trainaug"
    folders, tars = (_FOLDERS + _SBD_FOLDERS, _TARS + _SBD_TARS) if augmented else (_FOLDERS, _TARS)
    sources = Sources(raw, folders, tars=tars, without=["VOC2007"])
    if not sources.count("JPEGImages"):
        raise DataError(
            f"No files of a folder JPEGImages in {raw}. Give the folder with VOCtrainval_11-May-2012.tar or "
            "what it contains."
        )
    names = {split: _read_list(sources, f"Segmentation/{split}.txt") for split in SPLITS}
    items = {split: [_voc_item(sources, name) for name in names[split]] for split in dict.fromkeys(splits)}
    if augmented and "train" in items:
        items["train"] += _sbd_items(sources, leave_out={*names["train"], *names["val"]})
    described = {"variant": variant, "size": size, "filter": None}
    if objects is not None:
        described["filter"] = {**objects._asdict(), "count": count, "measure": measure}
    return Conversion(described, items, functools.partial(encode_image, settings))


def _read_list(sources: Sources, name: str) -> List[str]:
    """The ids in a list, each once."""
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


def _voc_item(sources: Sources, name: str) -> Item:
    masks = [sources.find(f"{folder}/{name}.png") for folder in ("SegmentationClass", "SegmentationObject")]
    return Item(name, sources.find(f"JPEGImages/{name}.jpg"), *masks, from_sbd=False)


def _sbd_items(sources: Sources, leave_out: set) -> List[Item]:
    """The images of SBD by their ids."""
    if not sources.count("cls"):
        raise DataError("--variant trainaug needs SBD: put benchmark.tgz, or what it contains, into the same folder.")
    names = {name for split in SPLITS for name in _read_list(sources, f"dataset/{split}.txt")}
    items = []
    for name in sorted(names - leave_out):
        image = sources.find(f"JPEGImages/{name}.jpg") or sources.find(f"img/{name}.jpg")
        masks = [sources.find(f"{folder}/{name}.mat") for folder in ("cls", "inst")]
        items.append(Item(name, image, *masks, from_sbd=True))
    return items


def encode_image(settings: Settings, item: Item) -> Sample:
    """Crop the central square of an image and its masks, resize and filter.

    Returns:
        The digits of the id and, with S = `settings.size` and N objects that the crop leaves,

        * `image.png`, RGB (S, S), without further loss;
        * `segmentation-class.npy.gz` (S, S, 1) uint8, 0 for the background, classes 1 to 20, 255 void;
        * `segmentation-instance.npy.gz` (S, S, 1) uint8, 0 for the background, 1 to N in the order of the original,
          255 void; background and void are where the classes say so;
        * `instance_category.npy.gz` (N,) uint8, and `instance_bbox.npy.gz` (N, 4) float32, left, top, width and
          height in pixels of the sample, of what is seen there.

        Objects that the filter leaves out without their image are void.

    Raises:
        Rejected: A file is missing or damaged, the masks do not fit, or the filter leaves the image out.
    """
    image = read_image(item.name, "image", item.image, mode="RGB")
    read = _read_mat if item.from_sbd else _read_png
    classes = read(item.name, "class mask", item.classes, image.size)
    objects = read(item.name, "object mask", item.objects, image.size)
    objects = _fit(item.name, classes, objects)
    box = central_square(*image.size)
    original = {"classes": classes, "objects": objects}
    masks = {name: crop_mask(mask, box, settings.size) for name, mask in original.items()}
    if settings.objects is not None:
        counted = (masks if settings.measure == "resized" else original)[settings.count]
        numbers = _numbers(counted)
        areas = np.array([box_area(counted == number) for number in numbers])
        small = numbers[~settings.objects(item.name, areas)]
        left_out = np.isin(masks[settings.count], small)
        masks = {name: np.where(left_out, np.uint8(VOID), mask) for name, mask in masks.items()}
    return item.name.replace("_", ""), {"image.png": crop_image(image, box, settings.size), **_encode(**masks)}


def _read_png(name: str, what: str, source: Optional[AnySource], size: Tuple[int, int]) -> np.ndarray:
    """A palette image's indices, never its colours: (H, W) uint8."""
    mask = read_image(name, what, source, size, formats=("PNG",))
    if mask.mode not in ("P", "L"):
        raise Rejected(f"{what} is neither a palette nor a grey image", name, mask.mode)
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
    """What is in a mask besides background and void."""
    return np.setdiff1d(mask, (0, VOID))


def _fit(name: str, classes: np.ndarray, objects: np.ndarray) -> np.ndarray:
    """Objects (H, W), each with pixels of one class; void where a class has no object."""
    known = _numbers(classes)
    if known.size and known[-1] > CLASSES:
        raise Rejected("class mask with a class that VOC does not have", name, f"{known[-1]}")
    objects = np.where(np.isin(classes, known), np.where(objects == 0, VOID, objects), classes).astype(np.uint8)
    for number in _numbers(objects):
        found = np.unique(classes[objects == number])
        if len(found) > 1:
            raise Rejected("an object of several classes", name, f"object {number}: {found.tolist()}")
    return objects


def _encode(classes: np.ndarray, objects: np.ndarray) -> Dict[str, bytes]:
    """Number the objects that are left without gaps, and describe them."""
    numbers = _numbers(objects)
    table = np.zeros(256, np.uint8)
    table[VOID] = VOID
    table[numbers] = np.arange(1, len(numbers) + 1)
    shown = [objects == number for number in numbers]
    boxes = np.array([bounding_box(mask) for mask in shown], np.float32).reshape(-1, 4)
    return {
        "segmentation-class.npy.gz": encode_array(classes[..., None]),
        "segmentation-instance.npy.gz": encode_array(table[objects][..., None]),
        "instance_category.npy.gz": encode_array(np.array([classes[mask][0] for mask in shown], np.uint8)),
        "instance_bbox.npy.gz": encode_array(boxes),
    }
