"""COCO 2017 (https://cocodataset.org): panoptic segments of things and stuff, and instances if the download has them.

Raw: a folder with `{train,val}2017.zip` and `panoptic_annotations_trainval2017.zip`, or with their content, in whatever
subfolders; with `annotations_trainval2017.zip` instances are converted too.
"""

import functools
from pathlib import Path
from typing import Dict, List, NamedTuple, Optional

import numpy as np
from PIL import Image

from ocl_msf.data.raw._coco_annotations import ImageAnnotations, Segment, rasterize, read_annotations
from ocl_msf.data.raw._images import box_area, central_square, crop_image, crop_mask, read_image, renumber
from ocl_msf.data.raw._sources import Source, Sources
from ocl_msf.data.raw.filter import PAPER, ObjectFilter
from ocl_msf.data.shards import Conversion, Sample, encode_array
from ocl_msf.data.workers import Rejected
from ocl_msf.files import DataError

SPLITS = ("train", "val")  # the test images have no annotations


class RawImage(NamedTuple):
    """The files of one image, None if they are missing, and its annotations."""

    name: str
    image: Optional[Source]
    panoptic: Optional[Source]
    annotations: ImageAnnotations


def folder_name() -> str:
    """Name of the converted data set."""
    return "coco_panoptic"


def prepare(
    raw: Path,
    splits: Optional[List[str]] = None,
    size: int = 128,
    object_filter: Optional[ObjectFilter] = PAPER,
    count: str = "all",
    measure: str = "resized",
) -> Conversion:
    """Find images and annotations in `raw` and plan their conversion, in the order of the images' ids.

    Args:
        raw: folder of the download.
        splits: some of `SPLITS`; by default those that are in `raw`.
        size: side of the output in pixels.
        object_filter: which images and objects to keep; None keeps all.
        count: objects of the filter: "all", things and stuff, which 11 slots have to hold, or "things" only.
        measure: where the filter counts and measures: "resized", in the sample, as the paper's remark on its
            resolution suggests, or "original", in the original image.

    Raises:
        DataError: files are missing, or an archive or the annotations are damaged.
    """
    object_filter = object_filter and object_filter._replace(count=count, measure=measure)
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
    images = {split: _find_images(sources, split) for split in splits}
    options = {
        "size": size,
        "filter": object_filter and object_filter.describe(),
        "instances": [split for split in splits if sources.find(f"instances_{split}2017.json")],
    }
    return Conversion(options, images, functools.partial(encode_image, size, object_filter))


def _find_images(sources: Sources, split: str) -> List[RawImage]:
    source = sources.find(f"panoptic_{split}2017.json")
    if source is None:
        raise DataError(f"panoptic_{split}2017.json is missing. Download it, or choose other --splits.")
    instances = sources.find(f"instances_{split}2017.json")
    annotations = read_annotations(source, instances)
    for folder, file in ((f"{split}2017", "{}2017.zip"), (f"panoptic_{split}2017", "panoptic_{}2017.zip")):
        if not sources.count(folder):
            raise DataError(
                f"No files of a folder {folder}, though {source} is there. Download {file.format(split)} or "
                "choose other --splits."
            )
    return [
        RawImage(
            f"{split}2017/{image.image}",
            sources.find(f"{split}2017/{image.image}"),
            sources.find(f"panoptic_{split}2017/{image.panoptic}"),
            image,
        )
        for image in annotations
    ]


