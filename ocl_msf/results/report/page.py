"""The page: scores, figures, scenes from best to worst, settings and commands, in one HTML file."""

import tempfile
from pathlib import Path
from typing import Callable, Dict, List, Sequence, Tuple

from ocl_msf.experiments.scored_runs import ScoredRun, long_settings, name_rows, read_environment, shared_settings
from ocl_msf.files import DataError
from ocl_msf.results.figures.curves import BOOK, draw_codebooks, draw_curves, draw_ranking
from ocl_msf.results.figures.guidance_maps import FILE as GUIDANCE
from ocl_msf.results.figures.guidance_maps import draw_maps, read_guidance
from ocl_msf.results.figures.segmentations import FILE as SCENES
from ocl_msf.results.figures.segmentations import Scenes, draw_segmentations, read_scenes, scene_strip
from ocl_msf.results.report import html
from ocl_msf.results.report.comparison import (
    commands,
    environment_runs,
    environment_table,
    experiments,
    missing_of,
    protocol_table,
    relative,
    run_name,
    score_table,
    seed_table,
)

Rows = Sequence[Tuple[str, List[ScoredRun]]]  # of name_rows
CURVES = ("val/ari_fg", "val/ari", "val/miou", "val/mbo", "val/reconstruction", "train/reconstruction")
CHAPTERS = ("Scores", "Figures", "Scenes", "Commands", "Settings", "Environment")
SCORES_NOTE = (
    "On the validation set, in percent but for distances between clusters: mean over seeds ± sample standard "
    "deviation. The small print is the paper's: its name of the row, its number and its table."
)
SPEED_NOTE = "Speed is the median between entries of the log; runs that share a machine slow each other down."
PRESET_NOTE = (
    "These runs use a preset for small machines, such as msf/preset=cpu: smaller images, models and batches, and less "
    "training than in the paper. Compare the rows with each other, not their level with the paper's."
)


def page(runs: Sequence[ScoredRun], date: str, gallery: int = 4) -> str:
    """Write the page.

    Args:
        runs: of `ocl_msf.experiments.scored_runs.collect`.
        date: the only thing in the page that is not of the runs and the environment.
        gallery: how many scenes a gallery has of the best, of the middle and of the worst.
    """
    title = "Multi-Scale Fusion: report"
    links = " ".join(f'<a href="#{name.lower()}">{name}</a>' for name in CHAPTERS)
    parts = [html.heading(1, title), html.paragraph(f"{date} · {len(runs)} runs", "soft"), f"<nav>{links}</nav>"]
    scenes, notes = _read_scenes(runs)
    chapters = [
        _scores(runs, notes),
        _figures(runs, scenes),
        _galleries(runs, scenes, gallery),
        _commands(runs),
        _settings(runs),
        _environments(runs),
    ]
    for name, chapter in zip(CHAPTERS, chapters):
        parts += [html.heading(2, name, name.lower()), *chapter]
    return html.document(title, parts)


def _read_scenes(runs: Sequence[ScoredRun]) -> Tuple[Dict[Path, Scenes], List[str]]:
    """Scenes by the folder of their run, and a note on each that is not of the scored checkpoint."""
    scenes, notes = {}, []
    for run in runs:
        path = run.run.folder / SCENES
        if path.is_file():
            scenes[run.run.folder] = found = read_scenes(path)
            mean, scored = float(found.ari_fg.mean()), run.scores.get("ari_fg")
            if scored is not None and abs(mean - scored) > 1e-3:
                notes.append(
                    f"{run_name(run)}: the scenes' mean ARI_fg is {100 * mean:.2f}, that of metrics.json "
                    f"{100 * scored:.2f}. They are of two checkpoints: evaluate again."
                )
    return scenes, notes


