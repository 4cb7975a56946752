"""MOVi-C, D and E (https://github.com/google-research/kubric) and videos in their layout.

Raw: `movi_<variant>/128x128/1.0.0/movi_<variant>-<split>.tfrecord-<n>-of-<count>`, one video per record. Only frames,
instance masks and boxes are read. The boxes were computed at 256 pixels, so a tiny object may have a box and no pixel.
Masks reduced from 256 to 128 pixels have the odd rows and columns (nearest exact); those in MOVi's own files of 128
pixels have the even ones.
"""

import functools
import re
from pathlib import Path
from typing import Dict, List, NamedTuple, Optional, Sequence

import numpy as np
from PIL import Image

from ocl_msf.data.pictures import is_turned
from ocl_msf.data.raw._images import decode_image, resize_mask
from ocl_msf.data.shards import Conversion, Sample, encode_array
from ocl_msf.data.tfrecord import Feature, parse_example, read_record, record_offsets
from ocl_msf.data.workers import Rejected
from ocl_msf.files import DataError

MAX_OBJECTS = {"c": 10, "d": 23, "e": 23}
VARIANTS = tuple(MAX_OBJECTS)
SPLITS = {"train": "train", "validation": "val", "test": "test"}
VIDEO, MASKS = "video", "segmentations"
BOXES, BOX_COUNTS = "instances/bboxes/ragged_flat_values", "instances/bboxes/ragged_row_lengths_0"
FRAMES, FRAME_COUNTS = "instances/bbox_frames/ragged_flat_values", "instances/bbox_frames/ragged_row_lengths_0"
_KINDS = {VIDEO: list, MASKS: list, BOXES: "f", BOX_COUNTS: "i", FRAMES: "i", FRAME_COUNTS: "i"}


class RawVideo(NamedTuple):
    """Where the record of a video begins, and its number within the split."""

    path: str
    offset: int
    number: int


def folder_name(variant: str = "c") -> str:
    """Name of the converted data set."""
    return f"movi_{variant}"


def prepare(raw: Path, variant: str = "c", max_objects: Optional[int] = None, size: int = 128) -> Conversion:
    """Find the records in `raw` and plan their conversion.

    Args:
        raw: folder of the download.
        variant: one of `VARIANTS`.
        max_objects: boxes kept, those of the objects that show most; masks keep every object. By default all that the
            variant can have, 10 for c, 23 for d and e.
        size: side of the output in pixels.

    Raises:
        DataError: there are no videos, or a shard is missing or cut off.
    """
    splits = {SPLITS[split]: _find_videos(paths) for split, paths in find_shards(raw, variant).items()}
    if not any(splits.values()):
        raise DataError(f"The shards in {raw} hold no videos. Download them again.")
    max_objects = max_objects or MAX_OBJECTS[variant]
    if max_objects > 255:
        raise DataError(f"--max-objects {max_objects}: masks of 8 bits tell 255 objects apart. Choose 255 or less.")
    return Conversion(
        options={"variant": variant, "max_objects": max_objects, "size": size},
        splits={name: videos for name, videos in splits.items() if videos},
        encode=functools.partial(encode_video, max_objects, size),
    )


def find_shards(raw: Path, variant: str) -> Dict[str, List[Path]]:
    """The shards of every split, by its name in MOVi, in order and complete."""
    name = f"movi_{variant}"
    paths = sorted(path for path in raw.rglob(f"{name}-*.tfrecord-*") if path.is_file())
    folders = sorted({path.parent for path in paths})
    if not paths:
        raise DataError(
            f"No {name.replace('_', '-').upper()} shards in {raw}: looked for {name}-train.tfrecord-00000-of-01024 "
            "and the like, in subfolders too. Give the folder that holds them."
        )
    if len(folders) > 1:
        raise DataError(
            f"{raw} holds {name} more than once: {', '.join(map(str, folders))}. Give one of these folders."
        )
    shards: Dict[str, Dict[str, Dict[int, Path]]] = {}
    for path in paths:
        match = re.fullmatch(rf"{name}-(\w+)\.tfrecord-(\d+)-of-(\d+)", path.name)
        if match is not None and match.group(1) in SPLITS:
            split, index, count = match.groups()
            shards.setdefault(split, {}).setdefault(count, {})[int(index)] = path
    return {split: _complete(name, split, shards[split], folders[0]) for split in SPLITS if split in shards}


def _complete(name: str, split: str, sets: Dict[str, Dict[int, Path]], folder: Path) -> List[Path]:
    if len(sets) > 1:
        raise DataError(
            f"{folder} holds {name}-{split} in {' and in '.join(sorted(sets))} shards. Keep one of these sets."
        )
    ((count, shards),) = sets.items()
    missing = [index for index in range(int(count)) if index not in shards]
    if missing:
        example = f"{name}-{split}.tfrecord-{missing[0]:0{len(count)}d}-of-{count}"
        raise DataError(f"{folder / example} is missing, {len(missing)} of {int(count)} shards are. Download them.")
    return [shards[index] for index in range(int(count))]


def _find_videos(paths: Sequence[Path]) -> List[RawVideo]:
    places = [(str(path), offset) for path in paths for offset in record_offsets(path)]
    return [RawVideo(path, offset, number) for number, (path, offset) in enumerate(places)]


