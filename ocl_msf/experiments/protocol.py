"""The paper's protocol (section A.5): score the last 25 checkpoints of a run, report their mean and the best of them.

The command is `ocl-msf protocol`. Every checkpoint has its own report in RUN/protocol/<split>, so repeating the
command does only what is missing; the result is also in RUN/protocol/<split>.json. The paper does not say which
measure decides what the best checkpoint is: here ARI + ARI_fg, its measure in ablations (stage 1: the distance between
clusters). On the test set, the best checkpoint is the one that is best on the validation set, provided that this has
been scored before.
"""

import sys
from pathlib import Path
from typing import Any, Dict, List, Optional, Sequence

from ocl_msf.experiments.paper import format_scores, mean_and_deviation, value_of
from ocl_msf.experiments.runs import Run, Scores, config_path, defined
from ocl_msf.experiments.tasks import Task, assign, gpu_workers, pasteable, run_all
from ocl_msf.files import DataError, encode_json, replacing

MEASURES = ("ari", "ari_fg", "mbo", "inter", "intra")  # and all kinds of mIoU; losses are only in the files


def last_checkpoints(run: Run, count: int = 25) -> Dict[int, Path]:
    """List the last checkpoints of a run by step, those of the runs that it was resumed from included.

    Raises:
        DataError: it has none.
    """
    checkpoints = run.all_checkpoints
    if not checkpoints:
        raise DataError(f"{run.folder} has no checkpoints.")
    return {step: checkpoints[step] for step in sorted(checkpoints)[-count:]}


def scorings(run: Run, split: str, count: int = 25, settings: Sequence[str] = ()) -> Dict[int, Task]:
    """Plan the evaluations of a run's last checkpoints by step; pictures are not drawn.

    Args:
        run: whose checkpoints.
        split: train, val or test.
        count: how many checkpoints.
        settings: overrides for every evaluation.

    Raises:
        DataError: the run has no checkpoints, or is outdated.
    """
    checkpoints, reports = last_checkpoints(run, count), run.folder / "protocol" / split
    config = assign("train_config_path", config_path(run.folder))
    chosen = [f"+evaluation={run.evaluation}", config, "modules=null"]
    chosen += ["eval_val=false", f"eval_{split}=true"] if split != "val" else []
    chosen += [assign("output_dir", reports), *settings]
    chosen += [assign("hydra.run.dir", reports), "hydra.output_subdir=null"]

    def task(step: int, path: Path) -> Task:
        command = [*chosen, assign("checkpoint_path", path), f"report_filename=step-{step}.json"]
        return Task(
            f"{run.folder.parent.name}, {split}, step {step}",
            lambda: _evaluate(reports, command),
            reports / f"step-{step}.log",
            lambda: bool(read_scores(run, split, step)),
        )

    return {step: task(step, path) for step, path in checkpoints.items()}


def _evaluate(reports: Path, command: List[str]) -> List[str]:
    reports.mkdir(parents=True, exist_ok=True)
    return [sys.executable, "-m", "ocl.cli.eval", *command]


def read_scores(run: Run, split: str, step: int) -> Scores:
    """The scores of a run's checkpoint, None for those that are not defined; empty if it has not been scored.

    Raises:
        DataError: the report is damaged.
    """
    return run.read_json(f"protocol/{split}/step-{step}.json").get("metrics", {}).get(split, {})


def summarize(scores: Dict[int, Scores], by: str, best: Optional[int] = None) -> Dict[str, Any]:
    """Summarize the scores of checkpoints. None is a score that is not defined; means are those of the others.

    Args:
        scores: by step.
        by: the score whose maximum is the best; "a+b" is the sum of two. Some checkpoint has it.
        best: the step that is the best by other scores than these.

    Returns:
        `last`, `mean`, `deviation` (sample standard; 0 of one) and `best`: scores by name; `best_step`; `checkpoints`,
        all of them by step.
    """
    known = {step: defined(one) for step, one in scores.items()}
    if best not in scores:
        best = max(_having(by, known), key=lambda step: value_of(by, known[step]))
    values = {name: [one[name] for one in known.values() if name in one] for one in scores.values() for name in one}
    statistics = {name: mean_and_deviation(its) if its else (None, None) for name, its in values.items()}
    return {
        "last": scores[max(scores)],
        "mean": {name: mean for name, (mean, _) in statistics.items()},
        "deviation": {name: deviation for name, (_, deviation) in statistics.items()},
        "best": scores[best],
        "best_step": best,
        "checkpoints": scores,
    }


