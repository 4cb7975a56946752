"""The report's tables: scores beside the paper's, single runs, environments."""

from typing import Dict, Iterator, List, NamedTuple, Optional, Sequence, Tuple

from ocl_msf.experiments.honest_rows import INSTRUMENTS, SCORES, TRIVIAL, gain_share, mean_scores, row_of, verdict
from ocl_msf.experiments.paper import TABLES, Row, TablePart, format_scores, format_value, mean_and_deviation
from ocl_msf.experiments.runs import Run, Scores
from ocl_msf.results.rows import by_experiment, name_rows, numbered_overrides
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
OF_CODES = {  # of `ocl_msf.instruments`
    "ami": "AMI with segments ↑",
    "between": "variance between segments ↑",
    "missed": "variance missed ↓",
    "equal_left": "equal to the left",
    "perplexity": "perplexity / codes ↑",
    "confidence": "confidence with quality ↑",
}


class Cell(NamedTuple):
    """The text of a table's cell, and a note in small print below it."""

    text: str
    note: str = ""


class Table(NamedTuple):
    """Headings, and rows of cells; the first of each row names it."""

    title: str
    headings: List[str]
    rows: List[List[Cell]]


def metrics_of(scores: Sequence[Scores]) -> List[str]:
    """The metrics in some of these scores that tables show, in their order."""
    return [name for name in METRICS if any(name in one for one in scores)]


def score_table(experiment: str, runs: Sequence[Run]) -> Table:
    """A row for each setting: number of seeds, mean ± standard deviation over them, the paper's number below."""
    metrics = metrics_of([run.scores for run in runs])
    rows = []
    for name, seeds in name_rows(runs):
        label = next((row.label for _, _, row in paper_rows(seeds[0])), "")
        scored = sum(bool(metrics_of([run.scores])) for run in seeds)
        cells = [Cell(name, label), Cell(str(scored), f"of {len(seeds)}" if scored < len(seeds) else "")]
        for metric in metrics:
            paper = paper_value(seeds[0], metric)
            note = f"paper {format_value(metric, paper[0])}, {paper[1]}" if paper else ""
            cells.append(Cell(format_scores(metric, [run.scores for run in seeds]), note))
        rows.append(cells)
    return Table(experiment, ["", "seeds", *(METRICS[metric] for metric in metrics)], rows)


def settings_table(experiment: str, runs: Sequence[Run]) -> Optional[Table]:
    """The overrides behind the numbered settings in the names of rows; None if no name has one."""
    rows = [[Cell(name), Cell(" ".join(overrides))] for overrides, name in numbered_overrides(runs).items()]
    return Table(f"{experiment}, settings", ["", "overrides"], rows) if rows else None


def seed_table(experiment: str, runs: Sequence[Run]) -> Table:
    """A row for each run: its scores, the steps it has made, and its speed."""
    metrics = metrics_of([run.scores for run in runs])
    rows = []
    for name, seeds in name_rows(runs):
        for run in seeds:
            speed = f"{1 / run.seconds_per_step:.2f}" if run.seconds_per_step else "-"
            texts = [name, run.seed, *(format_scores(metric, [run.scores]) for metric in metrics)]
            rows.append([Cell(text) for text in [*texts, f"{run.step} of {run.max_steps}", speed]])
    return Table(experiment, ["", "seed", *(METRICS[m] for m in metrics), "steps", "steps per s"], rows)


def codes_table(experiment: str, runs: Sequence[Run]) -> Optional[Table]:
    """A row for each setting, scale and group of codes: what instruments say of them; None if no run has any."""
    rows = []
    for name, seeds in name_rows(runs):
        found: Dict[Tuple[str, str], Dict[str, List[float]]] = {}
        for score, value in ((score, value) for run in seeds for score, value in run.scores.items()):
            measure, *codes = score.split("/")
            if measure in OF_CODES and codes:
                place = codes[-1].replace("_", " "), "".join(codes[:-1]).replace("_", " ")
                found.setdefault(place, {}).setdefault(measure, []).append(value)
        for (scale, group), values in sorted(found.items(), key=lambda item: (item[0][0] == "all scales", item[0])):
            cells = [Cell(f"{name}, {scale}", group.replace("before", "group 1 before the") or "sum of groups")]
            rows.append([*cells, *(Cell(_plain(values.get(measure, []))) for measure in OF_CODES)])
    return Table(f"{experiment}, codes", ["", *OF_CODES.values()], rows) if rows else None


def _plain(values: Sequence[float]) -> str:
    """Mean ± sample standard deviation, three decimals; "-" without any."""
    numbers = [f"{number:.3f}" for number in mean_and_deviation(values)] if values else ["-"]
    return " ± ".join(numbers if len(values) > 1 else numbers[:1])


def protocol_table(experiment: str, runs: Sequence[Run]) -> Optional[Table]:
    """The mean of a run's last checkpoints, and the best of them, over the seeds; None if none is scored so."""
    metrics = metrics_of([scores for run in runs for scores in run.protocol.values()])
    rows = []
    for name, seeds in name_rows(runs):
        for kind in ("mean", "best"):
            scores = [run.protocol[kind] for run in seeds if kind in run.protocol]
            texts = [f"{name}, {kind}", str(len(scores)), *(format_scores(metric, scores) for metric in metrics)]
            rows += [[Cell(text) for text in texts]] if scores else []
    title = f"{experiment}, last checkpoints"
    return Table(title, ["", "seeds", *(METRICS[metric] for metric in metrics)], rows) if rows else None


