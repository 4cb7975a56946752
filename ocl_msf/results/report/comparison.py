"""The report's tables: scores beside the paper's, runs, environment; and what is missing."""

import os
import re
import shlex
import statistics
from pathlib import Path
from typing import Dict, Iterator, List, NamedTuple, Optional, Sequence, Tuple

from ocl_msf.experiments.paper import TABLES, Part, Row, value_of
from ocl_msf.experiments.scored_runs import ScoredRun, long_settings, name_rows, read_environment, read_protocol
from ocl_msf.results.figures.guidance_maps import FILE as GUIDANCE
from ocl_msf.results.figures.segmentations import FILE as SCENES
from ocl_msf.training.environment import processor_name, software

METRICS = {
    "ari": "ARI",
    "ari_fg": "ARI_fg",
    "miou": "mIoU",
    "miou_small": "mIoU small",
    "miou_medium": "mIoU medium",
    "miou_large": "mIoU large",
    "mbo": "mBO",
    "ari+ari_fg": "ARI + ARI_fg",
    "inter": "inter-cluster ↑",
    "intra": "intra-cluster ↓",
}


class Cell(NamedTuple):
    """A text, and what stands small below it."""

    text: str
    note: str = ""


class Table(NamedTuple):
    """Headings, and rows of cells; the first of each row names it."""

    title: str
    headings: List[str]
    rows: List[List[Cell]]


def experiments(runs: Sequence[ScoredRun]) -> List[Tuple[str, List[ScoredRun]]]:
    """The runs of each experiment: stage 2 before stage 1, whose scores are of guidance alone."""
    names = sorted({run.experiment for run in runs}, key=lambda name: (name.startswith("vqvae"), name))
    return [(name, [run for run in runs if run.experiment == name]) for name in names]


def metrics_of(runs: Sequence[ScoredRun]) -> List[str]:
    """The scores that some of the runs have and tables show, in their order."""
    return [name for name in METRICS if any(name in run.scores for run in runs)]


def score_table(experiment: str, runs: Sequence[ScoredRun]) -> Table:
    """One row for each setting: number of seeds, mean ± standard deviation over them, the paper's number below."""
    metrics = metrics_of(runs)
    rows = []
    for name, found in name_rows(runs):
        scored = [run for run in found if any(metric in run.scores for metric in metrics)]
        label = next((row.label for _, _, row in paper_rows(found[0])), "")
        row = [Cell(name, label), Cell(str(len(scored)), f"of {len(found)}" if len(scored) < len(found) else "")]
        for metric in metrics:
            paper = paper_value(found[0], metric)
            row.append(
                Cell(
                    mean_and_spread(found, metric), f"paper {paper[0]:.{_digits(metric)}f}, {paper[1]}" if paper else ""
                )
            )
        rows.append(row)
    return Table(experiment, ["", "seeds", *(METRICS[metric] for metric in metrics)], rows)


def settings_table(experiment: str, runs: Sequence[ScoredRun]) -> Optional[Table]:
    """What the numbered settings in names of rows are; None where all names are whole."""
    rows = [[Cell(name), Cell(" ".join(long))] for long, name in long_settings(runs).items()]
    return Table(f"{experiment}, settings", ["", "overrides"], rows) if rows else None


def seed_table(experiment: str, runs: Sequence[ScoredRun]) -> Table:
    """One row for each run: its own scores, how far it got and how fast it was."""
    metrics = metrics_of(runs)
    rows = []
    for name, found in name_rows(runs):
        for run in found:
            speed = f"{1 / run.seconds_per_step:.2f}" if run.seconds_per_step else "-"
            row = [name, run.seed, *(mean_and_spread([run], metric) for metric in metrics)]
            rows.append([Cell(text) for text in [*row, f"{run.run.step} of {run.run.max_steps}", speed]])
    return Table(experiment, ["", "seed", *(METRICS[m] for m in metrics), "steps", "steps per s"], rows)


def protocol_table(experiment: str, runs: Sequence[ScoredRun]) -> Optional[Table]:
    """The mean of a run's last checkpoints, and the best of them, over the seeds; None where none is scored so."""
    rows, metrics = [], []
    for name, found in name_rows(runs):
        read = [read_protocol(run.run.folder) for run in found]
        for kind in ("mean", "best"):
            scored = [run._replace(scores=made[kind]) for run, made in zip(found, read) if kind in made]
            metrics = metrics or metrics_of(scored)
            values = [mean_and_spread(scored, metric) for metric in metrics]
            rows += [[Cell(f"{name}, {kind}"), Cell(str(len(scored))), *map(Cell, values)]] if scored else []
    title = f"{experiment}, last checkpoints"
    return Table(title, ["", "seeds", *(METRICS[metric] for metric in metrics)], rows) if rows else None


def mean_and_spread(runs: Sequence[ScoredRun], metric: str) -> str:
    """Mean ± sample standard deviation over the runs that have the score; in percent, but for distances."""
    digits = _digits(metric)
    values = [value_of(metric, run.scores) for run in runs if metric in run.scores]
    if not values:
        return "-"
    spread = f" ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.{digits}f}{spread}"


def _digits(metric: str) -> int:
    return 3 if metric in ("inter", "intra") else 2


