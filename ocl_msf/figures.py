"""Figures: guidance maps (Fig. 3), segmentations of several models side by side (Fig. 2), training curves.

The same input gives the same bytes: nothing is drawn at random, and no file holds a date.
"""

from pathlib import Path
from typing import Dict, List, Mapping, Sequence, Tuple

import numpy as np
import torch
from matplotlib import colormaps
from matplotlib.figure import Figure
from torch import nn

from ocl_msf.visualizations import draw_sheet, paint, recolour

Pictures = Dict[str, List[np.ndarray]]


def color_features(features: torch.Tensor) -> np.ndarray:
    """Colour the super-pixels of one map by their first three principal components.

    Args:
        features: (c, h, w).

    Returns:
        (h, w, 3) in [0, 1], every component over its whole range; 0.5 where a component does not vary.
    """
    rows = features.detach().double().cpu().flatten(1).T.numpy()
    rows = rows - rows.mean(0)
    _, spread, axes = np.linalg.svd(rows, full_matrices=False)
    axes = axes[:3] * (spread[:3] > 1e-9 * max(spread[0], 1e-30))[:, None]
    largest = np.abs(axes).argmax(1)
    axes = axes * np.where(axes[np.arange(len(axes)), largest] < 0, -1, 1)[:, None]  # signs are arbitrary: fix them
    colors = np.full((len(rows), 3), 0.5)
    for column, values in enumerate((rows @ axes.T).T):
        low, high = values.min(), values.max()
        if high > low:
            colors[:, column] = (values - low) / (high - low)
    return colors.reshape(*features.shape[1:], 3)


def guidance_maps(vae: nn.Module, image: torch.Tensor) -> Pictures:
    """Draw what a VAE makes of one image, scale by scale (section 4.2, Fig. 3).

    Args:
        vae: `ocl_msf.autoencoder.VQVAE`, in evaluation mode.
        image: (3, h, w) in [-1, 1].

    Returns:
        N pictures (h_n, w_n, 3) under each name: "X^si before fusion", "X^si after fusion", "X^sv" and "X", as far as
        the VAE has these, coloured by `color_features`, each map on its own; and "winning scale", the finest darkest.
    """
    with torch.no_grad():
        output = vae.encode(image.unsqueeze(0))
    maps = {"X": output.quantized}
    if hasattr(vae.quantizer, "parts"):
        parts = vae.quantizer.parts(output)
        names = {"X^si before fusion": parts.unfused, "X^si after fusion": parts.invariant, "X^sv": parts.variant}
        maps = {name: found for name, found in {**names, "X": parts.quantized}.items() if found is not None}
    pictures = {name: [color_features(scale[0]) for scale in found] for name, found in maps.items()}
    if "winners" in output.readouts:
        shades = colormaps["viridis"].resampled(max(len(output.quantized), 2))
        winners = [winner[0].cpu().numpy() for winner in output.readouts["winners"]]
        pictures["winning scale"] = [shades(winner)[..., :3] for winner in winners]
    return pictures


def draw_maps(image: torch.Tensor, pictures: Pictures, path: Path) -> None:
    """Write one image (3, h, w) in [-1, 1] and its `guidance_maps` as PNG: columns of a kind, rows of a scale."""
    scales = len(pictures["X"])
    figure = Figure(figsize=(1.5 * (1 + len(pictures)), 1.65 * scales + 0.3), dpi=110)
    axes = figure.subplots(scales, 1 + len(pictures), squeeze=False)
    for row in range(scales):
        shown = [_pixels(image)[:: 2**row, :: 2**row]] + [kind[row] for kind in pictures.values()]
        for column, picture in enumerate(shown):
            axes[row, column].imshow(picture, interpolation="nearest")
            axes[row, column].set_xticks([])
            axes[row, column].set_yticks([])
        axes[row, 0].set_ylabel(f"scale {row + 1}")
    labels = {"X^si before fusion": "$X^{si}$, before", "X^si after fusion": "$X^{si}$, after", "X^sv": "$X^{sv}$"}
    for axis, title in zip(axes[0], ["input", *pictures]):
        axis.set_title(labels.get(title, title), fontsize=9)
    figure.tight_layout(pad=0.4)
    _write(figure, path)


