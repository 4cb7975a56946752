"""ClevrTex (https://www.robots.ox.ac.uk/~vgg/data/clevrtex/) and scenes in its layout.

Raw: `clevrtex_<variant>/<n>/CLEVRTEX_<variant>_<index>.png` with the mask `..._flat.png`, a palette image whose pixel
values are object numbers, 0 the background. Other files are ignored. If there are none, they are read from
`clevrtex_<variant>.tar.gz` or `clevrtex_<variant>_part1.tar.gz`, `..._part2.tar.gz` and so on.
"""

import functools
import re
from pathlib import Path
from typing import Dict, Iterator, List, NamedTuple, Optional, Tuple

import numpy as np
from PIL import Image

from ocl_msf.data.raw._images import Box, central_square, crop_image, crop_mask, read_image
from ocl_msf.data.raw._sources import READ_ERRORS, AnySource, Source
from ocl_msf.data.raw._tars import SUFFIXES, list_members
from ocl_msf.data.shards import Conversion, Sample, encode_array
from ocl_msf.data.summary import SPLITS
from ocl_msf.data.workers import Rejected
from ocl_msf.files import DataError

VARIANTS = ("full", "outd", "camo", "pbg", "vbg", "grassbg")
MAX_OBJECTS = 10


class RawScene(NamedTuple):
    """Index and files of a scene; a gap in the numbering has no files."""

    index: int  # type: ignore[assignment]  # not the method of tuples
    image: Optional[AnySource] = None
    mask: Optional[AnySource] = None


def folder_name(variant: str = "full") -> str:
    """Name of the converted data set."""
    return "clevrtex" if variant == "full" else f"clevrtex_{variant}"


def prepare(
    raw: Path, variant: str = "full", splits: Optional[List[str]] = None, crop: float = 1.0, size: int = 128
) -> Conversion:
    """Find the scenes in `raw` and plan their conversion.

    Args:
        raw: folder of the download.
        variant: one of `VARIANTS`.
        splits: ranges of scenes by index, such as "train=0:100"; by default the benchmark's for full (the first tenth
            of the existing scenes is test, the second val, the rest train) and "test=:" for the others.
        crop: side of the central square, by the image height: 1, or the benchmark's 0.8.
        size: side of the output in pixels.

    Raises:
        DataError: there are no scenes, some are doubled or lack their mask, or the splits do not fit them.
    """
    if not 0 < crop <= 1:
        raise DataError(f"--crop {crop} is not a share of the image height. Choose a number in (0, 1].")
    scenes = find_scenes(raw, variant)
    first = scenes[0].index
    ranges = _split_ranges(splits or _default_splits(variant, scenes), scenes)
    return Conversion(
        options={"variant": variant, "splits": ranges, "crop": crop, "size": size},
        splits={name: scenes[start - first : stop - first] for name, (start, stop) in ranges.items()},
        encode=functools.partial(encode_scene, crop, size),
    )


def find_scenes(raw: Path, variant: str) -> List[RawScene]:
    """All scenes from the first to the last, in order of their index; gaps in the numbering have no files."""
    pattern = f"CLEVRTEX_{variant}_*.png"
    files: Dict[Tuple[int, bool], AnySource] = {}
    for name, source in _list_folders(raw, variant, pattern) or _list_archives(raw, variant):
        match = re.fullmatch(rf"CLEVRTEX_{variant}_(\d+)(_flat)?\.png", name)
        if match is None:
            continue
        key = int(match.group(1)), bool(match.group(2))
        if key in files:
            raise DataError(f"Scene {key[0]} is there twice: {files[key]} and {source}. Remove one of them.")
        files[key] = source
    images = [index for index, is_mask in files if not is_mask]
    if not images:
        raise DataError(
            f"No ClevrTex scenes in {raw}: looked for <n>/{pattern}, clevrtex_{variant}/<n>/{pattern} and "
            f"clevrtex_{variant}*.tar.gz, found {_content(raw)}. Give the folder with the numbered folders, its "
            "parent, or that of the archives."
        )
    for index in sorted(images):
        if (index, True) not in files:
            name = f"CLEVRTEX_{variant}_{index:06d}_flat.png"
            raise DataError(f"{name} is missing, though {files[index, False]} is there. Get all parts of the download.")
    indices = range(min(images), max(images) + 1)
    return [RawScene(index, files.get((index, False)), files.get((index, True))) for index in indices]


def _list_folders(raw: Path, variant: str, pattern: str) -> List[Tuple[str, AnySource]]:
    paths = sorted([*raw.glob(f"*/{pattern}"), *raw.glob(f"clevrtex_{variant}/*/{pattern}")])
    return [(path.name, Source(str(path))) for path in paths]