def paper_rows(run: ScoredRun) -> Iterator[Tuple[str, Part, Row]]:
    """The rows of the paper's tables that runs of this kind answer: name of the table, its part, the row."""
    variant, guidance = run.variant or "msf", run.chosen("msf/guidance", "scale_1")
    for name, parts in TABLES.items():
        for part in parts.values():
            for row in part.rows:
                same = part.experiments(row)[-1:] == [run.experiment] and row.variant in (variant, None)
                wanted = dict(o.split("=", 1) for o in row.overrides).get("msf/guidance", "scale_1")
                if same and (part.model is None or wanted == guidance):
                    yield f"Table {name[5:]}", part, row


def paper_value(run: ScoredRun, metric: str) -> Optional[Tuple[float, str]]:
    """What the paper reports for runs of this kind, and in which table; None where it does not."""
    rows = [(table, part, row) for table, part, row in paper_rows(run) if metric in part.metrics]
    return next(((row.values[part.metrics.index(metric)], table) for table, part, row in rows), None)


def evaluations_of(run: ScoredRun) -> List[Tuple[str, str]]:
    """What can be saved of a run: the file in its folder, and the evaluation that writes it."""
    if run.experiment.startswith("vqvae"):
        return [("separability.json", "separability"), (GUIDANCE, "guidance_maps")]
    return [("metrics.json", run.experiment), (SCENES, "scenes")]


def missing_of(run: ScoredRun) -> List[Tuple[str, str]]:
    """Those of `evaluations_of` a run that have not been made."""
    return [(file, name) for file, name in evaluations_of(run) if not (run.run.folder / file).is_file()]


def commands(run: ScoredRun) -> List[str]:
    """The command lines that make a run, its scores and its pictures again, as from the current folder."""
    kept = [relative(o) for o in run.overrides if not o.lstrip("+").startswith("load_checkpoint=")]
    config = relative(str(run.run.folder / "config" / "config.yaml"))
    evaluations = [["ocl_eval", f"+evaluation=msf/{n}", f"train_config_path={config}"] for _, n in evaluations_of(run)]
    return [shlex.join(command) for command in [["ocl_train", *kept], *evaluations]]


def relative(text: str) -> str:
    """Write paths below the current folder as seen from there, and drop Hydra's quotes around plain ones."""
    return re.sub(r"='([\w./-]+)'$", r"=\1", text.replace(f"{Path.cwd()}{os.sep}", ""))


def environment_table(runs: Sequence[ScoredRun]) -> Table:
    """A column for each environment that runs were trained in, by number, and one for where the report was made."""
    groups = enumerate(_environments(runs), 1)
    columns = {str(n): {"runs": str(len(found)), **dict(kept)} for n, (kept, found) in groups if kept}
    columns["this report"] = {"device": processor_name(), **software()}
    names = dict.fromkeys(name for column in columns.values() for name in column)
    rows = [[Cell(name), *(Cell(column.get(name, "-")) for column in columns.values())] for name in names]
    return Table("Environments", ["", *columns], rows)


def environment_runs(runs: Sequence[ScoredRun]) -> Table:
    """The number of every run's environment, and which runs have not recorded theirs."""
    rows = []
    for number, (kept, found) in enumerate(_environments(runs), 1):
        rows += [[Cell(run_name(run)), Cell(str(number) if kept else "none recorded")] for run in found]
    return Table("Environments of runs", ["", "environment"], rows)


def _environments(runs: Sequence[ScoredRun]) -> List[Tuple[Tuple[Tuple[str, str], ...], List[ScoredRun]]]:
    """What runs have recorded, and the runs that have recorded just that; at the end those without a record."""
    groups: Dict[Tuple[Tuple[str, str], ...], List[ScoredRun]] = {}
    for run in runs:
        groups.setdefault(tuple(read_environment(run.run.folder).items()), []).append(run)
    return sorted(groups.items(), key=lambda group: not group[0])


def run_name(run: ScoredRun) -> str:
    """Such as "slate_clevrtex, vq, seed 0"."""
    return ", ".join(filter(None, [run.experiment, run.variant, f"seed {run.seed}"]))


def all_tables(runs: Sequence[ScoredRun]) -> List[Table]:
    """Every table of a report.

    Raises:
        ValueError: a file of a run is damaged.
    """
    found = experiments(runs)
    tables = [score_table(*one) for one in found]
    tables += filter(None, (settings_table(*one) for one in found))
    tables += filter(None, (protocol_table(*one) for one in found))
    tables += [seed_table(f"{name}, every run", mine) for name, mine in found]
    return [*tables, environment_table(runs), environment_runs(runs)]


def markdown(tables: Sequence[Table]) -> str:
    """Write tables as Markdown."""
    blocks = []
    for table in tables:
        rows = [[cell.text + (f" ({cell.note})" if cell.note else "") for cell in row] for row in table.rows]
        lines = [
            f"| {' | '.join(text.replace('|', chr(92) + '|') for text in row)} |" for row in [table.headings, *rows]
        ]
        lines.insert(1, "|---" * len(table.headings) + "|")
        blocks.append("\n".join([f"## {table.title}", "", *lines]))
    return "\n\n".join(blocks) + "\n"
