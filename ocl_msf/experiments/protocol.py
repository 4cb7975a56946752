"""The paper's protocol (section A.5): score the last 25 checkpoints of a run, report their mean and the best of them.

    python -m ocl_msf.experiments.protocol outputs/msf/slate_clevrtex/TIME

Every checkpoint has a report of its own in RUN/protocol/<split>, so the same command again does what is missing; the
result is also in RUN/protocol/<split>.json. The paper does not say by what a checkpoint is the best: here by
ARI + ARI_fg, its measure in ablations (stage 1: by the distance between clusters). Where the test set is scored, the
best is the one on the validation set, provided that this has been scored before.
"""

import argparse
import json
import statistics
import sys
from pathlib import Path
from typing import Any, Dict, List, Optional, Sequence

import hydra
import yaml
from omegaconf import OmegaConf

from ocl_msf._host import require_host
from ocl_msf.experiments.paper import value_of
from ocl_msf.experiments.runs import STEP
from ocl_msf.experiments.tables import configs
from ocl_msf.experiments.tasks import Task, command_line, gpu_workers, pasteable, run_all
from ocl_msf.files import positive, replacing

with require_host():
    import ocl.cli.eval  # noqa: F401  registers the configs that evaluations are composed of

Scores = Dict[str, float]
MEASURES = ("ari", "ari_fg", "mbo", "inter", "intra")  # and all kinds of mIoU; losses are in the files alone


def last_checkpoints(folder: Path, count: int = 25) -> Dict[int, Path]:
    """List the last checkpoints of a run by step, also those of the runs that it went on from.

    Args:
        folder: of the run.
        count: how many.

    Raises:
        FileNotFoundError: this is no run, or it has none.
    """
    if not (folder / "config" / "config.yaml").is_file():
        raise FileNotFoundError(f"{folder} is no run: it has no config/config.yaml.")
    found: Dict[int, Path] = {}
    earlier: Optional[Path] = folder
    limit = float("inf")
    while earlier is not None:
        for path in earlier.glob("lightning_logs/version_*/checkpoints/*.ckpt"):
            step = STEP.search(path.name)
            if step and int(step.group(1)) <= limit:
                found.setdefault(int(step.group(1)), path)
        source = _resumed(earlier)
        earlier = source.parents[3] if source else None
        limit = int(STEP.search(source.name).group(1)) if source else 0
    if not found:
        raise FileNotFoundError(f"{folder} has no checkpoints.")
    return {step: found[step] for step in sorted(found)[-count:]}


def _resumed(folder: Path) -> Optional[Path]:
    """The checkpoint of another run that a run went on from; None if there is none any more."""
    config = folder / "config" / "config.yaml"
    loaded = OmegaConf.load(config).get("load_checkpoint") if config.is_file() else None
    if not loaded or not STEP.search(loaded):
        return None
    launch = OmegaConf.load(folder / "config" / "hydra.yaml").hydra.runtime.cwd
    path = Path(launch, loaded)
    return path if path.is_file() and len(path.parents) > 3 and folder not in path.parents else None


def evaluation_of(folder: Path) -> str:
    """Name the evaluation of a run's experiment: its own, `msf/separability` in stage 1, otherwise `eval`."""
    overrides = yaml.safe_load((folder / "config" / "overrides.yaml").read_text(encoding="utf-8")) or []
    chosen = [o.split("=", 1)[1] for o in overrides if o.lstrip("+").startswith("experiment=")]
    name = chosen[-1] if chosen else "eval"
    if name.startswith("msf/vqvae_"):
        return "msf/separability"
    return name if (configs() / "evaluation" / f"{name}.yaml").is_file() else "eval"


def scorings(folder: Path, split: str, count: int = 25, settings: Sequence[str] = ()) -> Dict[int, Task]:
    """Plan the evaluations of a run's last checkpoints by step; pictures are not drawn.

    Args:
        folder: of the run.
        split: train, val or test.
        count: how many checkpoints.
        settings: overrides for every evaluation.

    Raises:
        FileNotFoundError: this is no run, or it has no checkpoints.
    """
    checkpoints = last_checkpoints(folder, count)
    evaluation = evaluation_of(folder)
    with hydra.initialize_config_module("configs", version_base="1.3"):
        modules = hydra.compose("evaluation_config", overrides=[f"+evaluation={evaluation}"]).modules or {}
    chosen = [f"+evaluation={evaluation}", *(f"~modules.{name}" for name in modules if "folder" in modules[name])]
    chosen += ["eval_val=false", f"eval_{split}=true"] if split != "val" else []
    chosen += [f"train_config_path='{folder}/config/config.yaml'", f"output_dir='{_reports(folder, split)}'", *settings]
    chosen += [f"hydra.run.dir='{_reports(folder, split)}'", "hydra.output_subdir=null"]

    def task(step: int, path: Path) -> Task:
        command = [*chosen, f"checkpoint_path='{path}'", f"report_filename={_report(step)}"]
        return Task(
            f"{folder.parent.name}, {split}, step {step}",
            lambda: _evaluate(_reports(folder, split), command),
            _reports(folder, split) / f"step-{step}.log",
            lambda: read_report(folder, split, step) is not None,
        )

    return {step: task(step, path) for step, path in checkpoints.items()}


