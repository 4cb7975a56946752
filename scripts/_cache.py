"""The benchmark `cache`: training steps of stage 2 whose frozen parts run anew, or once for each image."""

import argparse
import os
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any, Dict, List

import hydra
from ocl.cli.train import train
from pytorch_lightning import Callback


class Meter(Callback):
    """Notes the processor time of a training's steps, in all threads of this process, after the first `warmup`."""

    seconds: List[float] = []

    def __init__(self, warmup: int) -> None:
        self.warmup = warmup

    def on_train_batch_end(self, trainer: Any, *arguments: Any) -> None:
        """Begin after the warm-up, and note the mean of the steps behind it after the last one."""
        if trainer.global_step == self.warmup:
            self.begin = time.process_time()
        if trainer.global_step == trainer.max_steps:
            self.seconds.append((time.process_time() - self.begin) / (trainer.max_steps - self.warmup))


def cache(options: argparse.Namespace) -> None:
    """Processor time of training steps with and without +msf/cache=codes, reading included, in turns."""
    settings = [
        f"+experiment=msf/{options.experiment}",
        *options.settings,
        f"dataset.prefix={options.data.resolve()}",
        f"experiment.vae_checkpoint={options.vae.resolve()}",
        "dataset.num_workers=0",
        "trainer.num_sanity_val_steps=0",
        f"trainer.max_steps={options.steps}",
        f"trainer.val_check_interval={options.steps + 1}",
        f"+experiment.callbacks.meter={{_target_:_cache.Meter,warmup:{options.steps // 4}}}",
        "seed=0",
    ]
    kept = ["+msf/cache=codes", "experiment.cache_folder=cache"]
    times: Dict[str, List[float]] = {"every step": [], "once": []}
    before = os.getcwd()
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        for _ in range(options.repeat):
            for name, more in zip(times, ([], kept)):
                with hydra.initialize_config_module("configs", version_base="1.1"):
                    train(hydra.compose("training_config", overrides=[*settings, *more]))
                times[name].append(Meter.seconds.pop())
        os.chdir(before)
    print("| images are encoded in | processor time of a step, ms | images per second of it |\n|---|---|---|")
    for name, seconds in times.items():
        median = statistics.median(seconds)
        print(f"| {name} | {1000 * median:.1f} | {options.batch / median:.1f} |")
    ratios = [a / b for a, b in zip(*times.values())]
    print(f"\nevery step / once: {statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})")


def add_options(parser: argparse.ArgumentParser) -> None:
    """Options of the benchmark `cache`."""
    parser.add_argument("--data", type=Path, required=True, help="DATASET_PREFIX")
    parser.add_argument("--vae", type=Path, required=True, help="checkpoint of stage 1")
    parser.add_argument("--experiment", default="slate_clevrtex", help="of stage 2 (default: %(default)s)")
    parser.add_argument("--settings", nargs="*", default=["+msf/preset=cpu"], help="default: %(default)s")
    parser.add_argument("--batch", type=int, default=16, help="that of the experiment (default: %(default)s)")
    parser.add_argument("--steps", type=int, default=40, help="of each training (default: %(default)s)")
