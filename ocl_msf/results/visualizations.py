"""Pictures of scenes: input, true masks, predicted masks, reconstruction."""

from pathlib import Path
from typing import List, Optional

import numpy as np
import torch
from matplotlib import rc_context
from torch import nn

from ocl_msf._host import require_host
from ocl_msf.inference.generation import Sampling, reconstruct
from ocl_msf.results.style import STYLE, paint_segments, picture_grid, save, to_pixels

with require_host():
    from ocl.visualization_types import Image
    from ocl.visualizations import VisualizationMethod


class Reconstruction(VisualizationMethod):
    """Images above their reconstructions from slots alone, for TensorBoard.

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
    """Evaluation module that draws the first scenes into `<folder>/scenes.png`.

    A column for each scene: input, true masks, predicted masks, reconstruction from slots. A predicted segment has the
    colour of the true segment that it is matched to (Hungarian matching).

    Args:
        folder: where the picture goes.
        num_scenes: how many.
        temperature, top_k, seed: of the reconstruction, whose label says it; see `Sampling`.
    """

    def __init__(
        self, folder: str, num_scenes: int = 12, temperature: float = 0.0, top_k: Optional[int] = None, seed: int = 0
    ):
        super().__init__()
        self.path = Path(folder) / "scenes.png"
        self.num_scenes = num_scenes
        self.sampling = Sampling(temperature, top_k, seed)
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
        """Collect scenes until there are enough, and write the picture.

        Args:
            image: (b, 3, h, w) in [-1, 1].
            true_masks: (b, c, h, w), one-hot.
            masks: (b, k, h, w), scores.
            slots: (b, k, d).
            decoder: generates features of the guidance from slots.
            guidance: turns them into images.

        Returns:
            How many scenes have been collected.
        """
        wanted = min(self.num_scenes - len(self.columns), len(image))
        if wanted > 0:
            made = reconstruct(slots[:wanted], decoder, guidance, sampling=self.sampling)
            true, predicted = (scores[:wanted].argmax(1).cpu().numpy() for scores in (true_masks, masks))
            for i in range(wanted):
                segments = [paint_segments(true[i]), paint_segments(predicted[i], true[i])]
                self.columns.append([to_pixels(image[i]), *segments, to_pixels(made[i])])
            label = f"from slots\n{self.sampling.describe(decoder)}"
            draw_sheet(self.columns, ["input", "true masks", "predicted masks", label], self.path)
        return len(self.columns)


@rc_context(STYLE)
def draw_sheet(columns: List[List[np.ndarray]], labels: List[str], path: Path) -> None:
    """Write pictures (h, w, 3) as a grid, with a column for each scene and a labelled row for each kind."""
    figure, _ = picture_grid(dict(zip(labels, zip(*columns))), 1.3, 1.35)
    save(figure, path)
