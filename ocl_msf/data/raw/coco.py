"""COCO 2017 (https://cocodataset.org): panoptic segments, things and stuff, and instances where they are there.

Raw: a folder with `{train,val}2017.zip` and `panoptic_annotations_trainval2017.zip`, or with what they contain,
wherever it lies; with `annotations_trainval2017.zip` instances are converted too.
"""

import functools
from pathlib import Path
from typing import Dict, List, NamedTuple, Optional, Tuple

import numpy as np
from PIL import Image

from ocl_msf.data.raw import _coco_annotations as annotations
from ocl_msf.data.raw._coco_annotations import Record, Segment
from ocl_msf.data.raw._images import box_area, central_square, crop_image, crop_mask, read_image
from ocl_msf.data.raw._sources import Source, Sources
from ocl_msf.data.raw.filter import PAPER, ObjectFilter
from ocl_msf.data.shards import Conversion, Sample, encode_array
from ocl_msf.data.workers import Rejected
from ocl_msf.files import DataError

SPLITS = ("train", "val")  # the test images have no annotations


class Settings(NamedTuple):
    """How samples are made: the side of the output, the filter (None keeps all) and what it looks at."""

    size: int
    objects: Optional[ObjectFilter]
    count: str
    measure: str


class Item(NamedTuple):
    """One image: its files, None where they are missing, and its annotations."""

    name: str
    image: Optional[Source]
    panoptic: Optional[Source]
    record: Record


def folder_name() -> str:
    """Name of the converted data set."""
    return "coco_panoptic"


def prepare(
    raw: Path,
    splits: Optional[List[str]] = None,
    size: int = 128,
    objects: Optional[ObjectFilter] = PAPER,
    count: str = "all",
    measure: str = "resized",
) -> Conversion:
    """Find images and annotations in `raw` and plan their conversion; the images go by their ids.

    Args:
        raw: Folder of the download.
        splits: Some of `SPLITS`; by default those that are in `raw`.
        size: Side of the output in pixels.
        objects: Which images and objects to keep; None keeps all.
        count: Objects of the filter: "all", things and stuff, which 11 slots have to hold, or "things" only.
        measure: Where the filter counts and measures: "resized", in the sample, as the paper's remark on its
            resolution suggests, or "original", in the original image.

    Raises:
        DataError: They are not there, an archive is damaged, or annotations are not as they have to be.
    """
    settings = Settings(size, objects, count, measure)
    kinds = ("panoptic", "instances")
    sources = Sources(
        raw,
        folders=[name for split in SPLITS for name in (f"{split}2017", f"panoptic_{split}2017")],
        files=[f"{kind}_{split}2017.json" for split in SPLITS for kind in kinds],
    )
    splits = splits or [split for split in SPLITS if sources.find(f"panoptic_{split}2017.json")]
    if not splits:
        raise DataError(
            f"No panoptic_train2017.json or panoptic_val2017.json in {raw}. Give the folder with "
            "panoptic_annotations_trainval2017.zip or what it contains."
        )
    items = {split: _find_items(sources, split) for split in splits}
    described = {"size": size, "filter": None}
    if objects is not None:
        described["filter"] = {**objects._asdict(), "count": count, "measure": measure}
    described["instances"] = [split for split in splits if sources.find(f"instances_{split}2017.json")]
    return Conversion(described, items, functools.partial(encode_image, settings))


def _find_items(sources: Sources, split: str) -> List[Item]:
    source = sources.find(f"panoptic_{split}2017.json")
    if source is None:
        raise DataError(f"panoptic_{split}2017.json is missing. Download it, or choose other --splits.")
    instances = sources.find(f"instances_{split}2017.json")
    records = annotations.read(source, instances)
    for folder, file in ((f"{split}2017", "{}2017.zip"), (f"panoptic_{split}2017", "panoptic_{}2017.zip")):
        if not sources.count(folder):
            raise DataError(
                f"No files of a folder {folder}, though {source} is there. Download {file.format(split)} or "
                "choose other --splits."
            )
    return [
        Item(
            f"{split}2017/{record.image}",
            sources.find(f"{split}2017/{record.image}"),
            sources.find(f"panoptic_{split}2017/{record.panoptic}"),
            record,
        )
        for record in records
    ]


