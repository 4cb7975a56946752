"""The page itself: one HTML file that needs no network, and the same tables as Markdown."""

import base64
import platform
import shlex
import tempfile
from html import escape
from pathlib import Path
from typing import Dict, List, NamedTuple, Sequence

from ocl_msf.figures import draw_curves, read_curves
from ocl_msf.report.runs import ScoredRun, group, paper_value
from ocl_msf.tables import mean_and_spread, seconds_per_step, value_of

METRICS = {
    "ari": "ARI",
    "ari_fg": "ARI_fg",
    "miou": "mIoU",
    "mbo": "mBO",
    "ari+ari_fg": "ARI + ARI_fg",
    "inter": "inter-cluster",
    "intra": "intra-cluster",
}
CURVES = ("val/ari_fg", "val/miou", "train/loss_total", "val/reconstruction")
STYLE = """
:root { color-scheme: light dark; --ink: #1b1f24; --page: #fff; --line: #d6dae0; --faint: #626b76; --shade: #f4f6f8 }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e4e7eb; --page: #14171b; --line: #343a42; --faint: #9aa4b0; --shade: #1d2127 }
}
body { font: 16px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--page);
  max-width: 70rem; margin: 0 auto; padding: 1rem }
.wide { overflow-x: auto } table { border-collapse: collapse; font-variant-numeric: tabular-nums }
th, td { padding: .3rem .7rem; border-bottom: 1px solid var(--line); text-align: right; white-space: nowrap }
th:first-child, td:first-child { text-align: left; white-space: normal; min-width: 11rem }
small, .faint { color: var(--faint) } img { max-width: 100%; background: #fff; border-radius: 4px }
pre { background: var(--shade); padding: .7rem; overflow-x: auto; font-size: .85rem } figure { margin: 1rem 0 }
"""


class Table(NamedTuple):
    """Headings, and rows of texts."""

    title: str
    headings: List[str]
    rows: List[List[str]]


def score_tables(runs: Sequence[ScoredRun]) -> List[Table]:
    """One table for each experiment: settings, number of seeds, mean ± standard deviation, the paper's in brackets."""
    tables = []
    for experiment in sorted({run.experiment for run in runs}):
        mine = [run for run in runs if run.experiment == experiment]
        metrics = [name for name in METRICS if any(name in run.scores for run in mine)]
        rows = []
        for settings, found in group(mine).items():
            label = " ".join(s for s in settings if not s.startswith("+experiment=")) or "as it is"
            scored = [run for run in found if run.scores]
            row = [label, str(len(scored))]
            for metric in metrics:
                ours = mean_and_spread(
                    [value_of(metric, r.scores) for r in scored if set(metric.split("+")) <= {*r.scores}]
                )
                paper = paper_value(found[0], metric)
                row.append(f"{ours} ({paper[0]}, {paper[1]})" if paper else ours)
            rows.append(row)
        tables.append(Table(experiment, ["settings", "seeds", *(METRICS[m] for m in metrics)], rows))
    return tables


def run_table(runs: Sequence[ScoredRun]) -> Table:
    """One line for each run: how far it got and how fast it was."""
    rows = []
    for run in runs:
        speed = f"{seconds_per_step(run.run):.3f}" if run.run.checkpoint else "-"
        name = " ".join([run.experiment, *(s for s in run.settings if not s.startswith("+experiment="))])
        rows.append([name, run.chosen("seed", "-"), f"{run.run.step} of {run.run.max_steps}", speed])
    return Table("Runs", ["run", "seed", "steps", "s per step, with validation"], rows)


def environment() -> Dict[str, str]:
    """Where the report was made."""
    return {"Python": platform.python_version(), "system": f"{platform.system()} {platform.machine()}"}


def commands(run: ScoredRun) -> str:
    """The command line that makes a run again, in a folder of one's own choice."""
    kept = [o for o in run.overrides if "load_checkpoint=" not in o and "root_output_folder=" not in o]
    return "ocl_train " + shlex.join(kept)


