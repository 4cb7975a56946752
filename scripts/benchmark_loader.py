"""Time reading shards, the host's data module against plain webdataset: `python scripts/benchmark_loader.py`."""

import argparse
import io
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
import webdataset
from ocl.data_decoding import decode_field
from ocl.datasets import WebdatasetDataModule
from ocl.transforms import SimpleTransform
from PIL import Image


def write_shards(folder: Path, options: argparse.Namespace) -> str:
    """Write shards of noisy pictures with masks, and return their brace expression."""
    rng = np.random.default_rng(0)
    for shard in range(options.shards):
        with webdataset.TarWriter(str(folder / f"{shard:06d}.tar")) as sink:
            for index in range(options.samples):
                coarse = rng.integers(0, 256, (16, 16, 3), dtype=np.uint8)
                image = Image.fromarray(coarse).resize((options.size, options.size), Image.BICUBIC)
                buffer = io.BytesIO()
                image.save(buffer, "PNG")
                mask = np.asarray(image)[..., :1] // 32
                key = f"{shard * options.samples + index:08d}"
                sink.write({"__key__": key, "image.png": buffer.getvalue(), "mask.npy": mask})
    return f"{folder}/{{{0:06d}..{options.shards - 1:06d}}}.tar"


def to_float(image: np.ndarray) -> torch.Tensor:
    """The usual preparation of a picture."""
    return torch.from_numpy(image).permute(2, 0, 1).float().div_(255)


def decode(sample: dict) -> dict:
    """Decode and prepare a sample of plain webdataset exactly like the host."""
    decoded = dict(decode_field(name, data) for name, data in sample.items() if not name.startswith("_"))
    return {"__key__": sample["__key__"], "image": to_float(decoded["image"]), "mask": decoded["mask"]}


def collate(samples: list) -> dict:
    """Stack samples to a batch."""
    return torch.utils.data.default_collate(samples)


def build_loaders(shards: str, options: argparse.Namespace) -> dict:
    """Both loaders of training batches, shuffled alike."""
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


def loader(options: argparse.Namespace) -> None:
    """Images per second of whole epochs, in turns; the ratio is the median over the turns."""
    with tempfile.TemporaryDirectory() as folder:
        loaders = build_loaders(write_shards(Path(folder), options), options)
        rates = {name: [] for name in loaders}
        for _ in range(options.warmup + options.repeat):
            for name, batches in loaders.items():
                begin = time.perf_counter()
                count = sum(len(batch["__key__"]) for batch in batches)
                rates[name].append(count / (time.perf_counter() - begin))
    rates = {name: values[options.warmup :] for name, values in rates.items()}
    print("| | images per second |\n|---|---|")
    for name, values in rates.items():
        print(f"| {name} | {statistics.median(values):.0f} |")
    ratio = statistics.median(a / b for a, b in zip(*rates.values()))
    print(f"\nours / plain webdataset: {ratio:.2f}")


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--size", type=int, default=128, help="height and width of the images (default: 128)")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--shards", type=int, default=8)
    parser.add_argument("--samples", type=int, default=500, help="samples in a shard (default: 500)")
    parser.add_argument("--repeat", type=int, default=7, help="timed epochs (default: 7)")
    parser.add_argument("--warmup", type=int, default=1, help="epochs before them (default: 1)")
    loader(parser.parse_args())


if __name__ == "__main__":
    main()
