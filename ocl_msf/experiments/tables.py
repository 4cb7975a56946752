"""Make one of the paper's tables: plan its runs, run what is missing, print it with the paper's numbers beside.

The command is `ocl-msf tables`. Stage 1, stage 2 and evaluation of a row and a seed go to
OUT/<dataset>/<variant>/seed<n>. Finished runs of the same command are reused, and unfinished ones continue from their
last checkpoint: repeat the command after an interruption.

Several GPUs run as many commands at a time, one on each. SLURM gets every command as a job with one GPU, which needs
hydra-submitit-launcher. Training stays on one GPU, because the paper's batches are those of one.
"""

import functools
from pathlib import Path
from typing import Dict, FrozenSet, List, NamedTuple, Optional, Sequence, Tuple

import hydra
from hydra.core.global_hydra import GlobalHydra
from hydra.core.object_type import ObjectType
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig, OmegaConf

from ocl_msf._host import require_host
from ocl_msf.experiments.honest_rows import ROWS, TRIVIAL, mean_scores, row_of
from ocl_msf.experiments.jobs import Find, Job, Scoring, run_of, searching_once
from ocl_msf.experiments.paper import TABLES, Row, TablePart, format_scores
from ocl_msf.experiments.runs import REPORTS, Run, Scores
from ocl_msf.experiments.tasks import Task, gpu_workers, pasteable, run_all

with require_host():
    import ocl.cli.train  # noqa: F401  registers the configs that experiments are composed of

SLURM = ["hydra/launcher=submitit_slurm"]  # a job has one GPU, eight cores for data loading, two days
SLURM += [f"hydra.launcher.{x}" for x in ("gres=gpu:1", "tasks_per_node=1", "cpus_per_task=8", "timeout_min=2880")]
PROGRAMS = {"ocl.cli.train": "ocl_train", "ocl.cli.eval": "ocl_eval"}


class PlannedRow(NamedTuple):
    """A row of a table for one seed: what to train, in this order, and how to score it."""

    row: Row
    seed: int
    jobs: List[Job]
    scoring: Scoring


@functools.lru_cache(maxsize=None)
def known_experiments() -> FrozenSet[str]:
    """The experiments that Hydra finds below `msf/`."""
    with hydra.initialize_config_module("configs", version_base="1.3"):
        loader = GlobalHydra.instance().config_loader()
        return frozenset(loader.get_group_options("experiment/msf", results_filter=ObjectType.CONFIG))


def plan(
    part: TablePart, dataset: str, seeds: Sequence[int], out: Path, preset: str = "", settings: Sequence[str] = ()
) -> List[PlannedRow]:
    """List the runs of a part of a table.

    Args:
        part: of `ocl_msf.experiments.paper.TABLES`.
        dataset: whose rows.
        seeds: one run of each row for each.
        out: where the runs are, or go.
        preset: name of an `msf/preset`, or "".
        settings: overrides for the runs of both stages.

    Returns:
        One for each seed of each row whose experiments exist; see `missing`.
    """
    rows = [row for row in part.rows if row.dataset == dataset and not missing(part, row)]
    return [_planned(row, seed, part, out, preset, settings) for row in rows for seed in seeds]


def missing(part: TablePart, row: Row) -> List[str]:
    """The experiments that a row needs and this package does not have."""
    return [name for name in part.experiments(row) if name not in known_experiments()]


def _planned(row: Row, seed: int, part: TablePart, out: Path, preset: str, settings: Sequence[str]) -> PlannedRow:
    place = f"{row.dataset}-{preset}" if preset else row.dataset
    root = out.resolve() / place / (row.variant or row.model) / f"seed{seed}"
    common = [f"msf/variant={row.variant}"] if row.variant not in ("msf", None) else []
    common += ([f"+msf/preset={preset}"] if preset else []) + [f"seed={seed}", *settings]
    *first, last = part.experiments(row)
    own = [one for one in row.overrides if _matters(one, last, tuple(common))]
    jobs = [*(Job(name, root, tuple(common)) for name in first), Job(last, root, (*common, *own))]
    return PlannedRow(row, seed, jobs, Scoring(jobs[-1], REPORTS[2 if part.model else 1]))


def _matters(override: str, experiment: str, others: Tuple[str, ...]) -> bool:
    """Whether an override changes anything: rows share a run if a preset already sets what they differ in."""
    config = _compose([f"+experiment=msf/{experiment}", *others])
    one = OverridesParser.create().parse_override(override)
    if one.key_or_group in config.hydra.runtime.choices:
        return config.hydra.runtime.choices[one.key_or_group] != one.value()
    return OmegaConf.select(config, one.key_or_group) != one.value()


