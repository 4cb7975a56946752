"""The data card of a converted data set; the command is `ocl-msf inspect`.

It counts samples, has histograms of the numbers and sizes of objects, and draws samples with their masks and boxes into
a PNG; a video is shown as some of its frames in a row, with their masks below.
"""

import tarfile
import zlib
from pathlib import Path
from typing import Any, Dict, Iterator, List, Optional, Sequence, Tuple

import lmdb
import numpy as np
from PIL import Image, ImageDraw
from tqdm import tqdm

from ocl_msf._renamed import refuse_old_names
from ocl_msf.data.lmdb import LMDBFile, decode_files
from ocl_msf.data.shards import read_shard
from ocl_msf.data.summary import SUMMARY, check_files, describe, read_summary
from ocl_msf.files import DataError, replacing

__getattr__ = refuse_old_names(__name__)

MASKS = ("mask", "segmentation", "segmentations", "segmentation-instance", "instance_mask")  # in order of preference
BOXES = ("instance_bbox", "bbox")
WIDTH = 40  # of a bar, in characters
GOLDEN = 0.618034  # between the hues of two objects: golden-ratio steps never repeat
SHEET_WIDTH = 1600  # pixels; a single sample may be wider
_DAMAGE = (OSError, EOFError, ValueError, KeyError, AttributeError, TypeError, tarfile.TarError, zlib.error, lmdb.Error)


