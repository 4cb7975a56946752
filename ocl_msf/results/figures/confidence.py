"""Confidence against match quality: does the confidence of Eq. 1 say how well a super-pixel is represented?"""

from pathlib import Path
from typing import Dict, List, Mapping, Optional, Sequence

import numpy as np
import torch
from matplotlib import rc_context
from matplotlib.axes import Axes
from pytorch_lightning import LightningModule, Trainer
from torch import nn

from ocl_msf.files import DataError, replacing
from ocl_msf.instruments import observe
from ocl_msf.results.figures._saved import LowestRanks, frame_names, load_arrays, rank_of
from ocl_msf.results.style import LINES, STYLE, new_figure, save
from ocl_msf.training.callbacks import at_validation_end, gather

FILE = "confidence.npz"
Matches = Dict[str, np.ndarray]  # (n, 2), confidence and minus the distance to the nearest code, by <codes>/scale_<n>


class InstrumentSheet(nn.Module):
    """Evaluation module that observes codes for `ocl_msf.instruments`, and draws confidence against match quality.

    Writes `<folder>/confidence.npz`, the super-pixels of some images, and `confidence.png`. Which images depends only
    on their names. Rank 0 writes when the evaluation of a split has ended. A VAE without confidence has no picture.

    Args:
        folder: where the files go; the value of rank 0 is used.
        num_images: of how many images the super-pixels are kept.
    """

    def __init__(self, folder: str, num_images: int = 200):
        super().__init__()
        self.folder = Path(folder)
        self.num_images = num_images
        self.kept = LowestRanks(num_images)

    def forward(
        self,
        image: torch.Tensor,
        vae: nn.Module,
        key: Sequence[str],
        model: LightningModule,
        masks: Optional[torch.Tensor] = None,
        ignore: Optional[torch.Tensor] = None,
    ) -> Dict[str, torch.Tensor]:
        """Observe a batch.

        Args:
            image: (b, 3, h, w) in [-1, 1]; frames of videos one after the other.
            vae: `ocl_msf.autoencoder.VQVAE`.
            key: names of the images, or of the videos.
            model: its trainer signals the end of the evaluation.
            masks: true masks (b, k, h, w), one-hot.
            ignore: (b, 1, h, w), positive where pixels belong to no segment.

        Returns:
            The sums of `observe`, for `Instrument`.
        """
        at_validation_end(model.trainer, self._write)
        observed = observe(vae, image, masks, ignore)
        for number, name in enumerate(frame_names(key, len(image))):
            matches = {place: pairs[number] for place, pairs in observed.matches.items()}
            self.kept.offer(rank_of(name), lambda its=matches: {p: x.float().cpu().numpy() for p, x in its.items()})  # type: ignore[misc]
        return observed.sums

    def _write(self, trainer: Trainer) -> None:
        items = {rank: item for its in gather(self.kept.items) for rank, item in its.items()}
        self.kept = LowestRanks(self.num_images)
        if not trainer.is_global_zero:
            return
        images = [items[rank] for rank in sorted(items)[: self.num_images]]
        matches = {place: np.concatenate([image[place] for image in images]) for place in images[0]}
        with replacing(self.folder / FILE) as file:
            np.savez(file, **matches)
        if matches:
            draw_confidence({"": matches}, self.folder / FILE.replace(".npz", ".png"))


def read_matches(path: Path) -> Matches:
    """Read the file of `InstrumentSheet`; empty for a VAE without confidence.

    Raises:
        DataError: the file does not exist, or is damaged or of another kind.
    """
    arrays = load_arrays(path, "msf/scores")
    if any(pairs.ndim != 2 or pairs.shape[1] != 2 for pairs in arrays.values()):
        raise DataError(f"{path} holds no confidence of matches. Delete it and evaluate again.")
    return arrays


@rc_context(STYLE)
def draw_confidence(models: Mapping[str, Matches], path: Path) -> None:
    """Write confidence against match quality as PNG: a row for each model and group of codes, a column for each scale.

    Above each is Pearson's correlation of the super-pixels that are drawn.

    Args:
        models: what `read_matches` returns, by the label of its rows; the label of a single one is not printed.
        path: the file.

    Raises:
        DataError: the file cannot be written.
    """
    rows = [(model, group) for model, matches in models.items() for group in _parts(matches, 0)]
    columns = list(dict.fromkeys(scale for matches in models.values() for scale in _parts(matches, 1)))
    figure = new_figure(0.5 + 1.9 * len(columns), 0.3 + 1.75 * len(rows))
    axes = figure.subplots(len(rows), len(columns), squeeze=False)
    for (model, group), line in zip(rows, axes):
        for scale, axis in zip(columns, line):
            pairs = models[model].get(f"{group}/{scale}")
            if pairs is None:
                axis.set_axis_off()
            else:
                _draw_pairs(axis, pairs, scale.replace("_", " "))
        label = f"{model}, {group}" if len(models) > 1 else group
        line[0].set_ylabel(f"{label}\nconfidence".replace("_", " "))
    for axis in axes[-1]:
        axis.set_xlabel("- distance to nearest code")
    save(figure, path)


def _parts(matches: Matches, number: int) -> List[str]:
    """The groups (0) or the scales (1) in the names of matches."""
    return list(dict.fromkeys(place.split("/")[number] for place in matches))


def _draw_pairs(axis: Axes, pairs: np.ndarray, title: str) -> None:
    confidence, quality = pairs.astype(np.float64).T
    varies = np.ptp(confidence) > 0 and np.ptp(quality) > 0
    title += f", r = {np.corrcoef(confidence, quality)[0, 1]:.2f}" if varies else ", r undefined"
    if varies:
        axis.hexbin(quality, confidence, gridsize=32, bins="log", mincnt=1, cmap="viridis", linewidths=0.1)
    else:
        axis.plot(quality, confidence, ".", color=LINES[0])
    axis.set_title(title)
