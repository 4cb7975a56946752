"""The pictures of the report: figures of every experiment, and galleries of scenes from the best to the worst."""

import base64
import io
import tempfile
from pathlib import Path
from typing import Callable, Dict, List, NamedTuple, Sequence

import numpy as np
from PIL import Image

from ocl_msf.experiments.runs import Run
from ocl_msf.files import DataError
from ocl_msf.results.figures.confidence import FILE as CONFIDENCE
from ocl_msf.results.figures.confidence import draw_confidence, read_matches
from ocl_msf.results.figures.curves import BOOK, CURVES, draw_codebooks, draw_curves, draw_ranking
from ocl_msf.results.figures.guidance_maps import FILE as GUIDANCE
from ocl_msf.results.figures.guidance_maps import draw_maps, read_guidance
from ocl_msf.results.figures.segmentations import FILE as SCENES
from ocl_msf.results.figures.segmentations import Scenes, draw_segmentations, read_scenes, scene_strip
from ocl_msf.results.rows import RunRow, by_experiment, name_rows

SHARPNESS = 1.4  # pixels of a figure for each pixel of the page


class Plot(NamedTuple):
    """A figure as base64 of a PNG and its width in the page; without them `text` says why it cannot be drawn."""

    title: str
    text: str
    png: str = ""
    width: int = 0


class Picture(NamedTuple):
    """A scene of a gallery: base64 of a PNG, its score and its name."""

    png: str
    score: str
    name: str


class Gallery(NamedTuple):
    """Scenes of a run, by the heading of their group."""

    title: str
    groups: Dict[str, List[Picture]]


def figures(runs: Sequence[Run]) -> Dict[str, List[Plot]]:
    """The figures of every experiment that has what they need.

    Raises:
        DataError: a file of a run is damaged.
    """
    plots = {}
    for experiment, same in by_experiment(runs).items():
        rows = name_rows(same)
        parts = _scene_plots, _log_plots, _maps, _confidence
        plots[experiment] = [plot for part in parts for plot in part(experiment, rows)]
    return {experiment: made for experiment, made in plots.items() if made}


def _scene_plots(experiment: str, rows: Sequence[RunRow]) -> List[Plot]:
    """Segmentations and scores of scenes."""
    paths = {row.name: [run.folder / SCENES for run in row.runs] for row in rows}
    scenes = {name: [read_scenes(path) for path in its if path.is_file()] for name, its in paths.items()}
    scenes = {name: seeds for name, seeds in scenes.items() if seeds}
    if not scenes:
        return []
    text = (
        "Segmentations of the same scenes, from the best to the worst of their mean over the rows. A segment has the "
        "colour of the true one that it is matched to. Each row shows its first seed."
    )
    first = {name: seeds[0] for name, seeds in scenes.items()}
    plots = [_plot(f"Segmentations, {experiment}", text, draw_segmentations, first)]
    text = "How many of the validation scenes reach a score, all seeds together: further right and up is better."
    scores = {name: [[*one.scores.values()] for one in seeds] for name, seeds in scenes.items()}
    scores = {name: seeds for name, seeds in scores.items() if any(seeds)}
    return [*plots, _plot(f"Scores of scenes, {experiment}", text, draw_ranking, scores)] if scores else plots


def _log_plots(experiment: str, rows: Sequence[RunRow]) -> List[Plot]:
    """Training curves and the use of codebooks."""
    logs = {row.name: [run.log for run in row.runs if run.log] for row in rows}
    logs = {name: seeds for name, seeds in logs.items() if seeds}
    logged = {name for seeds in logs.values() for log in seeds for name in log}
    curves, plots = [name for name in CURVES if name in logged], []
    if curves:
        text = "Training: thin lines are seeds, the thick line is their mean as far as all of them have got."
        plots.append(_plot(f"Training curves, {experiment}", text, draw_curves, logs, curves))
    if any(map(BOOK.match, logged)):
        text = (
            "Use of the codebooks in training batches: perplexity, codes that no super-pixel takes, and how often "
            "each scale wins the vote. “scale n” is the scale-variant codebook of that scale."
        )
        plots.append(_plot(f"Use of codebooks, {experiment}", text, draw_codebooks, logs))
    return plots