def open_summary(folder: Path) -> Dict[str, Any]:
    """The summary of a converted data set, after a check that its files exist and have their sizes.

    Raises:
        DataError: the folder holds no converted data set, or files are missing or cut off.
    """
    if not folder.is_dir():
        raise DataError(f"{folder} is no folder. Give the one of a converted data set, with {SUMMARY}.")
    inside = sorted(path.parent.name for path in folder.glob(f"*/{SUMMARY}"))
    if inside and not (folder / SUMMARY).exists():
        raise DataError(f"{folder} holds {', '.join(inside)}. Give one of these: {folder / inside[0]}")
    try:
        summary = read_summary(folder)
        describe(summary)
        check_files(folder, summary, checksum=False)
    except (KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{folder / SUMMARY} was not written by a conversion ({error!r}).") from error
    return summary


def read_samples(folder: Path, split: Dict[str, Any]) -> Iterator[Dict[str, Any]]:
    """All samples of one split of a summary, in either format: values by field.

    Raises:
        DataError: a file is damaged.
    """
    for file in split["shards"]:
        path = folder / file["name"]
        try:
            if path.suffix == ".lmdb":
                opened = LMDBFile(path)
                yield from map(opened.read, opened.keys())
            else:
                yield from ({"__key__": key, **decode_files(files)} for key, files in read_shard(path))
        except _DAMAGE as error:
            raise DataError(f"{path} is damaged ({error!r:.200}). Convert again with --overwrite.") from error


def pictures(sample: Dict[str, Any]) -> np.ndarray:
    """The frames of a video, or an image as a single frame: (T, H, W, 3) uint8."""
    return sample["video"] if "video" in sample else sample["image"][None]


def object_masks(sample: Dict[str, Any]) -> Dict[int, np.ndarray]:
    """The masks of the visible objects, (T, H, W) bool, by number from 1.

    The background is the first of one-hot masks (`mask`), and 0 among numbers; 255 is void.
    """
    name = next((name for name in MASKS if name in sample), None)
    if name is None:
        return {}
    masks = sample[name][..., 0]
    if name in ("mask", "instance_mask"):
        each = masks if masks.ndim == 4 else masks[None]  # frames first
        return {i + (name != "mask"): each[:, i] > 0 for i in range(name == "mask", each.shape[1]) if each[:, i].any()}
    numbers = masks if masks.ndim == 3 else masks[None]
    return {int(i): numbers == i for i in np.unique(numbers) if 0 < i < 255}


def object_boxes(sample: Dict[str, Any]) -> np.ndarray:
    """Left, top, right and bottom of the boxes in pixels, (T, N, 4); zeros for objects without one."""
    frames, height, width = pictures(sample).shape[:3]
    boxes = next((sample[name] for name in BOXES if name in sample), np.zeros((0, 4)))
    if boxes.ndim == 3:  # of videos, as shares of the frame
        return boxes * np.array([width, height, width, height])
    return np.concatenate([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], axis=1)[None].repeat(frames, axis=0)


def _colour(number: int) -> Tuple[int, ...]:
    return Image.new("HSV", (1, 1), (int(255 * (number * GOLDEN % 1)), 255, 255)).convert("RGB").getpixel((0, 0))  # type: ignore[return-value]


def outlined(sample: Dict[str, Any]) -> np.ndarray:
    """The frames with objects coloured and boxes drawn, (T, H, W, 3) uint8.

    Boxes have the colours of their objects; they are white if they belong to others than the masks (`segmentation`).
    """
    frames = pictures(sample).astype(np.float32)
    for number, masks in object_masks(sample).items():
        frames[masks] = 0.4 * frames[masks] + 0.6 * np.array(_colour(number))
    images = [Image.fromarray(frame) for frame in frames.round().astype(np.uint8)]
    for image, boxes in zip(images, object_boxes(sample).round().astype(int).tolist()):
        for number, (left, top, right, bottom) in enumerate(boxes, 1):
            if right > left and bottom > top:
                colour = "white" if "segmentation" in sample else _colour(number)
                ImageDraw.Draw(image).rectangle((left, top, right - 1, bottom - 1), outline=colour)
    return np.stack([np.asarray(image) for image in images])


def histogram(values: Sequence[float], edges: Sequence[float], labels: Sequence[str]) -> List[str]:
    """One line per interval: label, bar and count."""
    counts = np.histogram(values, edges)[0]
    most = max(counts.max(), 1)
    return [f"  {label:>12} {'#' * (-(-WIDTH * n // most)):<{WIDTH}} {n}" for label, n in zip(labels, counts)]


class Card:
    """Statistics of the samples of a split."""

    def __init__(self) -> None:
        self.numbers: List[int] = []
        self.areas: List[float] = []
        self.boxes: List[int] = []

    def add(self, sample: Dict[str, Any]) -> None:
        """Count the objects and boxes of a sample; the area of an object is its mean over the frames that show it."""
        masks = object_masks(sample)
        self.numbers.append(len(masks))
        for mask in masks.values():
            areas = mask.mean(axis=(1, 2))
            self.areas.append(float(areas[areas > 0].mean()))
        if any(name in sample for name in BOXES):
            self.boxes.append(int(object_boxes(sample).any(axis=(0, 2)).sum()))

    def lines(self) -> List[str]:
        """The histograms."""
        top = max(self.numbers, default=0)
        lines = [f"objects in a sample, mean {np.mean(self.numbers or [0]):.2f}:"]
        lines += histogram(self.numbers, np.arange(top + 2) - 0.5, [str(i) for i in range(top + 1)])
        edges = [0, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1]
        lines += ["", f"area of an object, of the image, mean {np.mean(self.areas or [0]):.2%}:"]
        lines += histogram(self.areas, edges, [f"to {edge:.2%}" for edge in edges[1:]])
        return lines + (["", f"boxes in a sample, mean {np.mean(self.boxes):.2f}"] if self.boxes else [])


def tile(sample: Dict[str, Any], frames: int = 6) -> Image.Image:
    """A sample, with its masks beside an image or below a video, which is shown in at most `frames` frames."""
    shown = pictures(sample)
    chosen = np.unique(np.linspace(0, len(shown) - 1, frames).round().astype(int))
    rows = [np.hstack(list(pixels[chosen])) for pixels in (shown, outlined(sample))]
    return Image.fromarray(np.vstack(rows) if "video" in sample else np.hstack(rows))


def contact_sheet(tiles: Sequence[Image.Image], columns: int = 4) -> Image.Image:
    """Tiles on white, at most `columns` in a row, and fewer if they are wide."""
    width, height = (max(tile.size[axis] for tile in tiles) + 4 for axis in (0, 1))
    columns = min(columns, len(tiles), max(1, SHEET_WIDTH // width))
    sheet = Image.new("RGB", (columns * width, -(-len(tiles) // columns) * height), "white")
    for place, image in enumerate(tiles):
        sheet.paste(image, (place % columns * width + 2, place // columns * height + 2))
    return sheet


def inspect(path: Path, sheet: Optional[Path] = None, samples: int = 16) -> str:
    """Count what a converted data set holds, and draw samples of each split.

    Args:
        path: its folder.
        sheet: the PNG; by default samples.png in that folder.
        samples: how many to draw of each split.

    Returns:
        The data card, lines of text.

    Raises:
        DataError: the folder holds no converted data set, a file is damaged, or there is nothing to draw.
    """
    summary = open_summary(path)
    lines = [f"{summary['dataset']}: {describe(summary)}"]
    tiles: List[Image.Image] = []
    for name, split in summary["splits"].items():
        card = Card()
        for position, sample in enumerate(tqdm(read_samples(path, split), desc=name, total=split["samples"])):
            card.add(sample)
            tiles += [tile(sample)] if position < samples else []
        lines += ["", f"{name}, {len(card.numbers)} samples", *card.lines()]
    if not tiles:
        raise DataError(f"{path} has no samples to draw.")
    sheet = sheet or path / "samples.png"
    with replacing(sheet) as file:
        contact_sheet(tiles).save(file, "png")
    return "\n".join([*lines, "", f"{sheet}: {len(tiles)} samples with their masks"])