def steps_of(job: Job) -> int:
    """How many steps a job trains, from its composed configuration."""
    return int(_compose(job.arguments).trainer.max_steps)


def _compose(arguments: Sequence[str]) -> DictConfig:
    """The configuration of a job but for its seed, folder and variant, none of which says how long it trains."""
    left_out = ("seed=", "msf/variant=", "+experiment.root_output_folder=")
    return _composed(tuple(word for word in arguments if not word.startswith(left_out)))


@functools.lru_cache(maxsize=None)
def _composed(arguments: Tuple[str, ...]) -> DictConfig:
    with hydra.initialize_config_module("configs", version_base="1.3"):
        return hydra.compose("training_config", overrides=list(arguments), return_hydra_config=True)


def seconds_per_step(run: Run) -> float:
    """Wall-clock time per step of a run, start-up and validation included."""
    begin = (run.folder / "config" / "overrides.yaml").stat().st_mtime
    return max(run.checkpoint.stat().st_mtime - begin, 0.0) / max(run.step - run.first_step, 1)


def estimate(jobs: Sequence[Job], workers: int = 1, find: Find = run_of) -> str:
    """Say how many steps are left to train, and how long they take if a finished run of the experiment shows it."""
    runs = {job: find(job) for job in jobs}
    speeds = {job.experiment: seconds_per_step(run) for job, run in runs.items() if run and run.finished}
    left = {job: steps_of(job) - (run.step if run else 0) for job, run in runs.items()}
    left = {job: steps for job, steps in left.items() if steps > 0}
    known = sum(steps * speeds[job.experiment] for job, steps in left.items() if job.experiment in speeds)
    unknown = sum(steps for job, steps in left.items() if job.experiment not in speeds)
    text = f"{len(left)} of {len(jobs)} runs to train, {sum(left.values()):,} steps"
    if known:
        text += f"; {known / 3600:.1f} h at the speed of finished runs"
        text += f", with {workers} at a time at least {known / 3600 / workers:.1f} h" if workers > 1 else ""
    return text + (f"; {unknown:,} steps of unknown speed" if unknown else "")


def tasks_of(plans: Sequence[PlannedRow], launcher: Sequence[str] = (), find: Find = run_of) -> List[Task]:
    """Order what plans need, each job once; `launcher` is appended to every command, `find` finds existing runs.

    Jobs of one experiment with the same root run one after another, because they write the same log.
    """
    trainings: Dict[Job, Task] = {}
    scorings: Dict[Scoring, Task] = {}
    tasks: List[Task] = []
    for planned in plans:
        needs: List[Task] = []
        for job in planned.jobs:
            if job not in trainings:
                twins = [task for j, task in trainings.items() if (j.root, j.experiment) == (job.root, job.experiment)]
                trainings[job] = _training(job, planned, launcher, [*needs, *twins], find)
                tasks.append(trainings[job])
            needs = [trainings[job]]
        if planned.scoring not in scorings:
            scorings[planned.scoring] = _scoring(planned, launcher, needs, find)
            tasks.append(scorings[planned.scoring])
    return tasks


def _training(job: Job, planned: PlannedRow, launcher: Sequence[str], needs: List[Task], find: Find) -> Task:
    def done() -> bool:
        run = find(job)
        return bool(run and run.finished)

    def command() -> List[str]:
        return [*job.command_after(find(job)), *launcher]

    title = f"{planned.row.label}, seed {planned.seed}: training {job.experiment}"
    return Task(title, command, job.root / f"{job.experiment}.log", done, needs)


def _scoring(planned: PlannedRow, launcher: Sequence[str], needs: List[Task], find: Find) -> Task:
    scoring = planned.scoring

    def done() -> bool:
        return scoring.scores_of(find(scoring.job)) is not None

    def command() -> List[str]:
        return [*scoring.command_for(find(scoring.job)), *launcher]

    title = f"{planned.row.label}, seed {planned.seed}: scoring {scoring.job.experiment}"
    log = scoring.job.root / f"{scoring.job.experiment}.scoring.log"
    return Task(title, command, log, done, needs)