def _evaluate(reports: Path, command: List[str]) -> List[str]:
    reports.mkdir(parents=True, exist_ok=True)
    return [sys.executable, "-m", "ocl.cli.eval", *command]


def _reports(folder: Path, split: str) -> Path:
    return folder / "protocol" / split


def _report(step: int) -> str:
    return f"step-{step}.json"


def read_report(folder: Path, split: str, step: int) -> Optional[Scores]:
    """The scores of a run's checkpoint, or None if it has not been scored."""
    path = _reports(folder, split) / _report(step)
    return json.loads(path.read_text(encoding="utf-8"))["metrics"].get(split) if path.is_file() else None


def summarize(scores: Dict[int, Scores], by: str, best: Optional[int] = None) -> Dict[str, Any]:
    """Sum the scores of checkpoints up.

    Args:
        scores: by step.
        by: what the best has most of: a score, or "a+b" for the sum of two.
        best: the step that is the best by other scores than these.

    Returns:
        `last`, `mean`, `deviation` (sample standard; 0 of one) and `best`: scores by name; `best_step`; `checkpoints`,
        all of them by step.

    Raises:
        KeyError: a checkpoint lacks a score.
    """
    if best not in scores:
        best = max(scores, key=lambda step: value_of(by, scores[step]))
    names = list(scores[best])
    columns = {name: [found[name] for found in scores.values()] for name in names}
    spread = {name: statistics.stdev(x) if len(x) > 1 else 0.0 for name, x in columns.items()}
    mean = {name: statistics.mean(x) for name, x in columns.items()}
    answer = {"last": scores[max(scores)], "mean": mean, "deviation": spread}
    return {**answer, "best": scores[best], "best_step": best, "checkpoints": scores}


def table(summary: Dict[str, Any], where: str) -> str:
    """Word a summary as Markdown, in percent but for distances; `where` says by what the best was chosen."""
    names = [name for name in summary["best"] if name in MEASURES or name.startswith("miou")]
    rows = {"last": summary["last"], f"best {where}, step {summary['best_step']}": summary["best"]}
    lines = ["| | " + " | ".join(names) + " |", "|---" * (len(names) + 1) + "|"]
    for label, scores in rows.items():
        lines.append(f"| {label} | " + " | ".join(f"{value_of(name, scores):.4g}" for name in names) + " |")
    pairs = [(value_of(n, summary["mean"]), value_of(n, summary["deviation"])) for n in names]
    title = f"mean of {len(summary['checkpoints'])}"
    lines.insert(3, f"| {title} | " + " | ".join(f"{mean:.4g} ± {spread:.2g}" for mean, spread in pairs) + " |")
    return "\n".join(lines)


def report(folder: Path, split: str, steps: Sequence[int], by: Optional[str]) -> str:
    """Write RUN/protocol/<split>.json, and word it.

    Raises:
        ValueError: the checkpoints have no such score.
    """
    scores = {step: read_report(folder, split, step) for step in steps}
    known = scores[max(scores)]
    by = by or ("ari+ari_fg" if "ari" in known else "inter")
    if not set(by.split("+")) <= set(known):
        raise ValueError(f"The reports have no {by}; choose one of {', '.join(known)} with --by.")
    chosen = {step: read_report(folder, "val", step) for step in steps}
    on = "val" if all(chosen.values()) else split
    best = summarize(chosen, by)["best_step"] if on == "val" else None
    summary = {"split": split, "by": by, "best_on": on, **summarize(scores, by, best)}
    with replacing(folder / "protocol" / f"{split}.json") as file:
        file.write(json.dumps(summary, indent=2).encode("utf-8"))
    return table(summary, f"by {by} on {on}")


def main(arguments: Optional[Sequence[str]] = None) -> None:
    """Score what is missing, and print."""
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(
        prog="python -m ocl_msf.experiments.protocol", description=__doc__, formatter_class=raw
    )
    parser.add_argument("runs", type=Path, nargs="+", metavar="RUN", help="folder of a run")
    parser.add_argument("--split", choices=("train", "val", "test"), default="val")
    parser.add_argument("--last", type=positive, default=25, help="how many checkpoints (default: %(default)s)")
    parser.add_argument("--by", help='what the best has most of (default: "ari+ari_fg"; stage 1: "inter")')
    parser.add_argument("--gpus", default="", metavar="N", help="N at a time, one on each GPU; or their numbers, 0,3")
    parser.add_argument("--set", nargs="+", default=[], metavar="KEY=VALUE", help="overrides for every evaluation")
    parser.add_argument("--dry-run", action="store_true", help="print the commands")
    options = parser.parse_args(arguments)
    try:
        workers = gpu_workers(options.gpus)
        folders = [folder.resolve() for folder in options.runs]
        plans = {folder: scorings(folder, options.split, options.last, options.set) for folder in folders}
        if options.dry_run:
            for task in (task for plan in plans.values() for task in plan.values()):
                print(("finished: " if task.done() else "") + pasteable(["ocl_eval", *task.command()[3:]]))
            return
        run_all([task for plan in plans.values() for task in plan.values()], workers)
        for folder, plan in plans.items():
            print(f"\n{folder}, {options.split}\n\n{report(folder, options.split, list(plan), options.by)}")
    except (FileNotFoundError, ValueError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    with command_line():
        main()