def _scores(runs: Sequence[ScoredRun], notes: Sequence[str]) -> List[str]:
    parts = [html.paragraph(SCORES_NOTE)]
    if any(run.chosen("msf/preset") for run in runs):
        parts.append(html.paragraph(PRESET_NOTE, "note"))
    for experiment, found in experiments(runs):
        parts += [html.heading(3, experiment), html.table(score_table(experiment, found))]
        shared, last = shared_settings(found), protocol_table(experiment, found)
        parts += [html.paragraph("All with", "soft", shared)] if shared else []
        parts += [html.paragraph(f"{name}:", "soft", long) for long, name in long_settings(found).items()]
        parts += [html.folded("Mean and best of every run's last checkpoints", [html.table(last)])] if last else []
        every = [html.table(seed_table(experiment, found)), html.paragraph(SPEED_NOTE, "soft")]
        parts.append(html.folded("Every run", every))
    for run in runs:
        if not run.run.finished:
            notes = [*notes, f"{run_name(run)}: training is at step {run.run.step} of {run.run.max_steps}."]
        notes = [*notes, *(f"{run_name(run)}: no {file}." for file, _ in missing_of(run))]
    if notes:
        how = "What is not there can be made by the commands below, or by --evaluate where training has finished."
        parts.append(html.folded(f"Not complete: {len(notes)} notes", [html.paragraph(how), html.code(notes, True)]))
    return parts


def _figures(runs: Sequence[ScoredRun], scenes: Dict[Path, Scenes]) -> List[str]:
    """The figures of every experiment that has what they need."""
    parts: List[str] = []
    for experiment, found in experiments(runs):
        rows = name_rows(found)
        mine = _scene_figures(experiment, rows, scenes) + _log_figures(experiment, rows) + _guidance(experiment, rows)
        parts += [html.heading(3, experiment), *mine] if mine else []
    return parts or [html.paragraph("These runs have left nothing to draw.")]


def _scene_figures(experiment: str, rows: Rows, scenes: Dict[Path, Scenes]) -> List[str]:
    """Segmentations and scores of scenes."""
    having = {name: [scenes[run.run.folder] for run in same if run.run.folder in scenes] for name, same in rows}
    having = {name: found for name, found in having.items() if found}
    if not having:
        return []
    text = (
        "Segmentations of the same scenes, from the best to the worst of their mean over the rows. A segment has the "
        "colour of the true one that it overlaps best. Of every row the first seed."
    )
    shown = {name: found[0] for name, found in having.items()}
    parts = [_plot(f"Segmentations, {experiment}", text, draw_segmentations, shown)]
    text = "How many of the validation scenes reach a score, all seeds together: to the right and up is better."
    scores = {name: [one.ari_fg for one in found] for name, found in having.items()}
    return [*parts, _plot(f"Scores of scenes, {experiment}", text, draw_ranking, scores)]


def _log_figures(experiment: str, rows: Rows) -> List[str]:
    """Training curves and the use of codebooks."""
    logs = {name: [run.log for run in same if run.log] for name, same in rows}
    logs = {name: found for name, found in logs.items() if found}
    logged = {name for found in logs.values() for log in found for name in log}
    curves, parts = [name for name in CURVES if name in logged], []
    if curves:
        text = "Training: thin lines are seeds, the thick one is their mean, as far as all of them have come."
        parts.append(_plot(f"Training curves, {experiment}", text, draw_curves, logs, curves))
    if any(map(BOOK.match, logged)):
        text = (
            "Use of the codebooks in training batches: perplexity, codes that no super-pixel takes, and how often "
            "which scale wins the vote. “scale n” is the scale-variant codebook of that scale."
        )
        parts.append(_plot(f"Use of codebooks, {experiment}", text, draw_codebooks, logs))
    return parts


def _guidance(experiment: str, rows: Rows) -> List[str]:
    """The guidance maps of every image that the first run of each row has kept."""
    paths = {name: [run.run.folder / GUIDANCE for run in same] for name, same in rows}
    paths = {name: [path for path in found if path.is_file()] for name, found in paths.items()}
    models = {name: read_guidance(found[0]) for name, found in paths.items() if found}
    parts = []
    for image in dict.fromkeys(image for kept in models.values() for image in kept):
        text = (
            f"What the VAE makes of scene {image}: colours are the first three principal components; a code has the "
            "same colour in both columns of scale-invariant codes, at all scales. Of every row the first seed."
        )
        maps = {name: kept[image] for name, kept in models.items() if image in kept}
        parts.append(_plot(f"Guidance maps of scene {image}, {experiment}", text, draw_maps, maps))
    return parts


