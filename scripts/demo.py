"""Scenes -> shards -> stage 1 -> stage 2 -> scores and a picture, all in ./demo; a second run reuses what is there."""

import argparse
import json
import os
import shutil
import sys
from pathlib import Path
from typing import Callable, List, Optional

from ocl_msf.experiments.runs import Run, find_runs
from ocl_msf.experiments.tasks import Task, command_line, run_all

SCORES = {"ari": "ARI", "ari_fg": "ARI_fg", "miou": "mIoU", "mbo": "mBO"}

REAL_CLEVRTEX = """\
With the real ClevrTex (download and unpack it, https://www.robots.ox.ac.uk/~vgg/data/clevrtex/) and a GPU:

  export DATASET_PREFIX=$PWD/data
  .venv/bin/python -m ocl_msf.data.convert clevrtex PATH/TO/clevrtex_full $DATASET_PREFIX
  .venv/bin/ocl_train +experiment=msf/vqvae_clevrtex
  .venv/bin/ocl_train +experiment=msf/slate_clevrtex
  .venv/bin/ocl_eval +evaluation=msf/slate_clevrtex train_config_path=RUN/config/config.yaml"""


def run(title: str, module: str, arguments: List[str], log: Path, done: Optional[Callable[[], bool]] = None) -> None:
    """Run one step unless its result is there, or always; its failure ends the demo."""
    run_all([Task(title, lambda: [sys.executable, "-m", module, *arguments], log, done)])


def train(experiment: str, outputs: Path) -> Run:
    """Train an experiment unless a finished run is there; go on from the furthest checkpoint of an unfinished one."""

    def furthest() -> Optional[Run]:
        runs = [run for run in find_runs(outputs / "msf" / experiment) if run.checkpoint]
        return max(runs, key=lambda run: run.step, default=None)

    def done() -> bool:
        return bool(furthest() and furthest().finished)

    resume = [f"load_checkpoint='{furthest().checkpoint}'"] if furthest() else []
    overrides = [f"+experiment=msf/{experiment}", "+msf/preset=cpu", "seed=0"]
    overrides += [f"+experiment.root_output_folder='{outputs}'", *resume]
    run(f"training {experiment}", "ocl.cli.train", overrides, outputs / f"{experiment}.log", done)
    return furthest()


def evaluate(title: str, run_folder: Path, checkpoint: Path, report: Path) -> dict:
    """Score a checkpoint of SLATE on the validation scenes; the report says which checkpoint it is of."""

    def done() -> bool:
        return report.is_file() and json.loads(report.read_text())["checkpoint_path"] == str(checkpoint)

    report.parent.mkdir(parents=True, exist_ok=True)
    overrides = ["+evaluation=msf/slate_clevrtex", f"train_config_path='{run_folder}/config/config.yaml'"]
    overrides += [f"checkpoint_path='{checkpoint}'", f"output_dir='{report.parent}'", f"report_filename={report.name}"]
    run(title, "ocl.cli.eval", overrides, report.with_suffix(".log"), done)
    return json.loads(report.read_text())["metrics"]["val"]


def print_table(before: dict, after: dict) -> None:
    """Print the scores in percent."""
    print(f"\n{'200 held-out scenes':24}" + "".join(f"{label:>9}" for label in SCORES.values()))
    for label, scores in (("before training", before), ("after training", after)):
        print(f"{label:24}" + "".join(f"{100 * scores[name]:9.1f}" for name in SCORES))


def main() -> None:
    """Run all steps."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, default=Path("demo"), help="where everything goes (default: demo)")
    parser.add_argument("--scenes", type=int, default=2000, help="scenes to make, 200 of them held out")
    options = parser.parse_args()
    if options.scenes <= 200:
        parser.error("--scenes must be more than the 200 that are held out")
    folder = options.folder.resolve()
    os.environ["DATASET_PREFIX"] = str(folder / "shards")
    workers = str(os.cpu_count() or 1)

    raw = folder / "raw" / "clevrtex_full"
    scenes = [str(folder / "raw"), "--count", str(options.scenes), "--workers", workers]
    run("making scenes", "ocl_msf.data.synthetic.scenes", scenes, folder / "scenes.log")
    shards = ["clevrtex", str(raw), str(folder / "shards"), "--splits", "val=0:200", "train=200:", "--workers", workers]
    run("converting them", "ocl_msf.data.convert", shards, folder / "shards.log")

    train("vqvae_clevrtex", folder / "outputs")
    slate = train("slate_clevrtex", folder / "outputs")
    untrained = find_untrained(folder / "outputs" / "msf" / "slate_clevrtex")
    before = evaluate("scoring before training", slate.folder, untrained, folder / "untrained" / "metrics.json")
    after = evaluate("scoring after training", slate.folder, slate.checkpoint, slate.folder / "metrics.json")
    shutil.copyfile(slate.folder / "scenes.png", folder / "scenes.png")
    print_table(before, after)
    print(f"\nScenes, true masks, predicted masks, reconstructions: {folder / 'scenes.png'}")
    print(f"Curves and pictures over time: .venv/bin/tensorboard --logdir {folder / 'outputs'}\n\n{REAL_CLEVRTEX}")


def find_untrained(folder: Path) -> Path:
    """Find the model as it was before the first step, in whichever run that was."""
    return max(folder.glob("*/lightning_logs/version_*/untrained.ckpt"), key=lambda path: path.stat().st_mtime)


if __name__ == "__main__":
    with command_line():
        main()
