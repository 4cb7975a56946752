"""Guidance maps (section 4.2, Fig. 3): the quantized features of an image, scale by scale, before and after fusion."""

from pathlib import Path
from typing import Dict, List, Optional, Sequence

import numpy as np
import torch
from matplotlib import rc_context
from matplotlib.colors import to_rgb
from matplotlib.patches import Patch
from torch import nn

from ocl_msf.files import DataError, replacing
from ocl_msf.results.figures._saved import LowestRanks, frame_names, load_arrays, rank_of
from ocl_msf.results.style import STYLE, new_figure, save, show, to_pixels

Pictures = Dict[str, List[np.ndarray]]  # N pictures (h_n, w_n, 3), uint8, of each kind
FILE = "guidance.npz"
BEFORE, AFTER, VARIANT, FUSED, WINNERS = "X^si before fusion", "X^si after fusion", "X^sv", "X", "winning scale"
TITLES = {"input": "input", BEFORE: "$X^{si}$ before\nfusion", AFTER: "$X^{si}$ after\nfusion", VARIANT: "$X^{sv}$"}
TITLES.update({FUSED: "$X$", WINNERS: "winning\nscale"})
SCALES = ["#440154", "#21918C", "#FDE725", "#5EC962", "#3B528B"]  # of viridis, far apart in lightness


def color_features(maps: Sequence[torch.Tensor]) -> List[np.ndarray]:
    """Colour super-pixels by their first three principal components over all maps together.

    Args:
        maps: (c, h_n, w_n) each; equal vectors get equal colours, in whichever of the maps they are.

    Returns:
        (h_n, w_n, 3) in [0, 1] each, every component scaled to that range; 0.5 for a component that does not vary.
    """
    rows = torch.cat([m.detach().double().cpu().flatten(1) for m in maps], 1).T.numpy()
    rows = rows - rows.mean(0)
    _, spread, axes = np.linalg.svd(rows, full_matrices=False)
    axes = axes[:3] * (spread[:3] > 1e-9 * max(spread[0], 1e-30))[:, None]
    largest = np.abs(axes).argmax(1)
    axes = axes * np.where(axes[np.arange(len(axes)), largest] < 0, -1, 1)[:, None]  # fix the arbitrary signs
    colors = np.full((len(rows), 3), 0.5)
    for column, values in enumerate((rows @ axes.T).T):
        low, high = values.min(), values.max()
        if high > low:
            colors[:, column] = (values - low) / (high - low)
    ends = np.cumsum([m[0].numel() for m in maps])[:-1]
    return [part.reshape(*m.shape[1:], 3) for part, m in zip(np.split(colors, ends), maps)]


def guidance_maps(vae: nn.Module, image: torch.Tensor) -> Pictures:
    """Draw the guidance that a VAE computes from one image, scale by scale (section 4.2, Fig. 3).

    Args:
        vae: `ocl_msf.autoencoder.VQVAE`, in evaluation mode.
        image: (3, h, w) in [-1, 1].

    Returns:
        N pictures of each kind: "input"; "X^si before fusion", "X^si after fusion", "X^sv" and "X", as far as the VAE
        has these, coloured by `color_features`; and "winning scale". X^si shares one codebook, and so its colours,
        among scales, before and after fusion; so does X; every X^sv has its own codebook and colours.
    """
    with torch.no_grad():
        pyramid = vae.pyramid(image.unsqueeze(0))
        output = vae.encode(image.unsqueeze(0))
    colored = {"input": [to_pixels(scale[0]) for scale in pyramid[: len(output.quantized)]]}
    maps = vae.quantizer.fusion_maps(output) if hasattr(vae.quantizer, "fusion_maps") else None
    if maps is not None:
        unfused = list(maps.unfused or ())
        invariant = color_features([m[0] for m in [*unfused, *maps.invariant]])
        colored[BEFORE], colored[AFTER] = invariant[: len(unfused)], invariant[len(unfused) :]
        colored[VARIANT] = [color_features([m[0]])[0] for m in maps.variant or ()]
    colored[FUSED] = color_features([m[0] for m in output.quantized])
    if "winners" in output.diagnostics:
        shades = np.array([to_rgb(name) for name in SCALES])
        colored[WINNERS] = [shades[winner[0].cpu().numpy() % len(SCALES)] for winner in output.diagnostics["winners"]]
    return {kind: [_to_bytes(picture) for picture in pictures] for kind, pictures in colored.items() if pictures}