def _read_features(path: Path, offset: int, sample: str) -> Dict[str, Feature]:
    """All of `_KINDS`, each of its kind; lists of numbers without a value are empty arrays."""
    try:
        features = parse_example(read_record(path, offset), _KINDS)
    except ValueError as error:
        raise Rejected("damaged record", sample, str(error)) from error
    for key, kind in _KINDS.items():
        if key not in features:
            raise Rejected("missing feature", sample, key)
        values = features[key]
        if kind != (list if isinstance(values, list) else values.dtype.kind):
            if len(values):
                raise Rejected("feature of another type", sample, key)
            features[key] = [] if kind is list else np.zeros(0, np.float32 if kind == "f" else np.int64)
    return features


def _read_frames(pngs: Sequence[bytes], modes: Sequence[str], sample: str) -> List[Image.Image]:
    """Square images, all of one size."""
    frames: List[Image.Image] = []
    for number, png in enumerate(pngs):
        try:
            image = decode_image(png, ["PNG"])
        except Exception as error:  # Pillow has no common class for what a damaged file can cause
            raise Rejected("unreadable frame", sample, f"frame {number}: {error}") from error
        if image.size != (image.width, image.width) or (frames and image.size != frames[0].size):
            raise Rejected("frames not square or of different sizes", sample, f"frame {number}")
        if is_turned(image):
            raise Rejected("frame turned by EXIF data", sample, f"frame {number}")
        if image.mode not in modes:
            raise Rejected("frame of another mode", sample, f"frame {number}: {image.mode}")
        frames.append(image)
    return frames


def dense_boxes(features: Dict[str, Feature], frames: int) -> np.ndarray:
    """Boxes of every object in every frame.

    Args:
        features: the ragged boxes (ymin, xmin, ymax, xmax), and the number of the frame of each.
        frames: T.

    Returns:
        (T, K, 4) float32: x_min, y_min, x_max, y_max as shares of width and height, the maxima exclusive;
        zeros where an object has no box.

    Raises:
        ValueError: the lists do not fit each other, or the video.
    """
    counts, boxes, numbers = features[BOX_COUNTS], features[BOXES], features[FRAMES]
    if (counts < 0).any() or not np.array_equal(counts, features[FRAME_COUNTS]):
        raise ValueError("boxes and their frames have different row lengths")
    total = sum(counts.tolist())  # as Python's integers, which do not overflow
    if len(boxes) != 4 * total or len(numbers) != total:
        raise ValueError(f"{total} boxes foreseen, {len(boxes)} coordinates and {len(numbers)} frame numbers")
    if total and not 0 <= numbers.min() <= numbers.max() < frames:
        raise ValueError(f"a box is for frame {numbers.min()} or {numbers.max()}, there are {frames}")
    boxes = boxes.reshape(-1, 4)[:, [1, 0, 3, 2]]
    fits = (boxes >= -1e-3) & (boxes <= 1 + 1e-3)  # false for NaN
    if not fits.all() or (boxes[:, :2] > boxes[:, 2:]).any():
        raise ValueError("a box is outside of the frame or inside out")
    dense = np.zeros((frames, len(counts), 4), np.float32)
    dense[numbers, np.repeat(np.arange(len(counts)), counts)] = np.clip(boxes, 0, 1)
    return dense


def encode_video(max_objects: int, size: int, raw_video: RawVideo) -> Sample:
    """Resize a video and bring its boxes into a table.

    Returns:
        The seven-digit number within the split, and the files `video.npy.gz` (T, size, size, 3) uint8,
        `segmentations.npy.gz` (T, size, size, 1) uint8, 0 for the background and k for the k-th object, and
        `instance_bbox.npy.gz` (T, max_objects, 4) float32: x_min, y_min, x_max, y_max as shares of the frame, row
        k - 1 for the k-th object, zeros where there is none.

    Raises:
        Rejected: the record is damaged or differs from MOVi's.
        DataError: the file cannot be read.
    """
    path, offset, number = raw_video
    sample = f"{Path(path).name} at byte {offset}"
    features = _read_features(Path(path), offset, sample)
    video = _read_frames(features[VIDEO], ("RGB",), sample)
    masks = _read_frames(features[MASKS], ("L",), sample)
    if not video or len(video) != len(masks) or video[0].size != masks[0].size:
        raise Rejected("video and masks do not fit", sample, f"{len(video)} frames, {len(masks)} masks")
    try:
        boxes = dense_boxes(features, len(video))
    except ValueError as error:
        raise Rejected("boxes do not fit", sample, str(error)) from error
    numbers = np.stack([resize_mask(np.asarray(mask), size, size) for mask in masks])[..., None]
    if numbers.max() > boxes.shape[1]:
        raise Rejected("mask of an unknown object", sample, f"{numbers.max()} of {boxes.shape[1]}")
    table = np.zeros((len(video), max_objects, 4), np.float32)
    table[:, : boxes.shape[1]] = boxes[:, :max_objects]
    frames = [np.asarray(image.resize((size, size), Image.Resampling.BILINEAR)) for image in video]
    files = {
        "video.npy.gz": encode_array(np.stack(frames)),
        "segmentations.npy.gz": encode_array(numbers),
        "instance_bbox.npy.gz": encode_array(table),
    }
    return f"{number:07d}", files