def worth_table(experiment: str, runs: Sequence[Run]) -> Optional[Table]:
    """What scores are worth: beside each row its image gain, below what trivial segmentations score on the same data.

    Numbers are means over the seeds that have been compared; None if none has.
    """
    compared = [run for run in runs if row_of("image_gain", run.scores)]
    metrics = [name for name in SCORES if any(f"image_gain_{name}" in run.scores for run in compared)]
    instruments = [name for name in INSTRUMENTS if any(name in run.scores for run in compared)]
    rows = []
    for name, seeds in name_rows(compared):
        scores = mean_scores([run.scores for run in seeds])
        cells = [Cell(name, verdict(scores)), *(_worth(metric, scores) for metric in metrics)]
        rows.append([*cells, *(Cell(f"{scores[one]:.3g}" if one in scores else "-") for one in instruments)])
    for row, label in TRIVIAL.items():
        scores = row_of(row, mean_scores([run.scores for run in compared]))
        cells = [Cell(format_scores(metric, [scores])) for metric in metrics]
        rows.append([Cell(label), *cells, *(Cell("") for _ in instruments)])
    headings = ["", *(SCORES[metric] for metric in metrics), *(INSTRUMENTS[one] for one in instruments)]
    return Table(f"{experiment}, what scores are worth", headings, rows) if compared else None


def _worth(metric: str, scores: Scores) -> Cell:
    """A score, and how much of it is image gain."""
    gain, share = row_of("image_gain", scores), gain_share(metric, scores)
    note = f"image gain {format_scores(metric, [gain])}" + (f", {share}" if share else "")
    return Cell(format_scores(metric, [scores]), note)


def paper_rows(run: Run) -> Iterator[Tuple[str, TablePart, Row]]:
    """The rows of the paper's tables that runs like this one reproduce: name of the table, its part, the row."""
    variant, guidance = run.variant or "msf", run.override("msf/guidance", "scale_1")
    for name, parts in TABLES.items():
        for part in parts.values():
            for row in part.rows:
                same = part.experiments(row)[-1:] == [run.experiment] and row.variant in (variant, None)
                wanted = dict(o.split("=", 1) for o in row.overrides).get("msf/guidance", "scale_1")
                if same and (part.model is None or wanted == guidance):
                    yield f"Table {name[5:]}", part, row


def paper_value(run: Run, metric: str) -> Optional[Tuple[float, str]]:
    """The paper's score for runs like this one, and its table; None if the paper has none."""
    rows = [(table, part, row) for table, part, row in paper_rows(run) if metric in part.metrics]
    return next(((row.values[part.metrics.index(metric)], table) for table, part, row in rows), None)


def run_name(run: Run) -> str:
    """Such as "slate_clevrtex, vq, seed 0"."""
    return ", ".join(filter(None, [run.experiment, run.variant, f"seed {run.seed}"]))


def environment_table(runs: Sequence[Run]) -> Table:
    """A column for each environment that runs were trained in, by number, and one for that of the report."""
    groups = enumerate(_environments(runs), 1)
    columns = {str(n): {"runs": str(len(same)), **dict(recorded)} for n, (recorded, same) in groups if recorded}
    columns["this report"] = {"device": processor_name(), **software()}
    names = dict.fromkeys(name for column in columns.values() for name in column)
    rows = [[Cell(name), *(Cell(column.get(name, "-")) for column in columns.values())] for name in names]
    return Table("Environments", ["", *columns], rows)


def environment_runs(runs: Sequence[Run]) -> Table:
    """The number of every run's environment, and the runs that have not recorded theirs."""
    rows = []
    for number, (recorded, same) in enumerate(_environments(runs), 1):
        rows += [[Cell(run_name(run)), Cell(str(number) if recorded else "none recorded")] for run in same]
    return Table("Environments of runs", ["", "environment"], rows)


def _environments(runs: Sequence[Run]) -> List[Tuple[Tuple[Tuple[str, str], ...], List[Run]]]:
    """Recorded environments, and the runs of each; last those that have recorded none."""
    groups: Dict[Tuple[Tuple[str, str], ...], List[Run]] = {}
    for run in runs:
        groups.setdefault(tuple(run.environment.items()), []).append(run)
    return sorted(groups.items(), key=lambda group: not group[0])


def all_tables(runs: Sequence[Run]) -> List[Table]:
    """Every table of a report.

    Raises:
        DataError: a file of a run is damaged, or a run is outdated.
    """
    groups = by_experiment(runs).items()
    tables = [score_table(*group) for group in groups]
    tables += filter(None, (settings_table(*group) for group in groups))
    tables += filter(None, (worth_table(*group) for group in groups))
    tables += filter(None, (codes_table(*group) for group in groups))
    tables += filter(None, (protocol_table(*group) for group in groups))
    tables += [seed_table(f"{name}, every run", same) for name, same in groups]
    return [*tables, environment_table(runs), environment_runs(runs)]


def markdown(tables: Sequence[Table]) -> str:
    """Write tables as Markdown."""
    blocks = []
    for table in tables:
        rows = [[cell.text + (f" ({cell.note})" if cell.note else "") for cell in row] for row in table.rows]
        lines = [" | ".join(text.replace("|", "\\|") for text in row) for row in [table.headings, *rows]]
        lines = [f"| {line} |" for line in lines]
        lines.insert(1, "|---" * len(table.headings) + "|")
        blocks.append("\n".join([f"## {table.title}", "", *lines]))
    return "\n\n".join(blocks) + "\n"
