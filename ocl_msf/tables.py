"""Make one of the paper's tables: plan its runs, run what is missing, print it with the paper's numbers beside.

    python -m ocl_msf.tables table4 --dataset clevrtex --seeds 0 1 --preset cpu --dry-run

Stage 1, stage 2 and evaluation of a row and a seed go to OUT/<dataset>/<variant>/seed<n>. A finished run of the same
command is reused, an unfinished one continued from its last checkpoint, so the same command again goes on.
"""

import argparse
import json
import shlex
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Dict, List, NamedTuple, Optional, Sequence, Tuple

import hydra
import yaml

from ocl_msf._host import require_host
from ocl_msf.checkpoints import Run, find_runs
from ocl_msf.paper import TABLES, Part, Row

with require_host():
    import ocl.cli.train  # noqa: F401  registers the configs that experiments are composed of


class Job(NamedTuple):
    """One training run.

    Attributes:
        experiment: name below `+experiment=msf/`.
        root: where its outputs go, shared by the stages of one row and seed.
        overrides: the rest of its command.
    """

    experiment: str
    root: Path
    overrides: Tuple[str, ...]

    @property
    def arguments(self) -> List[str]:
        """What follows `ocl_train`."""
        chosen = [f"+experiment=msf/{self.experiment}", *self.overrides]
        return [*chosen, f"+experiment.root_output_folder='{self.root}'"]

    @property
    def run(self) -> Optional[Run]:
        """The furthest run of this very command, or None."""
        runs = [run for run in find_runs(self.root / "msf" / self.experiment) if _command(run) == set(self.arguments)]
        return max((run for run in runs if run.checkpoint), key=lambda run: run.step, default=None)

    @property
    def command(self) -> List[str]:
        """What is to be run: training from the start, or on from the last checkpoint."""
        resume = [f"load_checkpoint='{self.run.checkpoint}'"] if self.run else []
        return [sys.executable, "-m", "ocl.cli.train", *self.arguments, *resume]


class Scoring(NamedTuple):
    """The evaluation of a job: its config, and the report that it writes into the run's folder."""

    job: Job
    evaluation: str
    report: str

    @property
    def scores(self) -> Optional[Dict[str, float]]:
        """Scores of the job's last checkpoint on the validation set, or None if they are not there."""
        run = self.job.run
        if run is None or not run.finished or not (run.folder / self.report).is_file():
            return None
        report = json.loads((run.folder / self.report).read_text(encoding="utf-8"))
        if Path(report["checkpoint_path"]).name != run.checkpoint.name:
            return None
        return report["metrics"]["val"]

    @property
    def command(self) -> List[str]:
        """What is to be run; RUN stands for a folder that training is yet to make."""
        run = self.job.run
        folder = run.folder if run else self.job.root / "msf" / self.job.experiment / "RUN"
        chosen = [f"+evaluation=msf/{self.evaluation}", f"train_config_path='{folder}/config/config.yaml'"]
        chosen += [f"checkpoint_path='{run.checkpoint}'"] if run else []
        return [sys.executable, "-m", "ocl.cli.eval", *chosen]


class Cell(NamedTuple):
    """One row of a table for one seed: what to train, in this order, and how to score it."""

    row: Row
    seed: int
    jobs: List[Job]
    scoring: Scoring


def _command(run: Run) -> set:
    """The overrides that a run was started with, but for where it went on from."""
    path = run.folder / "config" / "overrides.yaml"
    overrides = yaml.safe_load(path.read_text(encoding="utf-8")) if path.is_file() else []
    return {override for override in overrides or [] if not override.startswith("load_checkpoint=")}


def configs() -> Path:
    """The folder of this package's configs, in a checkout or installed."""
    installed = Path(__file__).parent / "configs"
    return installed if installed.is_dir() else Path(__file__).parent.parent / "configs"


