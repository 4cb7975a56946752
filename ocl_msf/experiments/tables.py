"""Make one of the paper's tables: plan its runs, run what is missing, print it with the paper's numbers beside.

    python -m ocl_msf.experiments.tables table4 --dataset clevrtex --seeds 0 1 --preset cpu --dry-run

Stage 1, stage 2 and evaluation of a row and a seed go to OUT/<dataset>/<variant>/seed<n>. A finished run of the same
command is reused, an unfinished one continued from its last checkpoint, so the same command again goes on.

--gpus 4 runs four commands at a time, one on each GPU. --slurm hands every command to SLURM, as a job with one GPU; it
needs hydra-submitit-launcher, and takes settings of that: --slurm hydra.launcher.partition=NAME. Training stays on one
GPU, because the paper's batches are those of one.
"""

import argparse
import functools
import json
import sys
from pathlib import Path
from typing import Dict, List, NamedTuple, Optional, Sequence, Set, Tuple

import hydra
import yaml
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig

from ocl_msf._host import require_host
from ocl_msf.experiments.paper import TABLES, Part, Row, mean_and_spread, value_of
from ocl_msf.experiments.runs import STEP, Run, find_runs
from ocl_msf.experiments.tasks import Task, command_line, gpu_workers, pasteable, run_all

with require_host():
    import ocl.cli.train  # noqa: F401  registers the configs that experiments are composed of

SLURM = ["hydra/launcher=submitit_slurm"]  # and what a job needs: one GPU, its workers, two days
SLURM += [f"hydra.launcher.{x}" for x in ("gres=gpu:1", "tasks_per_node=1", "cpus_per_task=8", "timeout_min=2880")]
PROGRAMS = {"ocl.cli.train": "ocl_train", "ocl.cli.eval": "ocl_eval"}


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
        wanted = _what(self.arguments)
        runs = [run for run in find_runs(self.root / "msf" / self.experiment) if _what(_overrides(run)) == wanted]
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


def _overrides(run: Run) -> List[str]:
    path = run.folder / "config" / "overrides.yaml"
    return (yaml.safe_load(path.read_text(encoding="utf-8")) if path.is_file() else None) or []


def _what(overrides: Sequence[str]) -> Set[Tuple[str, str]]:
    """The overrides that say what is trained, without those that say where it is and where it went on from.

    They are compared as Hydra reads them, because it does not always record them as they were written: 1e-3 or 0.001.
    """
    parsed = OverridesParser.create().parse_overrides(list(overrides))
    pairs = {(override.key_or_group, override.get_value_element_as_str()) for override in parsed}
    return {(key, value) for key, value in pairs if key not in ("load_checkpoint", "experiment.root_output_folder")}


def configs() -> Path:
    """The folder of this package's configs, in a checkout or installed."""
    installed = Path(__file__).parent / "configs"
    return installed if installed.is_dir() else Path(__file__).parent.parent / "configs"


def plan(
    part: Part, dataset: str, seeds: Sequence[int], out: Path, preset: str = "", settings: Sequence[str] = ()
) -> List[Cell]:
    """List the runs of a part of a table.

    Args:
        part: of `ocl_msf.experiments.paper.TABLES`.
        dataset: whose rows.
        seeds: one run of each row for each.
        out: where the runs are, or go.
        preset: name of an `msf/preset`, or "".
        settings: overrides for the runs of both stages.

    Returns:
        One cell for each seed of each row whose experiments there are; see `missing`.
    """
    rows = [row for row in part.rows if row.dataset == dataset and not missing(part, row)]
    return [_cell(row, seed, part, out, preset, settings) for row in rows for seed in seeds]


def missing(part: Part, row: Row) -> List[str]:
    """The experiments, and evaluations of stage 2, that a row needs and this package does not have."""
    names = part.experiments(row)
    wanted = [f"experiment/msf/{name}" for name in names]
    wanted += [f"evaluation/msf/{name}" for name in names if not name.startswith("vqvae")]
    return [name for name in wanted if not (configs() / f"{name}.yaml").is_file()]


def _cell(row: Row, seed: int, part: Part, out: Path, preset: str, settings: Sequence[str]) -> Cell:
    place = f"{row.dataset}-{preset}" if preset else row.dataset
    root = out.resolve() / place / (row.variant or row.model) / f"seed{seed}"
    common = [f"msf/variant={row.variant}"] if row.variant not in ("msf", None) else []
    common += ([f"+msf/preset={preset}"] if preset else []) + [f"seed={seed}", *settings]
    names = part.experiments(row)
    own = [override for override in row.overrides if _matters(override, names[-1], tuple(common))]
    jobs = [Job(name, root, (*common, *(own if name == names[-1] else ()))) for name in names]
    if names[-1].startswith("vqvae"):
        return Cell(row, seed, jobs, Scoring(jobs[-1], "separability", "separability.json"))
    return Cell(row, seed, jobs, Scoring(jobs[-1], names[-1], "metrics.json"))


def _matters(override: str, experiment: str, others: Tuple[str, ...]) -> bool:
    """Whether it changes anything; if not, rows that differ in it alone share a run, as under a preset that sets it."""
    chosen = (f"+experiment=msf/{experiment}", *others)
    return _compose(chosen) != _compose((*chosen, override))


def steps_of(job: Job) -> int:
    """How many steps a job trains, from its composed configuration."""
    return int(_compose(tuple(word for word in job.arguments if "root_output_folder=" not in word)).trainer.max_steps)


@functools.lru_cache(maxsize=None)
def _compose(arguments: Tuple[str, ...]) -> DictConfig:
    with hydra.initialize_config_module("configs", version_base="1.3"):
        return hydra.compose("training_config", overrides=list(arguments))


