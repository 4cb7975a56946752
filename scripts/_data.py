"""The benchmark `data`: converting scenes and reading what was converted."""

import argparse
import functools
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Callable, Dict, Tuple

import numpy as np
import torch
from _rates import print_rates, rates_in_turns
from ocl.transforms import SimpleTransform
from PIL import Image

from ocl_msf.data import LMDBDataModule, ShardDataModule
from ocl_msf.data.synthetic.scenes import make_scenes


def make_raw(folder: Path, count: int, size: Tuple[int, int], distinct: int = 48, workers: int = 2) -> None:
    """Write `count` scenes in ClevrTex's layout; only the first `distinct` are different, the others are links."""
    make_scenes(folder, min(count, distinct), size=size, workers=workers)
    for index in range(distinct, count):
        for ending in (".png", "_flat.png"):
            source, copy = (
                folder / "clevrtex_full" / f"{number // 1000}" / f"CLEVRTEX_full_{number:06d}{ending}"
                for number in (index % distinct, index)
            )
            copy.parent.mkdir(exist_ok=True)
            os.link(source, copy)


def same(value):
    """Return the field unchanged."""
    return value


def loaders(folder: Path, options: argparse.Namespace) -> Dict[str, Callable[[], int]]:
    """Functions that read an epoch of images and masks, one for each format."""
    fields = {"image": same, "mask": same}
    transforms = {"fields": SimpleTransform(fields, batch_transform=False)}

    def epoch(module) -> int:
        return sum(batch["batch_size"] for batch in module.train_dataloader())

    def raw() -> int:
        paths = sorted((folder / "raw").rglob("CLEVRTEX_full_??????.png"))
        for path in paths:
            with Image.open(path) as image, Image.open(path.with_name(f"{path.stem}_flat.png")) as mask:
                left = (image.width - image.height) // 2
                box = (left, 0, left + image.height, image.height)
                np.asarray(image.convert("RGB").crop(box).resize((options.size,) * 2, Image.Resampling.BILINEAR))
                np.asarray(mask.crop(box).resize((options.size,) * 2, Image.Resampling.NEAREST))
        return len(paths)

    settings = {"batch_size": 16, "num_workers": options.workers}
    lmdb = LMDBDataModule(str(folder), "lmdb", transforms, **settings)
    shards = ShardDataModule(str(folder), "webdataset", transforms, **settings)
    return {"read LMDB": lambda: epoch(lmdb), "read shards": lambda: epoch(shards), "decode raw files by PIL": raw}


def convert(folder: Path, form: str, workers: int, options: argparse.Namespace) -> int:
    """Run the converter in its own process, as a user does; return the number of images."""
    command = [sys.executable, "-m", "ocl_msf", "convert", "clevrtex", f"{folder}/raw", f"{folder}", "--overwrite"]
    chosen = {"--splits": "train=:", "--size": options.size, "--format": form, "--name": form, "--workers": workers}
    chosen["--samples-per-shard"] = max(1, options.samples // 64)  # both workers are busy to the end
    command += [str(part) for pair in chosen.items() for part in pair]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return options.samples


def data(options: argparse.Namespace) -> None:
    """Images per second: converting synthetic scenes with one worker and two, reading LMDB, shards and raw files."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_raw(folder / "raw", options.samples, tuple(options.raw_size))
        converters = {
            f"convert to {form}, {workers} workers": functools.partial(convert, folder, form, workers, options)
            for form in ("webdataset", "lmdb")
            for workers in (1, 2)
        }
        rates = rates_in_turns(converters, options.repeat)
        rates.update(rates_in_turns(loaders(folder, options), options.repeat))
    speedups = {
        f"two workers / one, {form}": (f"convert to {form}, 2 workers", f"convert to {form}, 1 workers")
        for form in ("webdataset", "lmdb")
    }
    readers = ("read LMDB", "decode raw files by PIL")
    print_rates(rates, "images", {**speedups, " / ".join(readers): readers})


def add_options(parser: argparse.ArgumentParser) -> None:
    """Options of the benchmark `data`."""
    parser.add_argument("--samples", type=int, default=1024, help="scenes (default: %(default)s)")
    parser.add_argument("--raw-size", type=int, nargs=2, default=[320, 240], metavar=("W", "H"))
    parser.add_argument("--workers", type=int, default=0, help="of the loaders (default: %(default)s)")