def encode_image(settings: Settings, item: Item) -> Sample:
    """Crop the central square of an image and its segments, resize and filter.

    Returns:
        The image id and, with S = `settings.size`, N segments and I instances that the crop leaves,

        * `image.png`, RGB (S, S), without further loss;
        * `segmentation.npy.gz` (S, S, 1) uint8, 0 where unlabelled, 1 to N in the order of the annotation;
        * `segment_category`, `segment_isthing`, `segment_iscrowd` (N,) uint8, `segment_area` (N,) float32 in
          pixels of the original image;
        * where there are instances, `instance_mask` (I, S, S, 1) uint8, `instance_bbox` (I, 4) float32, left,
          top, width and height in pixels of the sample, `instance_category` (I,) uint8 and `instance_area`
          (I,) float32 in pixels of the original. They are not filtered.

    Raises:
        Rejected: A file is missing or damaged, or the filter leaves the image out.
    """
    record = item.record
    size = (record.width, record.height)
    image = read_image(item.name, "image", item.image, size, "RGB")
    segments = record.segments
    numbers = np.zeros(size[::-1], np.uint8)
    if segments:
        panoptic = read_image(item.name, "panoptic PNG", item.panoptic, size, formats=("PNG",))
        numbers = _number(item.name, panoptic, segments)
    box = central_square(*size)
    numbers, segments = _choose(settings, item.name, crop_mask(numbers, box, settings.size), segments)
    files = {
        "image.png": crop_image(image, box, settings.size),
        "segmentation.npy.gz": encode_array(numbers[..., None]),
        "segment_category.npy.gz": encode_array(np.array([s.category for s in segments], np.uint8)),
        "segment_isthing.npy.gz": encode_array(np.array([s.isthing for s in segments], np.uint8)),
        "segment_iscrowd.npy.gz": encode_array(np.array([s.iscrowd for s in segments], np.uint8)),
        "segment_area.npy.gz": encode_array(np.array([s.area for s in segments], np.float32)),
    }
    return str(record.id), {**files, **_encode_instances(settings.size, item)}


def _number(name: str, panoptic: Image.Image, segments: List[Segment]) -> np.ndarray:
    """The position of every pixel's segment, from 1, 0 where there is none: (H, W) uint8."""
    if panoptic.mode != "RGB":
        raise Rejected("panoptic PNG is not RGB", name, panoptic.mode)
    if len(segments) > 255:
        raise Rejected("more than 255 segments", name, f"{len(segments)}")
    ids = np.asarray(panoptic).astype(np.int32) @ np.array([1, 256, 65536], np.int32)
    found, positions = np.unique(ids, return_inverse=True)
    numbers = {segment.id: number for number, segment in enumerate(segments, 1)}
    if set(found.tolist()) - {0} != set(numbers):
        raise Rejected("panoptic PNG and its annotation name different segments", name)
    table = np.array([numbers.get(value, 0) for value in found.tolist()], np.uint8)
    return table[positions].reshape(ids.shape)


def _choose(
    settings: Settings, name: str, numbers: np.ndarray, segments: List[Segment]
) -> Tuple[np.ndarray, List[Segment]]:
    """Filter segments and number those that are left in the sample without gaps."""
    present = (numbers == np.arange(1, len(segments) + 1)[:, None, None]).any(axis=(1, 2))
    stay = present.copy()
    if settings.objects is not None:
        counted = np.array([segment.isthing or settings.count == "all" for segment in segments], bool)
        areas = np.array([segment.box_area for segment in segments])
        if settings.measure == "resized":
            counted &= present
            areas = np.array([box_area(numbers == number + 1) for number in range(len(segments))])
        stay[counted] &= settings.objects(name, areas[counted])
    table = np.concatenate([[0], np.where(stay, np.cumsum(stay), 0)]).astype(np.uint8)
    return table[numbers], [segment for segment, there in zip(segments, stay) if there]


def _encode_instances(size: int, item: Item) -> Dict[str, bytes]:
    record = item.record
    left, top, right, bottom = box = central_square(record.width, record.height)
    kept = []
    for instance in record.instances:
        try:
            mask = annotations.rasterize(instance.segmentation, record.height, record.width)
        except (TypeError, ValueError, OverflowError, KeyError, IndexError) as error:
            raise Rejected("damaged instance", item.name, str(error)) from error
        mask = crop_mask(mask, box, size)
        if mask.any():
            kept.append((mask, instance))
    if not kept:
        return {}
    boxes = np.array([instance.box for _, instance in kept], np.float64)
    corners = np.concatenate([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], axis=1)
    corners = (np.clip(corners, (left, top) * 2, (right, bottom) * 2) - (left, top) * 2) * size / (right - left)
    corners[:, 2:] -= corners[:, :2]
    return {
        "instance_mask.npy.gz": encode_array(np.stack([mask for mask, _ in kept])[..., None]),
        "instance_bbox.npy.gz": encode_array(corners.astype(np.float32)),
        "instance_category.npy.gz": encode_array(np.array([i.category for _, i in kept], np.uint8)),
        "instance_area.npy.gz": encode_array(np.array([i.area for _, i in kept], np.float32)),
    }