def _list_archives(raw: Path, variant: str) -> Iterator[Tuple[str, AnySource]]:
    """Names and members of the archive of a variant, whose parts may be archives of their own."""
    paths = {}
    for path in sorted(raw.glob(f"clevrtex_{variant}*")):
        match = re.fullmatch(rf"clevrtex_{variant}(?:_part(\d+))?({'|'.join(map(re.escape, SUFFIXES))})", path.name)
        if match is not None:
            paths[int(match.group(1) or 1)] = path
    missing = [number for number in range(1, max(paths, default=0)) if number not in paths]
    try:
        for member in list_members([paths[number] for number in sorted(paths)]) if paths else ():
            yield member.name.rsplit("/", 1)[-1], member
    except READ_ERRORS as error:
        if missing:  # it may be the parts of one archive
            message = f"Part {missing[0]} of {paths[max(paths)]} is missing, and without it the others cannot be read"
            raise DataError(f"{message} ({error}). Get all parts of the download.") from error
        names = ", ".join(path.name for path in paths.values())
        raise DataError(f"{raw}: {names} cannot be read ({error}). Download again, or unpack all parts.") from error


def _content(folder: Path) -> str:
    if not folder.is_dir():
        return "no such folder"
    names = sorted(path.name for path in folder.iterdir())
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "") or "an empty folder"


def _default_splits(variant: str, scenes: List[RawScene]) -> List[str]:
    if variant != "full":
        return ["test=:"]
    indices = [scene.index for scene in scenes if scene.image]
    first, second, third = (indices[len(indices) // 10 * tenths] for tenths in (0, 1, 2))
    return [f"test={first}:{second}", f"val={second}:{third}", f"train={third}:"]


def _split_ranges(texts: List[str], scenes: List[RawScene]) -> Dict[str, List[int]]:
    """First scene and the one after the last, by split."""
    first, last = scenes[0].index, scenes[-1].index
    ranges = {}
    for text in texts:
        match = re.fullmatch(r"(\w+)=(-?\d*):(-?\d*)", text)
        if match is None or match.group(1) not in SPLITS:
            raise DataError(f"--splits {text} is not like train=0:100, with a name among {', '.join(SPLITS)}.")
        name, start, stop = match.groups()
        if name in ranges:
            raise DataError(f"--splits names {name} twice.")
        span = range(last + 1)[slice(int(start) if start else None, int(stop) if stop else None)]
        span = range(max(span.start, first), span.stop)
        if not span:
            there = f"there are {sum(scene.image is not None for scene in scenes)} scenes, {first} to {last}"
            raise DataError(f"Split {text} is empty: {there}. Choose other --splits.")
        ranges[name] = [span.start, span.stop]
    return ranges


def encode_scene(crop: float, size: int, scene: RawScene) -> Sample:
    """Crop and resize a scene.

    Returns:
        The six-digit index and the files `image.png`, RGB; `mask.npy.gz` (11, size, size, 1) uint8, binary, the
        background first, then the objects by number; and `visibility.npy.gz` (11,) float32, 1 for masks that are not
        empty. An object outside the crop has an empty mask.

    Raises:
        Rejected: the scene is missing, a file is damaged, or the mask does not fit.
    """
    name = f"scene {scene.index}"
    if not scene.image:
        raise Rejected("missing scene", name)
    image = read_image(name, "image", scene.image, rgb=True)
    mask = read_image(name, "mask", scene.mask, image.size, formats=("PNG",))
    if mask.mode not in ("P", "L"):
        raise Rejected("mask is neither a palette nor a grey image of 8 bits", name, f"{scene.mask}: {mask.mode}")
    box = central_square(*image.size, crop)
    return f"{scene.index:06d}", encode_files(name, str(scene.mask), image, np.asarray(mask), box, size)


def encode_files(
    name: str, source: str, image: Image.Image, numbers: np.ndarray, box: Box, size: int
) -> Dict[str, bytes]:
    """The files of `encode_scene`, of an image, the numbers of its objects (H, W), and the square to crop.

    For messages there are the name of the scene and the source of the numbers.

    Raises:
        Rejected: there is an object above `MAX_OBJECTS`.
    """
    if numbers.max() > MAX_OBJECTS:
        raise Rejected(f"mask has an object above {MAX_OBJECTS}", name, f"{source}: {numbers.max()}")
    numbers = crop_mask(numbers, box, size)
    masks = (numbers == np.arange(MAX_OBJECTS + 1)[:, None, None]).astype(np.uint8)[..., None]
    return {
        "image.png": crop_image(image, box, size),
        "mask.npy.gz": encode_array(masks),
        "visibility.npy.gz": encode_array(masks.any(axis=(1, 2, 3)).astype(np.float32)),
    }
