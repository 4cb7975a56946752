"""The evaluations of a run: which are missing, and the commands that make them."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Dict, List, Sequence

from ocl_msf.experiments.runs import Run, config_path
from ocl_msf.experiments.tasks import assign
from ocl_msf.files import DataError
from ocl_msf.results.figures.confidence import FILE as CONFIDENCE
from ocl_msf.results.figures.guidance_maps import FILE as GUIDANCE
from ocl_msf.results.figures.segmentations import FILE as SCENES
from ocl_msf.results.report.comparison import run_name


def evaluations_of(run: Run) -> Dict[str, str]:
    """The files that evaluations write into a run's folder, and the evaluation of each."""
    if run.stage == 1:
        return {run.report: run.evaluation, CONFIDENCE: run.evaluation, GUIDANCE: "msf/guidance_maps"}
    return {run.report: run.evaluation, SCENES: "msf/scenes"}


def missing_of(run: Run) -> Dict[str, str]:
    """Those of `evaluations_of` a run whose file does not exist."""
    return {file: name for file, name in evaluations_of(run).items() if not (run.folder / file).is_file()}


def evaluate(runs: Sequence[Run]) -> int:
    """Make what is missing of finished runs, one after the other; returns how many files that was.

    Raises:
        DataError: an evaluation failed; those before it are kept.
    """
    missing = [(run, file, name) for run in runs if run.finished for file, name in missing_of(run).items()]
    for number, (run, file, name) in enumerate(missing, 1):
        if not (run.folder / file).is_file():  # an evaluation before may have written it as well
            print(f"[{number}/{len(missing)}] {run_name(run)}: {name}", flush=True)
            chosen = [f"+evaluation={name}", assign("train_config_path", config_path(run.folder))]
            chosen.append(assign("checkpoint_path", run.checkpoint))
            status = subprocess.call([sys.executable, "-m", "ocl.cli.eval", *chosen])
            if status:
                raise DataError(f"Evaluation {name} of {run.folder} ended with status {status}.")
    return len(missing)


def commands(run: Run) -> List[str]:
    """The command lines that repeat a run and its evaluations, as from the current folder."""
    overrides = [relative(o) for o in run.overrides if not o.lstrip("+").startswith("load_checkpoint=")]
    config = relative(f"{run.folder}/config/config.yaml")
    evaluations = dict.fromkeys(evaluations_of(run).values())
    lines = [["ocl_eval", f"+evaluation={name}", f"train_config_path={config}"] for name in evaluations]
    return [shlex.join(words) for words in [["ocl_train", *overrides], *lines]]


def relative(text: str) -> str:
    """Write paths below the current folder as seen from there, and drop Hydra's quotes around plain ones."""
    return re.sub(r"='([\w./-]+)'$", r"=\1", text.replace(f"{Path.cwd()}{os.sep}", ""))
