"""Scenes -> shards -> stage 1 -> stage 2 -> scores and a picture, all in ./demo; a second run reuses what is there."""

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

from ocl_msf.checkpoints import Run, find_runs

SCORES = {"ari": "ARI", "ari_fg": "ARI_fg", "miou": "mIoU", "mbo": "mBO"}

REAL_CLEVRTEX = """\
With the real ClevrTex (download and unpack it, https://www.robots.ox.ac.uk/~vgg/data/clevrtex/) and a GPU:

  export DATASET_PREFIX=$PWD/data
  .venv/bin/python -m ocl_msf.data.convert clevrtex PATH/TO/clevrtex_full $DATASET_PREFIX
  .venv/bin/ocl_train +experiment=msf/vqvae_clevrtex
  .venv/bin/ocl_train +experiment=msf/slate_clevrtex
  .venv/bin/ocl_eval +evaluation=msf/slate_clevrtex train_config_path=RUN/config/config.yaml"""


def run(title: str, *command: str) -> None:
    """Run one step in the foreground; its failure ends the demo."""
    print(f"\n== {title}\n   {' '.join(command)}\n", flush=True)
    begin = time.monotonic()
    status = wait_for(subprocess.Popen(command))
    if status:
        print(f"\nThis step ended with status {status}. Run the same command again to go on from here.")
        sys.exit(status if status > 0 else 128 - status)
    print(f"   {time.monotonic() - begin:.0f} s", flush=True)


def wait_for(process: subprocess.Popen) -> int:
    """Wait for a step; when the demo is stopped, let the step save what it has before the demo ends, too."""
    try:
        return process.wait()
    except KeyboardInterrupt:  # Ctrl-C has reached the step as well
        process.wait()
        raise
    except SystemExit:
        process.terminate()
        process.wait()
        raise


def python(module: str) -> list:
    """The command that runs a module with this interpreter."""
    return [sys.executable, "-m", module]


def train(experiment: str, outputs: Path) -> Run:
    """Train an experiment unless a finished run is there; go on from the furthest checkpoint of an unfinished one."""
    folder = outputs / "msf" / experiment
    runs = find_runs(folder)
    finished = [run for run in runs if run.finished]
    if finished:
        print(f"\n== {experiment}: {finished[0].folder} is finished and reused")
        return finished[0]
    started = max((run for run in runs if run.checkpoint), key=lambda run: run.step, default=None)
    resume = [f"load_checkpoint='{started.checkpoint}'"] if started else []
    overrides = [f"+experiment=msf/{experiment}", "+msf/preset=cpu", "seed=0"]
    overrides.append(f"+experiment.root_output_folder='{outputs}'")
    run(f"training {experiment}", *python("ocl.cli.train"), *overrides, *resume)
    return find_runs(folder)[0]


def evaluate(run_folder: Path, checkpoint: Path, report: Path) -> dict:
    """Score a checkpoint of SLATE on the validation scenes; the report says which checkpoint it is of."""
    if not (report.is_file() and json.loads(report.read_text())["checkpoint_path"] == str(checkpoint)):
        report.parent.mkdir(parents=True, exist_ok=True)
        overrides = [f"train_config_path='{run_folder}/config/config.yaml'", f"checkpoint_path='{checkpoint}'"]
        where = [f"output_dir='{report.parent}'", f"report_filename={report.name}"]
        run("evaluating", *python("ocl.cli.eval"), "+evaluation=msf/slate_clevrtex", *overrides, *where)
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

    scenes = ["--count", str(options.scenes), "--workers", workers]
    run("making scenes", *python("ocl_msf.data.scenes"), str(folder / "raw"), *scenes)
    splits = ["--splits", "val=0:200", "train=200:", "--workers", workers]
    shards = [str(folder / "raw" / "clevrtex_full"), str(folder / "shards")]
    run("converting them", *python("ocl_msf.data.convert"), "clevrtex", *shards, *splits)

    train("vqvae_clevrtex", folder / "outputs")
    slate = train("slate_clevrtex", folder / "outputs")
    untrained = find_untrained(folder / "outputs" / "msf" / "slate_clevrtex")
    before = evaluate(slate.folder, untrained, folder / "untrained" / "metrics.json")
    after = evaluate(slate.folder, slate.checkpoint, slate.folder / "metrics.json")
    shutil.copyfile(slate.folder / "scenes.png", folder / "scenes.png")
    print_table(before, after)
    print(f"\nScenes, true masks, predicted masks, reconstructions: {folder / 'scenes.png'}")
    print(f"Curves and pictures over time: .venv/bin/tensorboard --logdir {folder / 'outputs'}\n\n{REAL_CLEVRTEX}")


def find_untrained(folder: Path) -> Path:
    """Find the model as it was before the first step, in whichever run that was."""
    return max(folder.glob("*/lightning_logs/version_*/untrained.ckpt"), key=lambda path: path.stat().st_mtime)


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        main()
    except KeyboardInterrupt:
        print("\nInterrupted. Run the same command again to go on from here.")
        sys.exit(130)
