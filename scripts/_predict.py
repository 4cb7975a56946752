"""The benchmark `predict`: the command's loop against that of an evaluation which saves masks and slots."""

import argparse
import functools
import logging
import os
import tempfile
from pathlib import Path
from typing import Any

import hydra
import torch
from _data import make_raw
from _rates import print_rates, rates_in_turns
from hydra.core.global_hydra import GlobalHydra
from ocl.cli import eval as evaluation
from ocl.cli.train import build_model_from_config
from omegaconf import OmegaConf

from ocl_msf.cli import main
from ocl_msf.results.predict import predict as predict_pictures


def compose(name: str, *overrides: str) -> Any:
    """A composed configuration."""
    GlobalHydra.instance().clear()
    with hydra.initialize_config_module("configs", version_base="1.1"):
        return hydra.compose(name, overrides=list(overrides))


def make_run(run: Path) -> None:
    """Write the run of a SLATE of the preset `cpu` with random weights, as training leaves it."""
    config = compose("training_config", "+experiment=msf/slate_clevrtex", "+msf/preset=cpu", "seed=0")
    model = build_model_from_config(config)
    state = {name: torch.ones_like(x) if name.endswith("loaded") else x for name, x in model.state_dict().items()}
    checkpoint = run / "lightning_logs" / "version_0" / "checkpoints" / "epoch0000-step0000001.ckpt"
    for path in (checkpoint, run / "config" / "config.yaml"):
        path.parent.mkdir(parents=True)
    OmegaConf.save(config, run / "config" / "config.yaml")
    torch.save({"state_dict": state, "global_step": 1}, checkpoint)


def evaluate(run: Path, folder: Path, options: argparse.Namespace) -> int:
    """Save masks and slots of all pictures by an evaluation without scores and pictures."""
    config = compose(
        "evaluation_config",
        *("+evaluation=msf/scores", "+msf/save=outputs", "skip_metrics=true"),
        *("modules.slot_instruments=null", "modules.scenes=null"),
        *(f"train_config_path={run}/config/config.yaml", f"output_dir={folder}"),
        f"train_config_overrides=['dataset.num_workers={options.workers}']",
    )
    config = evaluation.resolve_paths(config)
    train_config = evaluation.load_train_config(config.train_config_path, config.train_config_overrides)
    train_config.trainer.enable_progress_bar = False
    evaluation.evaluate_splits(config, train_config, evaluation.build_trainer(config, train_config))
    return options.samples


def predict(options: argparse.Namespace) -> None:
    """Pictures per second, loading the model included: `ocl-msf predict`, and `ocl_eval` that saves masks and slots."""
    torch.set_num_threads(options.threads)
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        os.environ["DATASET_PREFIX"] = name
        make_raw(folder / "raw", options.samples, (160, 120), workers=1)
        raw = str(folder / "raw" / "clevrtex_full")
        main(["convert", "clevrtex", raw, name, "--splits", "val=:", "--size", str(options.size), "--workers", "1"])
        make_run(folder / "run")
        out = (folder / str(number) for number in range(options.repeat))

        def command() -> int:
            return predict_pictures(folder / "run", [name + "/clevrtex/val"], next(out), device="cpu").pictures

        runs = {"predict": command, "evaluation": functools.partial(evaluate, folder / "run", folder, options)}
        rates = rates_in_turns(runs, options.repeat)
    print_rates(rates, "pictures", {"predict / evaluation": ("predict", "evaluation")})


def add_options(parser: argparse.ArgumentParser) -> None:
    """Options of the benchmark `predict`."""
    parser.add_argument("--samples", type=int, default=500, help="pictures (default: %(default)s)")
    parser.add_argument("--workers", type=int, default=0, help="of the evaluation's loader (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