def plan(
    part: Part, dataset: str, seeds: Sequence[int], out: Path, preset: str = "", settings: Sequence[str] = ()
) -> List[Cell]:
    """List the runs of a part of a table.

    Args:
        part: of `ocl_msf.paper.TABLES`.
        dataset: whose rows.
        seeds: one run of each row for each.
        out: where the runs are, or go.
        preset: name of an `msf/preset`, or "".
        settings: overrides for the runs of both stages.

    Returns:
        One cell for each seed of each row that this package can run; none if it lacks the experiments.
    """
    pretraining = part.pretraining.format(dataset)
    experiment = f"{part.model}_{dataset}" if part.model else pretraining
    folder = configs() / "experiment" / "msf"
    if not all((folder / f"{name}.yaml").is_file() for name in (pretraining, experiment)):
        return []
    rows = [row for row in part.rows if row.dataset == dataset and row.variant]
    return [_cell(row, seed, part, out, preset, settings) for row in rows for seed in seeds]


def _cell(row: Row, seed: int, part: Part, out: Path, preset: str, settings: Sequence[str]) -> Cell:
    root = out.resolve() / (f"{row.dataset}-{preset}" if preset else row.dataset) / row.variant / f"seed{seed}"
    common = [f"msf/variant={row.variant}"] if row.variant != "msf" else []
    common += ([f"+msf/preset={preset}"] if preset else []) + [f"seed={seed}", *settings]
    jobs = [Job(part.pretraining.format(row.dataset), root, tuple(common))]
    if part.model is None:
        return Cell(row, seed, jobs, Scoring(jobs[0], "separability", "separability.json"))
    jobs.append(Job(f"{part.model}_{row.dataset}", root, (*row.overrides, *common)))
    return Cell(row, seed, jobs, Scoring(jobs[1], jobs[1].experiment, "metrics.json"))


def steps_of(job: Job) -> int:
    """How many steps a job trains, from its composed configuration."""
    with hydra.initialize_config_module("configs", version_base="1.3"):
        return int(hydra.compose("training_config", overrides=job.arguments).trainer.max_steps)


def seconds_per_step(run: Run) -> float:
    """How fast a run was, its start and its validations included."""
    start = (run.folder / "config" / "overrides.yaml").stat().st_mtime
    return max(run.checkpoint.stat().st_mtime - start, 0.0) / max(run.step, 1)


def estimate(jobs: Sequence[Job]) -> str:
    """Say what is left to train, and how long it takes where a finished run of the experiment tells its speed."""
    speeds = {job.experiment: seconds_per_step(job.run) for job in jobs if job.run and job.run.finished}
    left = {job: steps_of(job) - (job.run.step if job.run else 0) for job in jobs}
    left = {job: steps for job, steps in left.items() if steps > 0}
    known = sum(steps * speeds[job.experiment] for job, steps in left.items() if job.experiment in speeds)
    unknown = sum(steps for job, steps in left.items() if job.experiment not in speeds)
    words = f"{len(left)} of {len(jobs)} runs to train, {sum(left.values()):,} steps"
    if known:
        words += f"; {known / 3600:.1f} h at the speed of the finished ones"
    return words + (f"; {unknown:,} steps at a speed that no finished run tells yet" if unknown else "")


def work(cells: Sequence[Cell]) -> None:
    """Run what is missing, one after the other.

    Raises:
        SystemExit: a run failed, or left no checkpoint of its last step.
    """
    for number, cell in enumerate(cells, 1):
        title = f"[{number}/{len(cells)}] {cell.row.label}, seed {cell.seed}"
        for job in cell.jobs:
            if not (job.run and job.run.finished):
                _call(f"{title}: training {job.experiment}", job.command)
                if not (job.run and job.run.finished):
                    sys.exit(f"{job.experiment} has made no checkpoint of its last step below {job.root}.")
        if cell.scoring.scores is None:
            _call(f"{title}: scoring", cell.scoring.command)


def _call(title: str, command: List[str]) -> None:
    print(f"{title}\n  {shlex.join(command)}", flush=True)
    try:
        status = subprocess.call(command)
    except KeyboardInterrupt:
        sys.exit("interrupted: run the same command again to go on")
    if status:
        sys.exit(f"{title} ended with status {status}. Run the same command again to go on from here.")


