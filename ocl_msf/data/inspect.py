"""The data card of a converted data set: `python -m ocl_msf.data.inspect PATH`.

Prints counts and histograms of the numbers and sizes of objects, and draws samples with their masks into a PNG.
"""

import argparse
import tarfile
from pathlib import Path
from typing import Any, Dict, Iterator, List, Optional, Sequence

import numpy as np
from PIL import Image

from ocl_msf.data._lmdb import LMDBFile, decode_files
from ocl_msf.data._work import DataError, command_line, positive, replacing
from ocl_msf.data.shards import describe, read_summary

MASKS = ("mask", "instance_mask", "segmentation", "segmentations", "segmentation-instance")  # the first there is
WIDTH = 40  # of a bar, in characters
GOLDEN = 0.618034  # hues this far apart differ from each other, however many there are


def read_samples(folder: Path, split: Dict[str, Any]) -> Iterator[Dict[str, Any]]:
    """All samples of one split of a summary, in both formats, field to value."""
    for file in split["shards"]:
        path = folder / file["name"]
        if path.suffix == ".lmdb":
            opened = LMDBFile(path)
            yield from map(opened.read, opened.keys())
        else:
            yield from _read_shard(path)


def _read_shard(path: Path) -> Iterator[Dict[str, Any]]:
    key, files = "", {}
    with tarfile.open(path) as tar:
        for member in tar:
            start, name = member.name.split(".", 1)
            if files and start != key:
                yield {"__key__": key, **decode_files(files)}
                files = {}
            key = start
            files[name] = tar.extractfile(member).read()
    if files:
        yield {"__key__": key, **decode_files(files)}


def object_masks(sample: Dict[str, Any]) -> np.ndarray:
    """Masks of the objects that are seen, bool (K, H, W), of the first frame of videos.

    Of one-hot masks, `mask`, the first is the background; of numbers, 0 is, and 255 where nothing is known.
    """
    name = next((name for name in MASKS if name in sample), None)
    if name is None:
        return np.zeros((0, *picture(sample).shape[:2]), bool)
    masks = sample[name][..., 0]
    if name in ("mask", "instance_mask"):
        masks = masks[0] if masks.ndim == 4 else masks
        masks = masks[1:] > 0 if name == "mask" else masks > 0
        return masks[masks.any(axis=(1, 2))]
    numbers = masks[0] if masks.ndim == 3 else masks
    return np.stack([numbers == i for i in range(255)])[[i for i in np.unique(numbers) if 0 < i < 255]]


def picture(sample: Dict[str, Any]) -> np.ndarray:
    """The image or the first frame, uint8 (H, W, 3)."""
    return sample["video"][0] if "video" in sample else sample["image"]


def outlined(sample: Dict[str, Any]) -> np.ndarray:
    """The image with its objects coloured, uint8 (H, W, 3)."""
    image = picture(sample).astype(np.float32)
    for number, mask in enumerate(object_masks(sample)):
        hue = Image.new("HSV", (1, 1), (int(255 * (number * GOLDEN % 1)), 255, 255)).convert("RGB").getpixel((0, 0))
        image[mask] = 0.4 * image[mask] + 0.6 * np.array(hue)
    return image.round().astype(np.uint8)


def histogram(values: Sequence[float], edges: Sequence[float], labels: Sequence[str]) -> List[str]:
    """A line for each interval: its label, a bar and the count."""
    counts = np.histogram(values, edges)[0]
    most = max(counts.max(), 1)
    return [f"  {label:>12} {'#' * (-(-WIDTH * n // most)):<{WIDTH}} {n}" for label, n in zip(labels, counts)]


def card(numbers: List[int], areas: List[float]) -> List[str]:
    """Lines of the histograms: objects in a sample, and the shares of the image that they cover."""
    top = max(numbers, default=0)
    lines = [f"objects in a sample, mean {np.mean(numbers) if numbers else 0:.2f}:"]
    lines += histogram(numbers, np.arange(top + 2) - 0.5, [str(i) for i in range(top + 1)])
    edges = [0, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1]
    lines += ["", f"area of an object, of the image, mean {np.mean(areas) if areas else 0:.2%}:"]
    return lines + histogram(areas, edges, [f"to {edge:.2%}" for edge in edges[1:]])


def contact_sheet(samples: Sequence[Dict[str, Any]], columns: int = 4) -> Image.Image:
    """Samples in rows, each with its masks to the right of it, on white."""
    tiles = [Image.fromarray(np.hstack([picture(sample), outlined(sample)])) for sample in samples]
    width, height = (max(tile.size[axis] for tile in tiles) + 4 for axis in (0, 1))
    columns = min(columns, len(tiles))
    sheet = Image.new("RGB", (columns * width, -(-len(tiles) // columns) * height), "white")
    for place, tile in enumerate(tiles):
        sheet.paste(tile, (place % columns * width + 2, place // columns * height + 2))
    return sheet


def main(arguments: Optional[Sequence[str]] = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m ocl_msf.data.inspect", description=__doc__.splitlines()[0])
    parser.add_argument("path", type=Path, help="folder of one converted data set")
    parser.add_argument("--sheet", type=Path, help="the PNG (default: PATH/samples.png)")
    parser.add_argument("--samples", type=positive, default=16, help="drawn of each split (default: %(default)s)")
    options = parser.parse_args(arguments)
    with command_line():
        summary = read_summary(options.path)
        print(f"{summary['dataset']}: {describe(summary)}")
        drawn: List[Dict[str, Any]] = []
        for name, split in summary["splits"].items():
            numbers, areas = [], []
            for position, sample in enumerate(read_samples(options.path, split)):
                masks = object_masks(sample)
                numbers.append(len(masks))
                areas += masks.mean(axis=(1, 2)).tolist()
                drawn += [sample] if position < options.samples else []
            print("\n".join(["", f"{name}, {len(numbers)} samples", *card(numbers, areas)]))
        if not drawn:
            raise DataError(f"{options.path} has no samples to draw.")
        sheet = options.sheet or options.path / "samples.png"
        with replacing(sheet) as file:
            contact_sheet(drawn).save(file, "png")
    print(f"\n{sheet}: {len(drawn)} samples, each with its masks beside it")


if __name__ == "__main__":
    main()
