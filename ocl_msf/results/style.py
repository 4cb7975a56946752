"""The look of figures: one palette that is safe for colour-blind readers, small type, no clutter.

The same input gives the same bytes: nothing is drawn at random, and no file holds a date.
"""

from pathlib import Path
from typing import Mapping, Optional, Sequence, Tuple

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from scipy.optimize import linear_sum_assignment

from ocl_msf.files import replacing

LINES = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#555555"]  # Okabe and Ito, 2008
DASHES = ["-", (0, (5, 1.5)), (0, (1, 1)), (0, (4, 1, 1, 1)), (0, (7, 2)), (0, (3, 1, 1, 1, 1, 1)), (0, (2, 2))]
SEGMENTS = [
    *("#56B4E9", "#E69F00", "#009E73", "#CC79A7", "#F0E442", "#0072B2", "#D55E00"),
    *("#882255", "#88CCEE", "#999933", "#332288", "#DDDDDD", "#44AA99", "#AA4466", "#117733"),  # Tol's muted ones
]
BACKGROUND = "#33383D"
DPI = 160
STYLE = {
    "font.size": 8,
    "axes.titlesize": 8.5,
    "axes.labelsize": 8,
    "xtick.labelsize": 7,
    "ytick.labelsize": 7,
    "legend.fontsize": 7.5,
    "legend.frameon": False,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.6,
    "axes.edgecolor": "#666666",
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "grid.color": "#DDDDDD",
    "grid.linewidth": 0.5,
}


def new_figure(width: float, height: float) -> Figure:
    """An empty figure of this size in inches, laid out so that nothing is cut off."""
    return Figure(figsize=(width, height), layout="constrained")


def save(figure: Figure, path: Path) -> None:
    """Write a figure as PNG; the file appears when it is complete.

    Raises:
        DataError: it cannot be written there.
    """
    with replacing(path) as file:
        figure.savefig(file, format="png", dpi=DPI)


def show(axis: Axes, picture: np.ndarray, title: str = "", below: str = "", left: str = "") -> None:
    """Show a picture (h, w, 3) in [0, 1] or uint8, without ticks."""
    axis.imshow(picture, interpolation="nearest")
    axis.set_xticks([])
    axis.set_yticks([])
    for spine in axis.spines.values():
        spine.set_visible(False)
    axis.set_title(title, pad=4)
    axis.set_xlabel(below, labelpad=2)
    axis.set_ylabel(left, labelpad=4)


def picture_grid(
    rows: Mapping[str, Sequence[np.ndarray]], width: float, height: float, margin: float = 0
) -> Tuple[Figure, np.ndarray]:
    """Arrange pictures in a grid, with a labelled row for each kind.

    Args:
        rows: pictures (h, w, 3), the same number for each label.
        width: inches of a column.
        height: inches of a row.
        margin: inches to the left.

    Returns:
        The figure, and its axes (rows, columns).
    """
    columns = len(next(iter(rows.values())))
    figure = new_figure(margin + width * columns, height * len(rows))
    axes = figure.subplots(len(rows), columns, squeeze=False)
    for line, (label, pictures) in zip(axes, rows.items()):
        for axis, picture in zip(line, pictures):
            show(axis, picture, left=label if axis is line[0] else "")
    return figure, axes


def to_pixels(image: torch.Tensor) -> np.ndarray:
    """An image (3, h, w) in [-1, 1] as (h, w, 3), uint8."""
    scaled = (image.detach().float().cpu().permute(1, 2, 0).numpy() + 1) * 127.5
    return scaled.round().clip(0, 255).astype(np.uint8)


def enlarge(picture: np.ndarray, size: int) -> np.ndarray:
    """Repeat the pixels of (h, w, ...) until the shorter side has at least `size`."""
    times = max(1, -(-size // min(picture.shape[:2])))
    return picture.repeat(times, 0).repeat(times, 1)


def match_segments(segments: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """Renumber the segments of a map (h, w), each with the number of the reference's segment that it is matched to.

    The matching maximizes the total overlap (Hungarian matching); segments without a match get new numbers.
    """
    names, inverse = np.unique(segments, return_inverse=True)
    known, target = np.unique(reference, return_inverse=True)
    overlap = np.zeros((len(names), len(known)))
    np.add.at(overlap, (inverse.ravel(), target.ravel()), 1)
    rows, columns = linear_sum_assignment(-overlap)
    numbers = np.arange(len(names)) + int(known.max()) + 1
    numbers[rows] = known[columns]
    return numbers[inverse].reshape(segments.shape)


def segment_palette() -> np.ndarray:
    """The colour of every number of a segment as `paint_segments` gives it, (256, 3) uint8; 255 is white."""
    names = [BACKGROUND, *(SEGMENTS[number % len(SEGMENTS)] for number in range(254)), "#FFFFFF"]
    return (np.array([to_rgb(name) for name in names]) * 255).round().astype(np.uint8)


def paint_segments(segments: np.ndarray, reference: Optional[np.ndarray] = None, size: int = 256) -> np.ndarray:
    """Colour segments, with a white line between neighbours, so that shapes can be told apart without colours.

    Args:
        segments: numbers (h, w); 0 is dark grey.
        reference: a map (h, w) whose colours the segments take, see `match_segments`.
        size: least length of the shorter side of the result; pixels are repeated.

    Returns:
        (h', w', 3), uint8.
    """
    numbers = segments.astype(np.int64) if reference is None else match_segments(segments, reference)
    large = enlarge(numbers, size)
    colors = np.array([to_rgb(name) for name in SEGMENTS])[(large - 1) % len(SEGMENTS)]
    colors = np.where(large[..., None] == 0, to_rgb(BACKGROUND), colors)
    border = np.zeros(large.shape, bool)
    border[:, 1:] |= large[:, 1:] != large[:, :-1]
    border[1:] |= large[1:] != large[:-1]
    return (np.where(border[..., None], 1.0, colors) * 255).round().astype(np.uint8)