def mean_and_spread(values: Sequence[float]) -> str:
    """Mean ± sample standard deviation; a dash without values, no deviation of one."""
    if not values:
        return "-"
    digits = 3 if max(map(abs, values)) < 3 else 2
    mean = f"{statistics.mean(values):.{digits}f}"
    return mean if len(values) == 1 else f"{mean} ± {statistics.stdev(values):.{digits}f}"


def value_of(metric: str, scores: Dict[str, float]) -> float:
    """A score as tables have it: in percent, but for distances; "a+b" is a sum."""
    percent = 1 if metric in ("inter", "intra") else 100
    return percent * sum(scores[name] for name in metric.split("+"))


def markdown(part: Part, dataset: str, cells: Sequence[Cell]) -> str:
    """Write a part of a table: every row of the paper, what we have beside it, and over how many seeds."""
    lines = [f"{part.title}, {dataset}", ""]
    lines.append("| | " + " | ".join(f"{m} | paper" for m in part.metrics) + " | seeds |")
    lines.append("|---" * (2 * len(part.metrics) + 2) + "|")
    for row in (row for row in part.rows if row.dataset == dataset):
        found = [cell.scoring.scores for cell in cells if cell.row == row]
        found = [scores for scores in found if scores is not None]
        entries = [row.label]
        for metric, value in zip(part.metrics, row.values):
            entries += [mean_and_spread([value_of(metric, scores) for scores in found]), str(value)]
        lines.append("| " + " | ".join([*entries, str(len(found))]) + " |")
    return "\n".join(lines)


def main(arguments: Optional[Sequence[str]] = None) -> None:
    """Plan, run and print."""
    parser = argparse.ArgumentParser(prog="python -m ocl_msf.tables", description=__doc__.split("\n")[0])
    parser.add_argument("table", choices=sorted(TABLES))
    parser.add_argument("--part", help="of the table, such as upper-left of table 5 (default: all)")
    parser.add_argument("--dataset", default="clevrtex")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--preset", default="", help="an msf/preset, such as cpu")
    settings = "overrides for the runs of both stages; take another --out for other ones"
    parser.add_argument("--set", nargs="+", default=[], metavar="KEY=VALUE", help=settings)
    parser.add_argument("--out", type=Path, default=Path("outputs/tables"), help="where runs go (default: %(default)s)")
    parser.add_argument("--dry-run", action="store_true", help="print the commands and what there is")
    options = parser.parse_args(arguments)
    parts = TABLES[options.table]
    if options.part is not None and options.part not in parts:
        parser.error(f"{options.table} has the parts {', '.join(parts)}, not {options.part}")
    parts = {name: part for name, part in parts.items() if options.part in (None, name)}
    parts = {name: part for name, part in parts.items() if any(r.dataset == options.dataset for r in part.rows)}
    if not parts:
        parser.error(f"{options.table} has no rows of {options.dataset}")
    choices = options.dataset, options.seeds, options.out, options.preset, options.set
    cells = {name: plan(part, *choices) for name, part in parts.items()}
    for name in (name for name, planned in cells.items() if not planned):
        print(f"There are no experiments yet for {options.table} {name} on {options.dataset}.")
    _report_plan([cell for planned in cells.values() for cell in planned], options.dry_run)
    for name, part in parts.items():
        print("\n" + markdown(part, options.dataset, cells[name]))


def _report_plan(cells: List[Cell], dry_run: bool) -> None:
    """Print what it will cost; the commands or, unless it is dry, run them."""
    jobs = list(dict.fromkeys(job for cell in cells for job in cell.jobs))
    print(estimate(jobs))
    if not dry_run:
        work(cells)
        return
    for job in jobs:
        state = "finished: " if job.run and job.run.finished else ""
        print(f"{state}{shlex.join(job.command)}")
    for scoring in dict.fromkeys(cell.scoring for cell in cells):
        print(f"{'finished: ' if scoring.scores else ''}{shlex.join(scoring.command)}")


if __name__ == "__main__":
    main()
