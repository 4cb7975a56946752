"""Time conversion and reading of data: `python scripts/benchmark_data.py`; medians of one run on synthetic scenes."""

import argparse
import statistics
import tempfile
import time
from pathlib import Path
from typing import Callable, Dict

import numpy as np
import torch
from ocl.transforms import SimpleTransform
from PIL import Image

from ocl_msf.data import LMDBDataModule, ShardDataModule
from ocl_msf.data.convert import main as convert
from ocl_msf.data.scenes import make_scenes


def rate(run: Callable[[], int], repeat: int) -> float:
    """Median of images per second; `run` returns how many it made."""
    rates = []
    for _ in range(repeat):
        start = time.perf_counter()
        count = run()
        rates.append(count / (time.perf_counter() - start))
    return statistics.median(rates)


def same(value):
    """The field as it is."""
    return value


def loaders(folder: Path, size: int, workers: int) -> Dict[str, Callable[[], int]]:
    """An epoch of images and masks by each way to read them."""
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
                np.asarray(image.convert("RGB").crop(box).resize((size, size), Image.BILINEAR))
                np.asarray(mask.crop(box).resize((size, size), Image.NEAREST))
        return len(paths)

    options = {"batch_size": 16, "num_workers": workers}
    lmdb = LMDBDataModule(str(folder), "clevrtex_lmdb", transforms, **options)
    shards = ShardDataModule(str(folder), "clevrtex", transforms, **options)
    return {"LMDB": lambda: epoch(lmdb), "shards": lambda: epoch(shards), "PIL, raw files": raw}


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--scenes", type=int, default=256, help="default: %(default)s")
    parser.add_argument("--raw-size", type=int, nargs=2, default=[320, 240], metavar=("W", "H"))
    parser.add_argument("--size", type=int, default=128, help="of the output in pixels (default: %(default)s)")
    parser.add_argument("--repeat", type=int, default=3, help="timed turns (default: %(default)s)")
    parser.add_argument("--workers", type=int, default=0, help="of the loaders (default: %(default)s)")
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_scenes(folder / "raw", options.scenes, size=tuple(options.raw_size), workers=2)
        command = ["clevrtex", str(folder / "raw"), str(folder), "--splits", "train=:", "--size", str(options.size)]

        def conversion(form: str, workers: int) -> int:
            arguments = ["--workers", str(workers), "--overwrite", "--format", form, "--samples-per-shard", "32"]
            convert([*command, *arguments])
            return options.scenes

        rows = {}
        for form in ("webdataset", "lmdb"):
            for workers in (1, 2):
                run = rate(lambda form=form, workers=workers: conversion(form, workers), options.repeat)
                rows[f"convert to {form}, {workers} workers"] = run
        for way, run in loaders(folder, options.size, options.workers).items():
            rows[f"read {way}"] = rate(run, options.repeat)
    print(f"\n{'':<36}{'images/s':>10}")
    for row, value in rows.items():
        print(f"{row:<36}{value:>10.0f}")


if __name__ == "__main__":
    main()
