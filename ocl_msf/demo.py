"""A demonstration on data made here: scenes, shards, both stages, scores, a picture; the command is `ocl-msf demo`.

A second run in the same folder reuses what is there.
"""

import os
import shutil
import sys
from pathlib import Path
from typing import Callable, Dict, List, Optional

import torch
from safetensors.torch import load_file

from ocl_msf._host import require_host
from ocl_msf.experiments.honest_rows import text_table, verdict
from ocl_msf.experiments.runs import Run, Scores, config_path, defined, find_runs, furthest
from ocl_msf.experiments.tasks import Task, assign, run_all
from ocl_msf.files import decode_json, replacing
from ocl_msf.inference.loading import PRETRAINED, WEIGHTS

with require_host():
    import ocl.cli.train  # noqa: F401  without it, the steps after the scenes would fail

HELD_OUT = 200  # scenes


def run_demo(folder: Path = Path("demo"), scenes: int = 2000) -> None:
    """Make scenes and train both stages on them, score before and after, and print the scores.

    Args:
        folder: where everything goes.
        scenes: how many to make; the first 200 are held out.

    Raises:
        ValueError: there are no scenes to train on.
        SystemExit: a step failed.
    """
    if scenes <= HELD_OUT:
        raise ValueError(f"The demo needs more scenes than the {HELD_OUT} that are held out, not {scenes}.")
    folder = folder.resolve()
    workers = ["--workers", str(os.cpu_count() or 1)]
    make = ["ocl_msf", "scenes", str(folder / "raw"), "--count", str(scenes), *workers]
    _run(folder, "making scenes", make, folder / "scenes.log")
    splits = [f"val=0:{HELD_OUT}", f"train={HELD_OUT}:"]
    paths = [str(folder / "raw" / "clevrtex_full"), str(folder / "shards")]
    convert = ["ocl_msf", "convert", "clevrtex", *paths, "--splits", *splits, *workers]
    _run(folder, "converting them", convert, folder / "shards.log")

    _train(folder, "vqvae_clevrtex")
    slate = _train(folder, "slate_clevrtex")
    models = {
        "before training": (slate.untrained, folder / "untrained"),
        "after training": (slate.checkpoint, slate.folder),
        "the model in the box": (_boxed(slate.checkpoint, folder / "box"), folder / "box"),
    }
    scores = {
        name: _evaluate(folder, f"scoring {name}", slate, checkpoint, place / "metrics.json")
        for name, (checkpoint, place) in models.items()
    }
    shutil.copyfile(slate.folder / "scenes.png", folder / "scenes.png")
    print("\n".join(["", *_table(scores), "", *_next_steps(folder)]))


def _run(folder: Path, title: str, module: List[str], log: Path, done: Optional[Callable[[], bool]] = None) -> None:
    """Run a module with its arguments on the demo's data, unless its result is there; its failure ends the demo."""
    data = ["env", f"DATASET_PREFIX={folder / 'shards'}"]
    run_all([Task(title, lambda: [sys.executable, "-m", *module], log, done)], [data])


def _train(folder: Path, experiment: str) -> Run:
    """Train an experiment unless a finished run exists; continue an unfinished one from its furthest checkpoint."""
    outputs = folder / "outputs"

    def so_far() -> Optional[Run]:
        return furthest(find_runs(outputs / "msf" / experiment))

    def done() -> bool:
        run = so_far()
        return run is not None and run.finished

    run = so_far()
    overrides = [f"+experiment=msf/{experiment}", "+msf/preset=cpu", "seed=0"]
    overrides += [assign("+experiment.root_output_folder", outputs)]
    overrides += [assign("load_checkpoint", run.checkpoint)] if run else []
    _run(folder, f"training {experiment}", ["ocl.cli.train", *overrides], outputs / f"{experiment}.log", done)
    trained = so_far()
    assert trained is not None, "a training that is done has left a checkpoint"
    return trained


def _evaluate(folder: Path, title: str, run: Run, checkpoint: Optional[Path], report: Path) -> Scores:
    """Score a checkpoint of SLATE on the held-out scenes; the report says which checkpoint it is of."""

    def done() -> bool:
        return report.is_file() and decode_json(report.read_text())["checkpoint_path"] == str(checkpoint)

    report.parent.mkdir(parents=True, exist_ok=True)
    overrides = ["+evaluation=msf/scores", assign("train_config_path", config_path(run.folder))]
    overrides += [assign("checkpoint_path", checkpoint), assign("output_dir", report.parent)]
    overrides += [f"report_filename={report.name}"]
    _run(folder, title, ["ocl.cli.eval", *overrides], report.with_suffix(".log"), done)
    return decode_json(report.read_text())["metrics"]["val"]


def _boxed(trained: Optional[Path], folder: Path) -> Path:
    """A copy of a trained checkpoint with the weights of the model that comes with ocl_msf, of the same experiment."""
    assert trained is not None, "a finished run has a checkpoint"
    state = torch.load(trained, map_location="cpu", weights_only=True)["state_dict"]
    state.update({f"models.{name}": x for name, x in load_file(PRETRAINED / "scenes" / WEIGHTS).items()})
    with replacing(folder / "scenes.ckpt") as file:
        torch.save({"state_dict": state}, file)
    return folder / "scenes.ckpt"


def _table(models: Dict[str, Scores]) -> List[str]:
    """The scores in percent, and those of what knows nothing of objects."""
    models = {name: defined(scores) for name, scores in models.items()}
    lines = text_table(f"{HELD_OUT} held-out scenes", models)
    verdicts = {name: verdict(scores) for name, scores in models.items()}
    return [*lines, *(f"{name}: {its}" for name, its in verdicts.items() if its)]


def _next_steps(folder: Path) -> List[str]:
    """What to look at, and how to do the same with ClevrTex."""
    programs = Path(sys.executable).parent
    active = shutil.which("ocl-msf") == str(programs / "ocl-msf")
    return [
        f"Scenes, true masks, predicted masks, reconstructions: {folder / 'scenes.png'}",
        f"The same of the model in the box, trained for longer on other scenes: {folder / 'box' / 'scenes.png'}",
        f"Curves and pictures over time: tensorboard --logdir {folder / 'outputs'}",
        "",
        "With the real ClevrTex (download and unpack it, https://www.robots.ox.ac.uk/~vgg/data/clevrtex/) and a GPU:",
        "",
        *([] if active else [f"  source {programs / 'activate'}"]),
        "  export DATASET_PREFIX=$PWD/data",
        "  ocl-msf convert clevrtex PATH/TO/clevrtex_full $DATASET_PREFIX",
        "  ocl_train +experiment=msf/vqvae_clevrtex",
        "  ocl_train +experiment=msf/slate_clevrtex",
        "  ocl_eval +evaluation=msf/scores train_config_path=RUN/config/config.yaml",
    ]
