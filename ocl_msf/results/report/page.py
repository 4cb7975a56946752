"""The report: `index.html`, one page that needs no network, and `scores.md` with its tables."""

from pathlib import Path
from typing import Dict, List, Sequence

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from ocl_msf.experiments.honest_rows import SCORES, row_of
from ocl_msf.experiments.runs import Run, config_path
from ocl_msf.files import replacing
from ocl_msf.results.figures.segmentations import FILE as SCENES
from ocl_msf.results.figures.segmentations import read_scenes
from ocl_msf.results.report import comparison
from ocl_msf.results.report.comparison import run_name
from ocl_msf.results.report.evaluations import commands, missing_of, relative
from ocl_msf.results.report.plots import figures, galleries
from ocl_msf.results.rows import by_experiment, common_overrides, name_rows, numbered_overrides


def write_report(runs: Sequence[Run], out: Path, date: str, gallery: int = 4) -> List[Path]:
    """Write `index.html` and `scores.md`, and return their paths. The same runs give the same bytes.

    Args:
        runs: of `ocl_msf.results.rows.collect`.
        out: the folder for both.
        date: printed on the page.
        gallery: how many scenes a gallery has of the best, of the middle and of the worst.

    Raises:
        DataError: a file of a run is damaged, a run is outdated, or the report cannot be written.
    """
    page = render(runs, date, gallery)
    texts = {out / "index.html": page, out / "scores.md": comparison.markdown(comparison.all_tables(runs))}
    for path, text in texts.items():
        with replacing(path) as file:
            file.write(text.encode("utf-8"))
    return list(texts)


def render(runs: Sequence[Run], date: str, gallery: int = 4) -> str:
    """Fill in the page; arguments as of `write_report`."""
    folder = FileSystemLoader(str(Path(__file__).parent))
    pages = Environment(loader=folder, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    return pages.get_template("page.html").render(
        date=date,
        preset=any(run.override("msf/preset") for run in runs),
        experiments=[
            {
                "name": name,
                "scores": comparison.score_table(name, same),
                "worth": comparison.worth_table(name, same),
                "common": common_overrides(same),
                "numbered": numbered_overrides(same),
                "codes": comparison.codes_table(name, same),
                "protocol": comparison.protocol_table(name, same),
                "seeds": comparison.seed_table(name, same),
            }
            for name, same in by_experiment(runs).items()
        ],
        notes=_notes(runs),
        figures=figures(runs),
        galleries=galleries(runs, gallery),
        scenes_file=SCENES,
        commands=_commands(runs),
        runs=[
            {
                "name": run_name(run),
                "overrides": [relative(override) for override in run.overrides],
                "config": relative(config_path(run.folder).read_text(encoding="utf-8")).splitlines(),
            }
            for run in runs
        ],
        recorded=sum(bool(run.environment) for run in runs),
        environments=comparison.environment_table(runs),
        environment_runs=comparison.environment_runs(runs),
    )


def _notes(runs: Sequence[Run]) -> List[str]:
    """What is missing, and scenes that are not of the scored checkpoint."""
    notes = []
    for run in (run for run in runs if (run.folder / SCENES).is_file() and "ari_fg" in run.scores):
        mean, scored = read_scenes(run.folder / SCENES).mean, run.scores["ari_fg"]
        if abs(mean - scored) > 1e-3:
            notes.append(
                f"{run_name(run)}: the mean ARI_fg of its scenes is {100 * mean:.2f}, that in {run.report} "
                f"{100 * scored:.2f}. They are of two checkpoints: evaluate again."
            )
    for run in runs:
        if not run.finished:
            notes.append(f"{run_name(run)}: training is at step {run.step} of {run.max_steps}.")
        notes += [f"{run_name(run)}: no {file}." for file in missing_of(run)]
        if set(SCORES) & set(run.scores) and not row_of("image_gain", run.scores):
            notes.append(f"{run_name(run)}: {run.report} has no image gain and no trivial rows. Evaluate again.")
    return notes


def _commands(runs: Sequence[Run]) -> Dict[str, List[str]]:
    """The command lines that repeat every row, stage 1 before stage 2."""
    blocks = {}
    for experiment, same in reversed(list(by_experiment(runs).items())):
        for name, seeds in name_rows(same):
            number = f"{len(seeds)} seed" + "s" * (len(seeds) != 1)
            blocks[f"{experiment}, {name}: {number}"] = [line for run in seeds for line in commands(run)]
    return blocks