def _to_bytes(picture: np.ndarray) -> np.ndarray:
    return picture if picture.dtype == np.uint8 else (picture * 255).round().astype(np.uint8)


@rc_context(STYLE)
def draw_maps(models: Dict[str, Pictures], path: Path) -> None:
    """Write the `guidance_maps` of one image by one or several VAEs as PNG: columns are kinds, rows are scales.

    Args:
        models: the maps, by the name of the VAE; the name of a single one is not printed.
        path: the file.

    Raises:
        DataError: the file cannot be written.
    """
    kinds = [kind for kind in TITLES if any(kind in pictures for pictures in models.values())]
    rows = [(name, scale) for name, pictures in models.items() for scale in range(len(pictures[FUSED]))]
    legend = WINNERS in kinds
    figure = new_figure(0.4 + 1.15 * len(kinds), 0.35 + 1.18 * len(rows) + 0.22 * legend)
    axes = figure.subplots(len(rows), len(kinds), squeeze=False)
    for (name, scale), line in zip(rows, axes):
        left = f"scale {scale + 1}" if len(models[name][FUSED]) > 1 else ""
        left = "\n".join(filter(None, [name if len(models) > 1 and scale == 0 else "", left]))
        for kind, axis in zip(kinds, line):
            if kind in models[name]:
                show(axis, models[name][kind][scale], left=left if kind == "input" else "")
            else:
                axis.set_axis_off()
    for kind, axis in zip(kinds, axes[0]):
        axis.set_title(TITLES[kind], pad=5)
    if legend:
        count = max(len(pictures[FUSED]) for pictures in models.values())
        patches = [Patch(color=SCALES[n], label=f"scale {n + 1}") for n in range(count)]
        figure.legend(handles=patches, loc="outside lower right", ncols=count, handlelength=1, handleheight=1)
    save(figure, path)


class GuidanceSheet(nn.Module):
    """Evaluation module that keeps the guidance maps of some images: `<folder>/guidance.npz`, and `guidance_<n>.png`.

    Which images depends only on their names, if these are given, so runs on the same data show the same images.

    Args:
        folder: where the files go.
        num_images: how many.
    """

    def __init__(self, folder: str, num_images: int = 2):
        super().__init__()
        self.folder = Path(folder)
        self.kept = LowestRanks(num_images)
        self.seen = 0

    def forward(self, image: torch.Tensor, vae: nn.Module, key: Optional[Sequence[str]] = None) -> int:
        """Draw some of the images (b, 3, h, w) in [-1, 1], without keys the first; returns how many have been kept.

        The frames of videos are images; `key` has the names of the videos then.
        """
        changed = False
        names = frame_names(key, len(image)) if key else ()
        for number, one in enumerate(image):
            rank = rank_of(names[number]) if names else (self.seen, str(self.seen))
            self.seen += 1
            changed |= self.kept.offer(rank, lambda one=one: guidance_maps(vae, one))  # type: ignore[misc]
        if changed:
            self._write()
        return len(self.kept.items)

    def _write(self) -> None:
        images = {name: pictures for (_, name), pictures in sorted(self.kept.items.items())}
        arrays = {
            f"{name}/{kind}/{scale}": picture
            for name, pictures in images.items()
            for kind, scales in pictures.items()
            for scale, picture in enumerate(scales)
        }
        with replacing(self.folder / FILE) as file:
            np.savez(file, **arrays)
        for number, pictures in enumerate(images.values(), 1):
            draw_maps({"": pictures}, self.folder / f"guidance_{number}.png")


def read_guidance(path: Path) -> Dict[str, Pictures]:
    """Read the file of `GuidanceSheet`: the maps of every image, by its name.

    Raises:
        DataError: the file does not exist, or is damaged or of another kind.
    """
    arrays = load_arrays(path, "msf/guidance_maps")
    if not all(entry.count("/") >= 2 for entry in arrays):
        raise DataError(f"{path} holds no guidance maps. Delete it and evaluate again.")
    images: Dict[str, Pictures] = {}
    for entry, picture in arrays.items():
        name, kind, _ = entry.rsplit("/", 2)
        images.setdefault(name, {}).setdefault(kind, []).append(picture)
    return images