def encode_image(size: int, object_filter: Optional[ObjectFilter], raw_image: RawImage) -> Sample:
    """Crop the central square of an image and its segments, resize and filter.

    Returns:
        The image id and, with S = `size`, N segments and I instances within the crop,

        * `image.png`, RGB (S, S), compressed without loss;
        * `segmentation.npy.gz` (S, S, 1) uint8, 0 for unlabelled pixels, 1 to N in the order of the annotation;
        * `segment_category`, `segment_isthing`, `segment_iscrowd` (N,) uint8, `segment_area` (N,) float32 in
          pixels of the original image;
        * if there are instances, `instance_mask` (I, S, S, 1) uint8, `instance_bbox` (I, 4) float32, left,
          top, width and height in pixels of the sample, `instance_category` and `instance_iscrowd` (I,) uint8, and
          `instance_area` (I,) float32 in pixels of the original. They are not filtered.

    Raises:
        Rejected: a file is missing or damaged, or the filter removes the image.
    """
    annotations, name = raw_image.annotations, raw_image.name
    raw_size = (annotations.width, annotations.height)
    image = read_image(name, "image", raw_image.image, raw_size, rgb=True)
    segments = annotations.segments
    numbers = np.zeros(raw_size[::-1], np.uint8)
    if segments:
        panoptic = read_image(name, "panoptic PNG", raw_image.panoptic, raw_size, formats=("PNG",))
        numbers = _number_segments(name, panoptic, segments)
    box = central_square(*raw_size)
    numbers = crop_mask(numbers, box, size)
    kept = _filter_segments(object_filter, name, numbers, segments)
    segments = [segment for segment, keep in zip(segments, kept) if keep]
    files = {
        "image.png": crop_image(image, box, size),
        "segmentation.npy.gz": encode_array(renumber(numbers, kept)[..., None]),
        "segment_category.npy.gz": encode_array(np.array([s.category for s in segments], np.uint8)),
        "segment_isthing.npy.gz": encode_array(np.array([s.isthing for s in segments], np.uint8)),
        "segment_iscrowd.npy.gz": encode_array(np.array([s.iscrowd for s in segments], np.uint8)),
        "segment_area.npy.gz": encode_array(np.array([s.area for s in segments], np.float32)),
    }
    return str(annotations.id), {**files, **_encode_instances(size, raw_image)}


def _number_segments(name: str, panoptic: Image.Image, segments: List[Segment]) -> np.ndarray:
    """The number of each pixel's segment, i + 1 for segment i and 0 for none: (H, W) uint8."""
    if panoptic.mode != "RGB":
        raise Rejected("panoptic PNG is not RGB", name, panoptic.mode)
    if len(segments) > 255:
        raise Rejected("more than 255 segments", name, f"{len(segments)}")
    ids = np.asarray(panoptic).astype(np.int32) @ np.array([1, 256, 65536], np.int32)
    present, positions = np.unique(ids, return_inverse=True)
    numbers = {segment.id: number for number, segment in enumerate(segments, 1)}
    if set(present.tolist()) - {0} != set(numbers):
        raise Rejected("panoptic PNG and its annotation name different segments", name)
    table = np.array([numbers.get(value, 0) for value in present.tolist()], np.uint8)
    return table[positions].reshape(ids.shape)


def _filter_segments(
    object_filter: Optional[ObjectFilter], name: str, numbers: np.ndarray, segments: List[Segment]
) -> np.ndarray:
    """Which segments are within the crop, numbered in `numbers` (S, S), and kept by the filter: (N,) bool."""
    masks = numbers == np.arange(1, len(segments) + 1)[:, None, None]
    kept = masks.any(axis=(1, 2))
    if object_filter is not None:
        counted = np.array([segment.isthing or object_filter.count == "all" for segment in segments], bool)
        areas = np.array([segment.box_area for segment in segments])
        if object_filter.measure == "resized":
            counted &= kept
            areas = np.array([box_area(mask) for mask in masks])
        kept[counted] &= object_filter(name, areas[counted])
    return kept


def _encode_instances(size: int, raw_image: RawImage) -> Dict[str, bytes]:
    width, height = raw_image.annotations.width, raw_image.annotations.height
    left, top, right, bottom = box = central_square(width, height)
    kept = []
    for instance in raw_image.annotations.instances:
        try:
            mask = rasterize(instance.segmentation, height, width)
        except (TypeError, ValueError, OverflowError, KeyError, IndexError) as error:
            raise Rejected("damaged instance", raw_image.name, str(error)) from error
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
        "instance_iscrowd.npy.gz": encode_array(np.array([i.iscrowd for _, i in kept], np.uint8)),
        "instance_area.npy.gz": encode_array(np.array([i.area for _, i in kept], np.float32)),
    }
