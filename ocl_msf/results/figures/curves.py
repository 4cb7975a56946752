"""Curves: losses and scores over training, the use of codebooks, and the distribution of scores over scenes."""

import math
import re
from pathlib import Path
from typing import List, Mapping, Sequence, Tuple

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from ocl_msf.experiments.logs import Log
from ocl_msf.files import DataError
from ocl_msf.results.style import DASHES, LINES, STYLE, new_figure, save

Line = Sequence[Tuple[float, float]]
NAMES = {"ari": "ARI", "ari_fg": "ARI_fg", "miou": "mIoU", "mbo": "mBO", "loss_total": "loss"}
SPLITS = {"val": "validation", "train": "training"}
CURVES = ("val/ari_fg", "val/ari", "val/miou", "val/mbo", "val/reconstruction", "train/reconstruction")
BOOK = re.compile(r"codebooks/(codebooks?(?:\.\d+)?)\.perplexity$")


@rc_context(STYLE)
def draw_curves(models: Mapping[str, Sequence[Log]], names: Sequence[str], path: Path) -> None:
    """Write training curves as PNG: a panel for each name, a colour for each model.

    A model of several runs (seeds) has a thin line for each of them, and a thick line for their mean.

    Args:
        models: logs of a model's runs, by its label in the legend.
        names: of scalars, such as "val/ari_fg"; scores are drawn in percent.
        path: the file.

    Raises:
        DataError: no run has logged one of the names (the message lists what there is), or the file cannot be written.
    """
    known = sorted({name for logs in models.values() for log in logs for name in log})
    missing = [name for name in names if name not in known]
    if missing:
        raise DataError(f"No run has logged {', '.join(missing)}. There are: {', '.join(known) or 'none'}.")
    columns = 2 if len(names) == 4 else min(len(names), 3)
    rows = -(-len(names) // columns)
    figure = new_figure(2.5 * columns + 0.2, 2.0 * rows + 0.3)
    axes = list(figure.subplots(rows, columns, squeeze=False).flat)
    for axis, name in zip(axes, names):
        split, _, metric = name.partition("/")
        scale = 100 if metric in ("ari", "ari_fg", "miou", "mbo") else 1
        for number, (label, logs) in enumerate(models.items()):
            _plot(axis, _lines(logs, name, scale), label, number)
        title = f"{NAMES.get(metric, metric)}, {SPLITS.get(split, split)}" + (" (%)" if scale > 1 else "")
        _finish(axis, title, "step", logarithmic=scale == 1)
    for axis in axes[len(names) :]:
        axis.set_axis_off()
    _legend(figure, axes[: len(names)])
    save(figure, path)


@rc_context(STYLE)
def draw_codebooks(models: Mapping[str, Sequence[Log]], path: Path) -> None:
    """Write the use of codebooks over training as PNG: perplexity, dead codes, and how often each scale wins.

    A column for each model, a line for each codebook: for a fusion, the scale-invariant codebook and the scale-variant
    codebook of each scale. Several runs (seeds) are drawn as in `draw_curves`.

    Args:
        models: logs of a model's runs of stage 1, by its name; those without a logged codebook are left out.
        path: the file.

    Raises:
        DataError: no run has logged a codebook, or the file cannot be written.
    """
    models = {label: logs for label, logs in models.items() if any(BOOK.match(name) for log in logs for name in log)}
    if not models:
        raise DataError("No run has logged the use of its codebooks; runs of stage 1 do.")
    won = any("codebooks/won.scale_1" in log for logs in models.values() for log in logs)
    panels = ["perplexity (codes)", "dead codes", "super-pixels won (%)"][: 2 + won]
    figure = new_figure(0.4 + 1.9 * max(len(models), 2), 1.65 * len(panels) + 0.3)
    axes = figure.subplots(len(panels), len(models), squeeze=False)
    for line, (label, logs) in zip(axes.T, models.items()):
        for name, book in _codebooks(logs).items():
            for axis, quantity in zip(line, ("perplexity", "dead")):
                _plot(axis, _lines(logs, f"codebooks/{name}.{quantity}"), *book)
        for scale in range(1, 1 + len(LINES)):
            _plot(line[-1], _lines(logs, f"codebooks/won.scale_{scale}", 100), f"scale {scale}", scale)
        used = [axis for axis in line if axis.lines]
        for axis in used:
            _finish(axis, label if axis is line[0] else "", "step" if axis is used[-1] else "")
    for line, title in zip(axes, panels):
        for axis in [axis for axis in line if axis.lines][:1]:
            axis.set_ylabel(title)
    for axis in [axis for axis in axes.flat if not axis.lines]:
        axis.set_axis_off()
    _legend(figure, list(axes.flat))
    save(figure, path)


@rc_context(STYLE)
def draw_ranking(models: Mapping[str, Sequence[Sequence[float]]], path: Path) -> None:
    """Write the distribution of scores over scenes as PNG: the share of scenes with at least a score, for each model.

    Args:
        models: scores (0 to 1) of the scenes, a list for each run, by the model's name.
        path: the file.

    Raises:
        DataError: the file cannot be written.
    """
    figure = new_figure(4.4, 2.5)
    axis = figure.subplots()
    for number, (label, runs) in enumerate(models.items()):
        scores = np.sort(100 * np.concatenate([np.asarray(run, float) for run in runs]))[::-1]
        share = 100 * np.arange(1, len(scores) + 1) / len(scores)
        style = {"color": LINES[number % len(LINES)], "linestyle": DASHES[number % len(DASHES)]}
        axis.plot(scores, share, label=f"{label} (mean {scores.mean():.1f})", linewidth=1.4, **style)
    _finish(axis, "", "ARI_fg of a scene (%)")
    axis.set_xlim(min([0, *(x for line in axis.lines for x in line.get_xdata())]) - 1, 101)
    axis.set_ylabel("share of scenes with\nthat score or more (%)")
    _legend(figure, [axis])
    save(figure, path)


def _codebooks(logs: Sequence[Log]) -> Mapping[str, Tuple[str, int]]:
    """Label and line number of every logged codebook; the first codebook of a fusion is the scale-invariant one."""
    names = sorted({match.group(1) for log in logs for match in map(BOOK.match, log) if match})
    fused = any("codebooks/won.scale_1" in log for log in logs)
    if fused:
        return {name: (f"scale {n}" if n else "scale-invariant", n) for n, name in enumerate(names)}
    if len(names) == 1:
        return {names[0]: ("the only codebook", 6)}
    return {name: (f"codebook {n}", 6 - n) for n, name in enumerate(names, 1)}


def _lines(logs: Sequence[Log], name: str, scale: float = 1) -> List[Line]:
    """The points of each log, without those that are not finite; logs that have none are left out."""
    lines = [[(event[0], scale * event[1]) for event in log.get(name, ())] for log in logs]
    return [finite for line in lines for finite in [[point for point in line if math.isfinite(point[1])]] if finite]


def _plot(axis: Axes, lines: Sequence[Line], label: str, number: int) -> None:
    """Draw the lines of several runs thinly, and their mean at the steps that all of them have."""
    style = {"color": LINES[number % len(LINES)]}
    if len(lines) > 1:
        for line in lines:
            axis.plot(*zip(*line), linewidth=0.6, alpha=0.45, **style)
        common = sorted(set.intersection(*({x for x, _ in line} for line in lines)))
        values = [dict(line) for line in lines]
        lines = [[(x, float(np.mean([run[x] for run in values]))) for x in common]] if common else []
    for line in lines:
        marker = "o" if len(line) <= 12 else ""
        dashes = DASHES[number % len(DASHES)]
        axis.plot(*zip(*line), label=label, linewidth=1.4, linestyle=dashes, marker=marker, markersize=3, **style)


def _finish(axis: Axes, title: str, below: str, logarithmic: bool = False) -> None:
    """Add grid, titles and few ticks; the axis starts at 0, or is logarithmic over a wide range (the title says so)."""
    axis.grid(True)
    axis.set_axisbelow(True)
    axis.xaxis.set_major_locator(MaxNLocator(4, steps=[1, 2, 2.5, 5, 10]))
    axis.set_xlim(left=0)
    axis.set_xlabel(below)
    values = [y for line in axis.lines for y in line.get_ydata()]
    if logarithmic and values and min(values) > 0 and max(values) > 10 * min(values):
        axis.set_yscale("log")
        title += ", log scale"
    elif values:
        axis.yaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 2.5, 5, 10]))
        if min(values) >= 0:
            axis.set_ylim(0, 1.08 * max(values) or 1)
    axis.set_title(title)


def _legend(figure: Figure, axes: Sequence[Axes]) -> None:
    """One legend for all panels, below them."""
    handles = {label: handle for axis in axes for handle, label in zip(*axis.get_legend_handles_labels())}
    if handles:
        width = 0.5 + 0.06 * max(map(len, handles))  # inches of a line and its longest label
        columns = max(1, min(len(handles), 4, int(figure.get_figwidth() / width)))
        figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=columns, handlelength=2.6)
