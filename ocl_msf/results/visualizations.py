"""Pictures of scenes: input, true masks, predicted masks, reconstruction."""

from pathlib import Path
from typing import List, Optional

import numpy as np
import torch
from matplotlib import colormaps
from matplotlib.figure import Figure
from scipy.optimize import linear_sum_assignment
from torch import nn

from ocl_msf._host import require_host

with require_host():
    from ocl.visualization_types import Image
    from ocl.visualizations import VisualizationMethod


def reconstruct(
    slots: torch.Tensor, decoder: nn.Module, guidance: nn.Module, slot_mask: Optional[torch.Tensor] = None
) -> torch.Tensor:
    """Write images from slots alone: slots (b, k, d), without those that slot_mask (b, k) turns off.

    Returns:
        (b, 3, h, w) in [-1, 1].
    """
    options = {} if slot_mask is None else {"slot_mask": slot_mask}
    was_training = decoder.training
    decoder.eval()
    made = decoder.generate(slots, guidance.lookup, **options)  # code numbers (tokens) or features (diffusion)
    decoder.train(was_training)
    features = made if made.is_floating_point() else guidance.lookup(made)
    return guidance.decode(features).clamp(-1, 1)


class Reconstruction(VisualizationMethod):
    """Images above what the decoder writes from their slots alone, for TensorBoard.

    Args:
        n_instances: how many images of the batch.
    """

    def __init__(self, n_instances: int = 8):
        self.n_instances = n_instances

    def __call__(
        self,
        image: torch.Tensor,
        slots: torch.Tensor,
        decoder: nn.Module,
        guidance: nn.Module,
        slot_mask: Optional[torch.Tensor] = None,
    ) -> Image:
        """Draw image (b, 3, h, w) in [-1, 1] and slots (b, k, d) as one picture of two rows; slot_mask as above."""
        slot_mask = None if slot_mask is None else slot_mask[: self.n_instances]
        made = reconstruct(slots[: self.n_instances], decoder, guidance, slot_mask)
        rows = [torch.cat(list(x.float()), -1) for x in (image[: self.n_instances], made)]
        return Image(((torch.cat(rows, -2) + 1) / 2).clamp(0, 1).cpu())


class SceneSheet(nn.Module):
    """Evaluation module that draws the first scenes it sees into `<folder>/scenes.png`.

    One column for each scene: input, true masks, predicted masks, reconstruction from slots. A predicted segment has
    the colour of the true segment that it overlaps best (Hungarian matching).

    Args:
        folder: where the picture goes.
        num_scenes: how many.
    """

    def __init__(self, folder: str, num_scenes: int = 12):
        super().__init__()
        self.path = Path(folder) / "scenes.png"
        self.num_scenes = num_scenes
        self.columns: List[List[np.ndarray]] = []

    def forward(
        self,
        image: torch.Tensor,
        true_masks: torch.Tensor,
        masks: torch.Tensor,
        slots: torch.Tensor,
        decoder: nn.Module,
        guidance: nn.Module,
    ) -> int:
        """Take scenes until there are enough, then write the picture.

        Args:
            image: (b, 3, h, w) in [-1, 1].
            true_masks: (b, c, h, w), one-hot.
            masks: (b, k, h, w), scores.
            slots: (b, k, d).
            decoder: writes indices or features of the guidance from slots.
            guidance: turns them into images.

        Returns:
            How many scenes have been taken.
        """
        wanted = min(self.num_scenes - len(self.columns), len(image))
        if wanted > 0:
            made = reconstruct(slots[:wanted], decoder, guidance)
            true, predicted = true_masks[:wanted].argmax(1), masks[:wanted].argmax(1)
            for scene in range(wanted):
                t, p = true[scene].cpu().numpy(), predicted[scene].cpu().numpy()
                pictures = [_to_pixels(image[scene]), paint(t), paint(recolour(p, t)), _to_pixels(made[scene])]
                self.columns.append(pictures)
            draw_sheet(self.columns, ["input", "true masks", "predicted masks", "from slots"], self.path)
        return len(self.columns)


def _to_pixels(image: torch.Tensor) -> np.ndarray:
    return ((image.float().cpu().permute(1, 2, 0).numpy() + 1) / 2).clip(0, 1)


def paint(segments: np.ndarray) -> np.ndarray:
    """Colour the segment numbers of a map (h, w): (h, w, 3) in [0, 1]; 0 is dark grey, 20 colours then repeat."""
    tab20 = np.array(colormaps["tab20"].colors)
    vivid_first = np.concatenate([tab20[::2], tab20[1::2]])
    return np.where(segments[..., None] == 0, 0.2, vivid_first[(segments - 1) % 20])


def recolour(segments: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """Rename the segments of a map (h, w) so that the best overlap with the reference has the reference's number."""
    names, inverse = np.unique(segments, return_inverse=True)
    known, target = np.unique(reference, return_inverse=True)
    overlap = np.zeros((len(names), len(known)))
    np.add.at(overlap, (inverse.ravel(), target.ravel()), 1)
    rows, columns = linear_sum_assignment(-overlap)
    renamed = np.arange(len(names)) + known.max() + 1  # segments without a partner
    renamed[rows] = known[columns]
    return renamed[inverse].reshape(segments.shape)


def draw_sheet(columns: List[List[np.ndarray]], labels: List[str], path: Path, title: Optional[str] = None) -> None:
    """Write pictures (h, w, 3) as a grid, one column a scene, one labelled row a kind."""
    figure = Figure(figsize=(1.3 * len(columns), 1.35 * len(labels)), dpi=110)
    axes = figure.subplots(len(labels), len(columns), squeeze=False)
    for row, label in enumerate(labels):
        for column, pictures in enumerate(columns):
            axis = axes[row, column]
            axis.imshow(pictures[row], interpolation="nearest")
            axis.set_xticks([])
            axis.set_yticks([])
        axes[row, 0].set_ylabel(label)
    if title:
        figure.suptitle(title)
    figure.tight_layout(pad=0.4)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial.png")
    figure.savefig(partial)
    partial.replace(path)