def markdown(tables: Sequence[Table]) -> str:
    """Write tables as Markdown."""
    blocks = []
    for table in tables:
        lines = [f"## {table.title}", "", *(f"| {' | '.join(row)} |" for row in [table.headings, *table.rows])]
        lines.insert(3, "|---" * len(table.headings) + "|")
        blocks.append("\n".join(lines))
    return "\n\n".join(blocks) + "\n"


def page(runs: Sequence[ScoredRun], date: str) -> str:
    """Write the page; `date` is the only thing in it that is not of the runs and the environment."""
    parts = [f"<h1>Multi-Scale Fusion: report</h1><p class=faint>{escape(date)}, {len(runs)} runs</p>"]
    note = (
        "Mean ± sample standard deviation over seeds; in brackets the paper's number and its table. Scores are percent."
    )
    parts += ["<h2>Scores</h2>", f"<p>{note}</p>", *map(_html_table, score_tables(runs))]
    parts += ["<h2>Figures</h2>", *_figures(runs), _html_table(run_table(runs), "h2")]
    parts += ["<h2>Commands</h2>", f"<pre>{escape(chr(10).join(map(commands, runs)))}</pre>", "<h2>Settings</h2>"]
    for run in runs:
        text = (run.run.folder / "config" / "config.yaml").read_text(encoding="utf-8")
        parts.append(f"<details><summary>{escape(_name(run))}</summary><pre>{escape(text)}</pre></details>")
    versions = Table("Environment of this report", ["", "version"], [list(item) for item in environment().items()])
    parts.append(_html_table(versions, "h2"))
    head = '<meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">'
    head += f"<title>Multi-Scale Fusion: report</title><style>{STYLE}</style>"
    return f'<!doctype html>\n<html lang="en"><head>{head}</head>\n<body>\n' + "\n".join(parts) + "\n</body></html>\n"


def _name(run: ScoredRun) -> str:
    kept = [s for s in run.settings if not s.startswith("+experiment=")]
    return ", ".join([run.experiment, *kept, f"seed {run.chosen('seed', '?')}"])


def _html_table(table: Table, level: str = "h3") -> str:
    head = "".join(f"<th>{escape(text)}</th>" for text in table.headings)
    body = "".join("<tr>" + "".join(f"<td>{escape(t)}</td>" for t in row) + "</tr>" for row in table.rows)
    title = f"<{level}>{escape(table.title)}</{level}>"
    return f"{title}<div class=wide><table><tr>{head}</tr>{body}</table></div>"


def _figures(runs: Sequence[ScoredRun]) -> List[str]:
    """Curves of each experiment, then the pictures that evaluations left in the runs' folders."""
    figures = []
    with tempfile.TemporaryDirectory() as folder:
        for experiment in sorted({run.experiment for run in runs}):
            found = [run for run in runs if run.experiment == experiment]
            short = [f"{run.chosen('msf/variant', 'msf')}, seed {run.chosen('seed', '?')}" for run in found]
            labels = short if len(set(short)) == len(short) else [f"run {n}: {s}" for n, s in enumerate(short, 1)]
            mine = dict(zip(labels, (run.run.folder for run in found)))
            logged = {name for path in mine.values() for name in read_curves(path)}
            names = [name for name in CURVES if name in logged]
            if names:
                draw_curves(mine, names, Path(folder) / "curves.png")
                figures.append(_figure(Path(folder) / "curves.png", f"Training of {experiment}"))
    for run in runs:
        for path in sorted(run.run.folder.glob("*.png")):
            figures.append(_figure(path, f"{path.stem} of {_name(run)}"))
    return figures


def _figure(path: Path, caption: str) -> str:
    data = base64.b64encode(path.read_bytes()).decode()
    text = escape(caption)
    image = f'<img src="data:image/png;base64,{data}" alt="{text}">'
    return f"<figure>{image}<figcaption><small>{text}</small></figcaption></figure>"