class GuidanceSheet(nn.Module):
    """Evaluation module that draws the guidance maps of the first images it sees into `<folder>/guidance_<n>.png`.

    Args:
        folder: where the pictures go.
        num_images: how many.
    """

    def __init__(self, folder: str, num_images: int = 2):
        super().__init__()
        self.folder = Path(folder)
        self.num_images = num_images
        self.drawn = 0

    def forward(self, image: torch.Tensor, vae: nn.Module) -> int:
        """Take images (b, 3, h, w) in [-1, 1] until there are enough; returns how many have been drawn."""
        for one in image[: self.num_images - self.drawn]:
            self.drawn += 1
            draw_maps(one, guidance_maps(vae, one), self.folder / f"guidance_{self.drawn}.png")
        return self.drawn


def segmentation_grid(
    images: torch.Tensor, true_masks: torch.Tensor, masks: Mapping[str, torch.Tensor], path: Path
) -> None:
    """Write segmentations of the same images by several models as PNG (Fig. 2): a column each image, a row each model.

    Args:
        images: (b, 3, h, w) in [-1, 1].
        true_masks: (b, n, h, w), one-hot.
        masks: scores (b, k, h, w) of each model, by its name; a segment has the colour of the true segment that it
            overlaps best (Hungarian matching).
        path: the file.

    Raises:
        ValueError: a model has masks of other images or another size.
    """
    for name, found in masks.items():
        if (len(found), *found.shape[-2:]) != (len(images), *true_masks.shape[-2:]):
            raise ValueError(
                f"Masks of {name} {tuple(found.shape)} do not fit true masks {tuple(true_masks.shape)}: store those "
                "of the same images, at the size of the input."
            )
    columns = []
    for index, image in enumerate(images):
        true = true_masks[index].argmax(0).cpu().numpy()
        predicted = [found[index].argmax(0).cpu().numpy() for found in masks.values()]
        columns.append([_pixels(image), paint(true)] + [paint(recolour(p, true)) for p in predicted])
    draw_sheet(columns, ["input", "true masks", *masks], path)


def read_curves(folder: Path) -> Dict[str, List[Tuple[int, float]]]:
    """Read the scalars that a run has logged to TensorBoard.

    Args:
        folder: of the run.

    Returns:
        (step, value) by name, such as "val/ari_fg", in order; of a run that was continued, all of its parts.
    """
    curves: Dict[str, Dict[int, float]] = {}
    versions = sorted({path.parent for path in folder.glob("lightning_logs/*/events.out.tfevents.*")})
    if versions:  # what has logged to TensorBoard has it installed; the other figures do without
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    for version in versions:
        events = EventAccumulator(str(version), size_guidance={"scalars": 0}).Reload()
        for name in events.Tags()["scalars"]:
            curves.setdefault(name, {}).update((event.step, event.value) for event in events.Scalars(name))
    return {name: sorted(values.items()) for name, values in sorted(curves.items())}


def draw_curves(runs: Mapping[str, Path], names: Sequence[str], path: Path) -> None:
    """Write training curves as PNG: a panel for each name, a line for each run that has logged it.

    Args:
        runs: folders, by what the legend calls them.
        names: of scalars, such as "val/ari_fg".
        path: the file.

    Raises:
        ValueError: no run has logged one of the names; the message lists what there is.
    """
    curves = {label: read_curves(folder) for label, folder in runs.items()}
    for name in names:
        if not any(name in found for found in curves.values()):
            known = sorted({logged for found in curves.values() for logged in found})
            raise ValueError(f"No run has logged {name}. There are: {', '.join(known) or 'none'}.")
    figure = Figure(figsize=(3.6 * len(names), 2.8), dpi=110)
    for axis, name in zip(figure.subplots(1, len(names), squeeze=False)[0], names):
        for label, found in curves.items():
            if name in found:
                axis.plot(*zip(*found[name]), label=label, linewidth=1.2)
        axis.set_title(name, fontsize=9)
        axis.set_xlabel("step")
        axis.grid(alpha=0.3)
    figure.axes[0].legend(fontsize=7).set_in_layout(False)
    figure.tight_layout(pad=0.6)
    _write(figure, path)


def _pixels(image: torch.Tensor) -> np.ndarray:
    return ((image.detach().float().cpu().permute(1, 2, 0).numpy() + 1) / 2).clip(0, 1)


def _write(figure: Figure, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial.png")
    figure.savefig(partial)
    partial.replace(path)