def _having(measure: str, scores: Dict[int, Scores]) -> List[int]:
    """The steps whose scores have a measure, the parts of a sum."""
    return [step for step, one in scores.items() if set(measure.split("+")) <= set(defined(one))]


def markdown(summary: Dict[str, Any], measure: str) -> str:
    """Write a summary as a table, in percent except for distances; `measure` says how the best was chosen."""
    names = [name for name in summary["best"] if name in MEASURES or name.startswith("miou")]
    checkpoints = [defined(one) for one in summary["checkpoints"].values()]
    rows = {
        "last": [defined(summary["last"])],
        f"mean of {len(checkpoints)}": checkpoints,
        f"best by {measure}, step {summary['best_step']}": [defined(summary["best"])],
    }
    lines = [[label, *(format_scores(name, its) for name in names)] for label, its in rows.items()]
    table = [f"| {' | '.join(line)} |" for line in [["", *names], *lines]]
    return "\n".join([table[0], "|---" * (len(names) + 1) + "|", *table[1:]])


def report(run: Run, split: str, steps: Sequence[int], by: Optional[str]) -> str:
    """Write RUN/protocol/<split>.json, and return it as a table.

    Raises:
        DataError: the checkpoints have no such score.
    """
    scores = {step: read_scores(run, split, step) for step in steps}
    known = list(dict.fromkeys(name for one in scores.values() for name in defined(one)))
    by = by or ("ari+ari_fg" if "ari" in known else "inter")
    if not _having(by, scores):
        raise DataError(f"The reports have no {by}; choose one of {', '.join(known)} with --by.")
    validation = {step: read_scores(run, "val", step) for step in steps}
    on = "val" if all(validation.values()) and _having(by, validation) else split
    best = summarize(validation, by)["best_step"] if on == "val" else None
    summary = {"split": split, "by": by, "best_on": on, **summarize(scores, by, best)}
    with replacing(run.folder / "protocol" / f"{split}.json") as file:
        file.write(encode_json(summary, 2))
    return markdown(summary, f"{by} on {on}")


def score_checkpoints(
    folders: Sequence[Path],
    split: str = "val",
    last: int = 25,
    by: Optional[str] = None,
    gpus: str = "",
    settings: Sequence[str] = (),
    dry_run: bool = False,
) -> None:
    """Score the last checkpoints of runs where that is missing, and print their mean and the best.

    Args:
        folders: of runs.
        split: train, val or test.
        last: how many checkpoints.
        by: the score that decides which is the best; by default "ari+ari_fg", in stage 1 "inter".
        gpus: see `gpu_workers`.
        settings: overrides for every evaluation.
        dry_run: print the commands instead.

    Raises:
        DataError: a folder is no run, or has no checkpoints, or these have no such score.
        ValueError: `gpus` is not understood.
    """
    workers = gpu_workers(gpus)
    runs = [Run.open(folder.resolve()) for folder in folders]
    plans = {run: scorings(run, split, last, settings) for run in runs}
    tasks = [task for plan in plans.values() for task in plan.values()]
    if dry_run:
        for task in tasks:
            print(("finished: " if task.done and task.done() else "") + pasteable(["ocl_eval", *task.command()[3:]]))
        return
    run_all(tasks, workers)
    for run, plan in plans.items():
        print(f"\n{run.folder}, {split}\n\n{report(run, split, list(plan), by)}")