def _plot(title: str, text: str, draw: Callable, *content: object) -> str:
    """A figure that a function writes from what it shows; a note instead if it cannot."""
    with tempfile.TemporaryDirectory() as folder:
        try:
            draw(*content, Path(folder) / "figure.png")
        except DataError as error:
            return html.paragraph(f"{title}: {error}", "note")
        return html.plot((Path(folder) / "figure.png").read_bytes(), f"{title}. {text}", text)


def _galleries(runs: Sequence[ScoredRun], scenes: Dict[Path, Scenes], count: int) -> List[str]:
    """A gallery of every row that has scenes, of its first seed: the first one open."""
    text = "Input, true segments and predicted segments, sorted by ARI_fg, the failures included."
    parts: List[str] = []
    for experiment, found in experiments(runs):
        for name, same in name_rows(found):
            for run in [run for run in same if run.run.folder in scenes][:1]:
                of_run = scenes[run.run.folder]
                title = f"{experiment}, {name}, seed {run.seed}: mean ARI_fg {100 * of_run.ari_fg.mean():.1f}"
                parts.append(html.folded(title, _gallery(of_run, count), is_open=not parts))
    if not parts:
        return [html.paragraph(f"No run has {SCENES}: --evaluate makes it.")]
    return [html.paragraph(text), *parts]


def _gallery(scenes: Scenes, count: int) -> List[str]:
    ranking, number = scenes.ranking, len(scenes.ranking)
    count = min(count, number)
    start = (number - count) // 2
    chosen = [("Best", range(count)), ("Middle", range(start, start + count)), ("Worst", range(number - count, number))]
    if number <= 3 * count:
        chosen = [("All", range(number))]
    parts = []
    for title, places in chosen:
        pictures = []
        for place in places:
            score, picture = ranking[place]
            name = f"scene {scenes.shown[picture]}, place {place + 1} of {number}"
            alternative = f"Input, true and predicted segments of {name}: ARI_fg {100 * score:.1f}"
            pictures.append(html.scene(scene_strip(scenes, picture), alternative, f"ARI_fg {100 * score:.1f}", name))
        parts += [html.heading(3, title), '<div class="scenes">', *pictures, "</div>"]
    return ["<div>", *parts, "</div>"]


def _commands(runs: Sequence[ScoredRun]) -> List[str]:
    """What makes every row again, stage 1 of a row before its stage 2."""
    text = (
        "The last folder of a run's path is the time when it started: a new run gets another one. Stage 2 needs stage "
        "1 of its variant and seed first."
    )
    parts = [html.paragraph(text)]
    for experiment, found in reversed(experiments(runs)):
        for name, same in name_rows(found):
            lines = [line for run in same for line in commands(run)]
            seeds = f"{len(same)} seed" + "s" * (len(same) != 1)
            parts.append(html.folded(f"{experiment}, {name}: {seeds}", [html.code(lines, True)]))
    return parts


def _settings(runs: Sequence[ScoredRun]) -> List[str]:
    """Overrides and the full configuration of every run."""
    parts = []
    for run in runs:
        config = (run.run.folder / "config" / "config.yaml").read_text(encoding="utf-8")
        whole = html.folded("Full configuration", [html.code(relative(config).splitlines())])
        parts.append(html.folded(run_name(run), [html.code([*map(relative, run.overrides)], True), whole]))
    return parts


def _environments(runs: Sequence[ScoredRun]) -> List[str]:
    """Versions and devices, and which run had which."""
    without = sum(not read_environment(run.run.folder) for run in runs)
    text = f"Recorded when training started by {len(runs) - without} of {len(runs)} runs."
    if without == len(runs):
        text = "These runs have none recorded: what follows is where this report was made."
    of_runs = html.folded("Environment of every run", [html.table(environment_runs(runs))])
    return [html.paragraph(text), html.table(environment_table(runs), wrap=True), of_runs]
