"""Swap or drop slots of two images, and decode what is left; the command is `ocl-msf edit`."""

from pathlib import Path
from typing import Sequence, Tuple, Union

import numpy as np
from matplotlib import rc_context

from ocl_msf.inference.generation import Sampling
from ocl_msf.inference.loading import load
from ocl_msf.inference.model import Result
from ocl_msf.results.style import STYLE, enlarge, paint_segments, picture_grid, save, to_pixels

MOST_PROBABLE = Sampling()


def edit(result: Result, swaps: Sequence[Tuple[int, int]] = (), drops: Sequence[int] = ()) -> Result:
    """Exchange slots of two images, then drop slots of the first; the others keep their numbers.

    Args:
        result: of two images.
        swaps: (slot of the first image, slot of the second) each, counted from 0.
        drops: slots of the first image.

    Raises:
        ValueError: there is no such slot, it is swapped twice, or none would be left.
    """
    for side in zip(*swaps):
        if len(set(side)) < len(side):
            raise ValueError("A slot can be swapped only once.")
    for a, b in swaps:
        result = result.swap((0, a), (1, b))
    return result.drop(*drops, picture=0)


@rc_context(STYLE)
def draw(result: Result, edited: Result, path: Path, sampling: Sampling = MOST_PROBABLE) -> None:
    """Write a picture with a column for each image: input, numbered slots, decoded before and after the edit.

    Raises:
        DataError: the file cannot be written, or the model reconstructs no images.
    """
    masks = [enlarge(mask, 256) for mask in result.scores.argmax(1).cpu().numpy()]
    how, options = sampling.describe(result.model.models["decoder"]), vars(sampling)
    images = {
        "input": result.inputs,
        f"from slots\n{how}": result.reconstruct(**options),
        "edited": edited.reconstruct(**options),
    }
    pixels = {label: [to_pixels(2 * image - 1) for image in its] for label, its in images.items()}
    pictures = {"input": pixels.pop("input"), "slots": list(map(paint_segments, masks)), **pixels}
    figure, axes = picture_grid(pictures, 2.5, 2.5)
    for axis, mask in zip(axes[1], masks):
        for slot in np.unique(mask):
            positions = np.argwhere(mask == slot)
            y, x = positions[np.abs(positions - positions.mean(0)).sum(1).argmin()]  # the pixel next to the centre
            axis.text(x, y, str(slot), ha="center", va="center", color="white", bbox={"facecolor": "black"})
    save(figure, path)


def edit_pictures(
    run: Union[str, Path],
    pictures: Sequence[Path],
    swaps: Sequence[Tuple[int, int]] = (),
    drops: Sequence[int] = (),
    out: Path = Path("edit.png"),
    sampling: Sampling = MOST_PROBABLE,
) -> int:
    """Edit the slots of the central squares of two pictures, and draw what the model's decoder makes of them.

    Args:
        run: a model, see `ocl_msf.load`.
        pictures: two files.
        swaps, drops: see `edit`.
        out: the PNG.
        sampling: how the decoder chooses codes.

    Returns:
        The side of the model's images in pixels.

    Raises:
        DataError, FileNotFoundError, ValueError: see `ocl_msf.load`, `edit` and `draw`.
    """
    result = load(run)(list(pictures))
    draw(result, edit(result, swaps, drops), out, sampling)
    return result.inputs.shape[-1]