def _maps(experiment: str, rows: Sequence[RunRow]) -> List[Plot]:
    """The guidance maps of every image that the first run of each row has kept."""
    models = {name: read_guidance(path) for name, path in _first(rows, GUIDANCE).items()}
    text = (
        "Guidance by the VAE: colours are the first three principal components; a code has the same colour in both "
        "columns of scale-invariant codes, at all scales. Each row shows its first seed."
    )
    plots = []
    for image in dict.fromkeys(image for kept in models.values() for image in kept):
        maps = {name: kept[image] for name, kept in models.items() if image in kept}
        plots.append(_plot(f"Guidance maps of scene {image}, {experiment}", text, draw_maps, maps))
    return plots


def _confidence(experiment: str, rows: Sequence[RunRow]) -> List[Plot]:
    """Confidence against match quality, of the first run of each row that has it."""
    models = {name: read_matches(path) for name, path in _first(rows, CONFIDENCE).items()}
    models = {name: matches for name, matches in models.items() if matches}
    text = (
        "Confidence of matches (Eq. 1) against their quality: rising clouds mean that the scale that wins the vote is "
        "the one that is represented best. Above each, Pearson's r of what is drawn. Each row shows its first seed."
    )
    return [_plot(f"Confidence of matches, {experiment}", text, draw_confidence, models)] if models else []


def _first(rows: Sequence[RunRow], file: str) -> Dict[str, Path]:
    """A file of the first run of each row that has it."""
    paths = {row.name: [run.folder / file for run in row.runs if (run.folder / file).is_file()] for row in rows}
    return {name: its[0] for name, its in paths.items() if its}


def _plot(title: str, text: str, draw: Callable, *content: object) -> Plot:
    """A figure drawn from its content; without a picture if it cannot be drawn."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "figure.png"
        try:
            draw(*content, path)
        except DataError as error:
            return Plot(title, str(error))
        with Image.open(path) as picture:
            width = round(picture.width / SHARPNESS)
        return Plot(title, text, _base64(path.read_bytes()), width)


def galleries(runs: Sequence[Run], count: int) -> List[Gallery]:
    """A gallery of every row that has scenes, of its first seed: `count` of the best, of the middle and of the worst.

    Raises:
        DataError: a file of a run is damaged.
    """
    made = []
    for experiment, same in by_experiment(runs).items():
        for name, seeds in name_rows(same):
            for run in [run for run in seeds if (run.folder / SCENES).is_file()][:1]:
                scenes = read_scenes(run.folder / SCENES)
                title = f"{experiment}, {name}, seed {run.seed}: mean ARI_fg {100 * scenes.mean:.1f}"
                made.append(Gallery(title, _groups(scenes, count)))
    return made


def _groups(scenes: Scenes, count: int) -> Dict[str, List[Picture]]:
    number = len(scenes.ranking)
    middle = (number - count) // 2
    places = {"Best": range(count), "Middle": range(middle, middle + count), "Worst": range(number - count, number)}
    if number <= 3 * count:
        places = {"All": range(number)}
    return {heading: [_picture(scenes, place) for place in group] for heading, group in places.items()}


def _picture(scenes: Scenes, place: int) -> Picture:
    score, index = scenes.ranking[place]
    name = f"scene {scenes.shown[index]}, place {place + 1} of {len(scenes.ranking)}"
    return Picture(_encode(scene_strip(scenes, index)), f"ARI_fg {100 * score:.1f}", name)


def _encode(picture: np.ndarray) -> str:
    with io.BytesIO() as file:
        Image.fromarray(picture).save(file, "png", optimize=True)
        return _base64(file.getvalue())


def _base64(png: bytes) -> str:
    return base64.b64encode(png).decode("ascii")