def markdown(part: TablePart, dataset: str, plans: Sequence[PlannedRow], find: Find = run_of) -> str:
    """Write a part of a table: every row of the paper, our scores beside it, and the number of their seeds.

    Below a row stands how much of its scores is image gain; below all, what trivial segmentations score.
    """
    lines = [f"{part.title}, {dataset}", ""]
    lines.append("| | " + " | ".join(f"{m} | paper" for m in part.metrics) + " | seeds |")
    lines.append("|---" * (2 * len(part.metrics) + 2) + "|")
    scored: List[Scores] = []
    for row in (row for row in part.rows if row.dataset == dataset):
        found = [one.scoring.scores_of(find(one.scoring.job)) for one in plans if one.row == row]
        runs = [scores for scores in found if scores is not None]
        entries = [row.label]
        for metric, value in zip(part.metrics, row.values):
            entries += [format_scores(metric, runs), str(value)]
        lines.append("| " + " | ".join([*entries, str(len(runs))]) + " |")
        lines += _honest_line("image_gain", part.metrics, runs)
        scored += runs
    return "\n".join([*lines, *(line for row in TRIVIAL for line in _honest_line(row, part.metrics, scored))])


def _honest_line(row: str, metrics: Sequence[str], runs: Sequence[Scores]) -> List[str]:
    """A line of the mean of one of `ROWS` over runs; none if they do not have it."""
    known = mean_scores([row_of(row, scores) for scores in runs])
    cells = [cell for metric in metrics for cell in (format_scores(metric, [known]), "")]
    return ["| " + " | ".join([ROWS[row], *cells, ""]) + " |"] if known else []


def make_tables(
    table: str,
    part: Optional[str] = None,
    dataset: str = "clevrtex",
    seeds: Sequence[int] = (0, 1, 2),
    preset: str = "",
    settings: Sequence[str] = (),
    out: Path = Path("outputs/tables"),
    gpus: str = "",
    slurm: Optional[Sequence[str]] = None,
    dry_run: bool = False,
) -> None:
    """Plan the runs of one of the paper's tables, run what is missing, and print it.

    Args:
        table: one of `TABLES`.
        part: of the table, such as "upper-left" of table 5; by default all.
        dataset: as in the names of experiments.
        seeds: of the runs of each row.
        preset: an `msf/preset`, such as "cpu".
        settings: overrides for the runs of both stages; take another `out` for other ones.
        out: where runs go.
        gpus: see `gpu_workers`.
        slurm: overrides for SLURM, through which the commands run then; None runs them here.
        dry_run: print the commands and the scores so far, and run nothing.

    Raises:
        ValueError: there is no such table or part, or `gpus` is not understood.
    """
    parts = _parts(table, part, dataset)
    plans = {name: plan(chosen, dataset, seeds, out, preset, settings) for name, chosen in parts.items()}
    for chosen in parts.values():
        for row in (row for row in chosen.rows if row.dataset == dataset and missing(chosen, row)):
            print(f"{row.label} is left out: there is no {', no '.join(missing(chosen, row))} yet.")
    found = searching_once()
    _work([planned for rows in plans.values() for planned in rows], gpus, slurm, dry_run, found)
    found = found if dry_run else searching_once()
    for name, chosen in parts.items():
        print("\n" + markdown(chosen, dataset, plans[name], found))


def _parts(table: str, name: Optional[str], dataset: str) -> Dict[str, TablePart]:
    """The parts of a table with rows of a data set, or the one of this name.

    Raises:
        ValueError: there are none.
    """
    if table not in TABLES:
        raise ValueError(f"There is no {table}: choose one of {', '.join(sorted(TABLES))}.")
    if name is not None and name not in TABLES[table]:
        raise ValueError(f"{table} has the parts {', '.join(TABLES[table])}, not {name}")
    parts = {key: part for key, part in TABLES[table].items() if name in (None, key)}
    parts = {key: part for key, part in parts.items() if any(row.dataset == dataset for row in part.rows)}
    if not parts:
        raise ValueError(f"{table} has no rows of {dataset}")
    return parts


def _work(plans: Sequence[PlannedRow], gpus: str, slurm: Optional[Sequence[str]], dry_run: bool, find: Find) -> None:
    """Print the steps that are left to train; then run the commands or, if `dry_run`, print them.

    Raises:
        ValueError: `gpus` is not understood.
    """
    launcher = [] if slurm is None else [*SLURM, *slurm, "--multirun"]  # Hydra wants flags at the end
    tasks = tasks_of(plans, launcher, find if dry_run else run_of)
    workers = gpu_workers(gpus) if slurm is None else [[]] * max(len(tasks), 2)
    jobs = list(dict.fromkeys(job for planned in plans for job in planned.jobs))
    print(estimate(jobs, len(workers) if gpus else 1, find), flush=True)
    if not dry_run:
        run_all(tasks, workers)
        return
    for task in tasks:
        _, _, module, *words = task.command()
        print(("finished: " if task.done and task.done() else "") + pasteable([PROGRAMS[module], *words]))
