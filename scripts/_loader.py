"""The benchmark `loader`: the host's reading of shards against plain webdataset."""

import argparse
import functools
import io
import tempfile
from pathlib import Path
from typing import Dict, Iterable

import numpy as np
import torch
import webdataset
from _rates import print_rates, rates_in_turns
from ocl.data_decoding import decode_field
from ocl.datasets import WebdatasetDataModule
from ocl.transforms import SimpleTransform
from PIL import Image


def write_shards(folder: Path, options: argparse.Namespace) -> str:
    """Write shards of random images with masks, and return their brace expression."""
    rng = np.random.default_rng(0)
    for shard in range(options.shards):
        with webdataset.TarWriter(str(folder / f"{shard:06d}.tar")) as sink:
            for index in range(options.samples):
                coarse = rng.integers(0, 256, (16, 16, 3), dtype=np.uint8)
                image = Image.fromarray(coarse).resize((options.size, options.size), Image.Resampling.BICUBIC)
                buffer = io.BytesIO()
                image.save(buffer, "PNG")
                mask = np.asarray(image)[..., :1] // 32
                key = f"{shard * options.samples + index:08d}"
                sink.write({"__key__": key, "image.png": buffer.getvalue(), "mask.npy": mask})
    return f"{folder}/{{{0:06d}..{options.shards - 1:06d}}}.tar"


def to_float(image: np.ndarray) -> torch.Tensor:
    """Convert an image (h, w, c), uint8, to (c, h, w) in [0, 1]."""
    return torch.from_numpy(image).permute(2, 0, 1).float().div_(255)


def decode(sample: dict) -> dict:
    """Decode and prepare a sample of plain webdataset as the host does."""
    decoded = dict(decode_field(name, data) for name, data in sample.items() if not name.startswith("_"))
    return {"__key__": sample["__key__"], "image": to_float(decoded["image"]), "mask": decoded["mask"]}


def collate(samples: list) -> dict:
    """Stack samples to a batch."""
    return torch.utils.data.default_collate(samples)


def build_loaders(shards: str, options: argparse.Namespace) -> Dict[str, Iterable]:
    """Build both loaders of training batches, with equal shuffling."""
    transforms = {"prepare": SimpleTransform({"image": to_float, "mask": np.asarray}, batch_transform=False)}
    ours = WebdatasetDataModule(
        shards, batch_size=options.batch, num_workers=options.workers, train_transforms=transforms
    )
    plain = webdataset.DataPipeline(
        webdataset.SimpleShardList(shards),
        webdataset.shuffle(options.shards),
        webdataset.split_by_worker,
        webdataset.tarfile_to_samples(),
        webdataset.shuffle(4 * options.batch, initial=4 * options.batch),
        webdataset.map(decode),
        webdataset.batched(options.batch, collation_fn=collate, partial=False),
    )
    theirs = webdataset.WebLoader(plain, batch_size=None, num_workers=options.workers)
    return {"ours": ours.train_dataloader(), "plain webdataset": theirs}


def count_samples(batches: Iterable) -> int:
    """Read an epoch, and return its number of samples."""
    return sum(len(batch["__key__"]) for batch in batches)


def loader(options: argparse.Namespace) -> None:
    """Images per second of whole epochs, the loaders taking turns; the ratio is the median over the turns."""
    with tempfile.TemporaryDirectory() as folder:
        loaders = build_loaders(write_shards(Path(folder), options), options)
        runs = {name: functools.partial(count_samples, batches) for name, batches in loaders.items()}
        rates = rates_in_turns(runs, options.repeat, options.warmup)
    print_rates(rates, "images", {"ours / plain webdataset": ("ours", "plain webdataset")})


def add_options(parser: argparse.ArgumentParser) -> None:
    """Options of the benchmark `loader`."""
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--shards", type=int, default=8)
    parser.add_argument("--samples", type=int, default=500, help="samples in a shard (default: 500)")