def seconds_per_step(run: Run) -> float:
    """How fast a run was, its start and its validations included."""
    begin = (run.folder / "config" / "overrides.yaml").stat().st_mtime
    sources = [STEP.search(o.rstrip("'")) for o in _overrides(run) if o.startswith("load_checkpoint=")]
    steps = run.step - max((int(source.group(1)) for source in sources if source), default=0)
    return max(run.checkpoint.stat().st_mtime - begin, 0.0) / max(steps, 1)


def estimate(jobs: Sequence[Job], workers: int = 1) -> str:
    """Say what is left to train, and how long it takes where a finished run of the experiment tells its speed."""
    speeds = {job.experiment: seconds_per_step(job.run) for job in jobs if job.run and job.run.finished}
    left = {job: steps_of(job) - (job.run.step if job.run else 0) for job in jobs}
    left = {job: steps for job, steps in left.items() if steps > 0}
    known = sum(steps * speeds[job.experiment] for job, steps in left.items() if job.experiment in speeds)
    unknown = sum(steps for job, steps in left.items() if job.experiment not in speeds)
    words = f"{len(left)} of {len(jobs)} runs to train, {sum(left.values()):,} steps"
    if known:
        words += f"; {known / 3600:.1f} h at the speed of the finished ones"
        words += f", on {workers} at a time {known / 3600 / workers:.1f} h or more" if workers > 1 else ""
    return words + (f"; {unknown:,} steps at a speed that no finished run tells yet" if unknown else "")


def tasks_of(cells: Sequence[Cell], launcher: Sequence[str] = ()) -> List[Task]:
    """Order what cells need, each job once; `launcher` is put behind every command.

    Jobs of one experiment with the same root never run side by side: the names of their folders are times.
    """
    jobs: Dict[Job, Task] = {}
    scorings: Dict[Scoring, Task] = {}
    answer: List[Task] = []
    for cell in cells:
        earlier: List[Task] = []
        for job in cell.jobs:
            if job not in jobs:
                twins = [task for j, task in jobs.items() if (j.root, j.experiment) == (job.root, job.experiment)]
                jobs[job] = _training(job, cell, launcher, [*earlier, *twins])
                answer.append(jobs[job])
            earlier = [jobs[job]]
        if cell.scoring not in scorings:
            scorings[cell.scoring] = _scoring(cell, launcher, earlier)
            answer.append(scorings[cell.scoring])
    return answer


def _training(job: Job, cell: Cell, launcher: Sequence[str], needs: List[Task]) -> Task:
    def done() -> bool:
        return bool(job.run and job.run.finished)

    title = f"{cell.row.label}, seed {cell.seed}: training {job.experiment}"
    return Task(title, lambda: [*job.command, *launcher], job.root / f"{job.experiment}.log", done, needs)


def _scoring(cell: Cell, launcher: Sequence[str], needs: List[Task]) -> Task:
    scoring = cell.scoring
    title = f"{cell.row.label}, seed {cell.seed}: scoring {scoring.job.experiment}"
    log = scoring.job.root / f"{scoring.job.experiment}.scoring.log"
    return Task(title, lambda: [*scoring.command, *launcher], log, lambda: scoring.scores is not None, needs)


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
    parser = _parser()
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
    for part in parts.values():
        for row in (row for row in part.rows if row.dataset == options.dataset and missing(part, row)):
            print(f"{row.label} is left out: there is no {', no '.join(missing(part, row))} yet.")
    try:
        _work([cell for planned in cells.values() for cell in planned], options)
    except ValueError as error:
        parser.error(str(error))
    for name, part in parts.items():
        print("\n" + markdown(part, options.dataset, cells[name]))


def _parser() -> argparse.ArgumentParser:
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(
        prog="python -m ocl_msf.experiments.tables", description=__doc__, formatter_class=raw
    )
    parser.add_argument("table", choices=sorted(TABLES))
    parser.add_argument("--part", help="of the table, such as upper-left of table 5 (default: all)")
    parser.add_argument("--dataset", default="clevrtex")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--preset", default="", help="an msf/preset, such as cpu")
    settings = "overrides for the runs of both stages; take another --out for other ones"
    parser.add_argument("--set", nargs="+", default=[], metavar="KEY=VALUE", help=settings)
    parser.add_argument("--out", type=Path, default=Path("outputs/tables"), help="where runs go (default: %(default)s)")
    where = parser.add_mutually_exclusive_group()
    where.add_argument("--gpus", default="", metavar="N", help="N at a time, one on each GPU; or their numbers, 0,3")
    where.add_argument("--slurm", nargs="*", metavar="KEY=VALUE", help="through SLURM, with these overrides")
    parser.add_argument("--dry-run", action="store_true", help="print the commands and what there is")
    return parser


def _work(cells: List[Cell], options: argparse.Namespace) -> None:
    """Print what it will cost; the commands or, unless it is dry, run them.

    Raises:
        ValueError: --gpus is not understood.
    """
    launcher = [] if options.slurm is None else [*SLURM, *options.slurm, "--multirun"]  # Hydra wants flags at the end
    tasks = tasks_of(cells, launcher)
    workers = gpu_workers(options.gpus) if options.slurm is None else [[]] * max(len(tasks), 2)
    jobs = list(dict.fromkeys(job for cell in cells for job in cell.jobs))
    print(estimate(jobs, len(workers) if options.gpus else 1), flush=True)
    if not options.dry_run:
        run_all(tasks, workers)
        return
    for task in tasks:
        _, _, module, *words = task.command()
        print(("finished: " if task.done() else "") + pasteable([PROGRAMS[module], *words]))


if __name__ == "__main__":
    with command_line():
        main()
