"""ClevrTex (https://www.robots.ox.ac.uk/~vgg/data/clevrtex/) and scenes in its layout.

Raw: `clevrtex_<variant>/<n>/CLEVRTEX_<variant>_<index>.png` with the mask `..._flat.png`, a palette image
whose pixel values are object numbers, 0 the background. Other files are ignored.
"""

import argparse
import functools
import re
from pathlib import Path
from typing import Dict, List

import numpy as np
from PIL import Image

from ocl_msf.data._images import central_square, crop_image, crop_mask
from ocl_msf.data._work import DataError, positive
from ocl_msf.data.shards import SPLITS, Conversion, Sample, encode_array

VARIANTS = ("full", "outd", "camo", "pbg", "vbg", "grassbg")
MAX_OBJECTS = 10


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options that only this data set has."""
    parser.add_argument("--variant", choices=VARIANTS, default="full", help="default: %(default)s")
    parser.add_argument(
        "--splits",
        nargs="+",
        metavar="NAME=START:STOP",
        help="ranges of scenes by index, as in Python slices; default: the benchmark's for full (the first "
        "tenth is test, the second val, the rest train), test=: for the other variants",
    )
    parser.add_argument(
        "--crop",
        type=float,
        default=1.0,
        help="side of the central square, by the image height: 1 or the benchmark's 0.8",
    )
    parser.add_argument(
        "--size", type=positive, default=128, help="side of the output in pixels (default: %(default)s)"
    )


def folder_name(options: argparse.Namespace) -> str:
    """Name of the converted data set."""
    return "clevrtex" if options.variant == "full" else f"clevrtex_{options.variant}"


def prepare(options: argparse.Namespace) -> Conversion:
    """Find the scenes in `options.raw` and plan their conversion.

    Raises:
        DataError: There are no scenes, some are missing or doubled, or the splits do not fit them.
    """
    if not 0 < options.crop <= 1:
        raise DataError(
            f"--crop {options.crop} is not a share of the image height. Choose a number in (0, 1]."
        )
    scenes = find_scenes(options.raw, options.variant)
    ranges = _split_ranges(options.splits or _default_splits(options.variant, len(scenes)), len(scenes))
    return Conversion(
        options={"variant": options.variant, "splits": ranges, "crop": options.crop, "size": options.size},
        splits={name: scenes[start:stop] for name, (start, stop) in ranges.items()},
        encode=functools.partial(encode_scene, options.crop, options.size),
    )


def find_scenes(raw: Path, variant: str) -> List[Path]:
    """The images of all scenes by their index, which counts from 0 without gaps; every one has its mask."""
    pattern = f"CLEVRTEX_{variant}_*.png"
    images: Dict[int, Path] = {}
    for path in sorted([*raw.glob(f"*/{pattern}"), *raw.glob(f"clevrtex_{variant}/*/{pattern}")]):
        match = re.fullmatch(rf"CLEVRTEX_{variant}_(\d+)\.png", path.name)
        if match is None:
            continue
        index = int(match.group(1))
        if index in images:
            raise DataError(f"Scene {index} is there twice: {images[index]} and {path}. Remove one of them.")
        images[index] = path
    if not images:
        raise DataError(
            f"No ClevrTex scenes in {raw}: looked for <n>/{pattern} and clevrtex_{variant}/<n>/{pattern}, "
            f"found {_content(raw)}. Give the folder with the numbered folders, or its parent."
        )
    gap = next((index for index in range(len(images)) if index not in images), None)
    if gap is not None:
        raise DataError(
            f"Scene {gap} is missing in {raw}, though later ones are there. Unpack all parts into it."
        )
    scenes = [images[index] for index in range(len(images))]
    for image in scenes:
        if not mask_path(image).exists():
            raise DataError(
                f"{mask_path(image)} is missing, though its image is there. Unpack all parts again."
            )
    return scenes


def mask_path(image: Path) -> Path:
    """The mask that belongs to an image."""
    return image.with_name(image.stem + "_flat.png")


def _content(folder: Path) -> str:
    if not folder.is_dir():
        return "no such folder"
    names = sorted(path.name for path in folder.iterdir())
    return (
        ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "") or "an empty folder"
    )


def _default_splits(variant: str, count: int) -> List[str]:
    if variant != "full":
        return ["test=:"]
    tenth = count // 10
    return [f"test=0:{tenth}", f"val={tenth}:{2 * tenth}", f"train={2 * tenth}:"]


def _split_ranges(texts: List[str], count: int) -> Dict[str, List[int]]:
    """Positions [start, stop) by split name."""
    ranges = {}
    for text in texts:
        match = re.fullmatch(r"(\w+)=(-?\d*):(-?\d*)", text)
        if match is None or match.group(1) not in SPLITS:
            raise DataError(
                f"--splits {text} is not like train=0:100, with a name among {', '.join(SPLITS)}."
            )
        name, start, stop = match.groups()
        if name in ranges:
            raise DataError(f"--splits names {name} twice.")
        span = range(count)[slice(int(start) if start else None, int(stop) if stop else None)]
        if not span:
            raise DataError(f"Split {text} is empty: there are {count} scenes. Choose other --splits.")
        ranges[name] = [span.start, span.stop]
    return ranges


def _read(path: Path) -> Image.Image:
    try:
        with Image.open(path) as image:
            image.load()
            return image
    except (OSError, SyntaxError, ValueError) as error:
        raise DataError(f"{path} cannot be read ({error}). Unpack or make it again.") from error


def encode_scene(crop: float, size: int, image_path: Path) -> Sample:
    """Crop and resize a scene.

    Returns:
        The six-digit index and the files `image.png`, RGB, `mask.npy.gz` (11, size, size, 1) uint8, binary,
        the background first, then the objects by their numbers, and `visibility.npy.gz` (11,) float32, 1 for
        masks with a pixel. An object that the crop leaves out has an empty mask.
    """
    image, mask = _read(image_path), _read(mask_path(image_path))
    if mask.mode not in ("P", "L") or mask.size != image.size:
        raise DataError(
            f"{mask_path(image_path)} is a {mask.mode} image of {mask.size}; a mask is a palette (P) or grey "
            f"(L) image of its scene's size, {image.size}. Unpack or make it again."
        )
    numbers = np.asarray(mask)
    if numbers.max() > MAX_OBJECTS:
        raise DataError(
            f"{mask_path(image_path)} has object {numbers.max()}, more than {MAX_OBJECTS} are not foreseen."
        )
    box = central_square(*image.size, crop)
    numbers = crop_mask(numbers, box, size)
    masks = (numbers == np.arange(MAX_OBJECTS + 1)[:, None, None]).astype(np.uint8)[..., None]
    files = {
        "image.png": crop_image(image.convert("RGB"), box, size),
        "mask.npy.gz": encode_array(masks),
        "visibility.npy.gz": encode_array(masks.any(axis=(1, 2, 3)).astype(np.float32)),
    }
    return f"{int(image_path.stem.rsplit('_', 1)[1]):06d}", files
