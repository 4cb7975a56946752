"""Scenes of an evaluation: scored one by one, saved in a file, and drawn for several models side by side (Fig. 2)."""

from pathlib import Path
from typing import Dict, List, Mapping, NamedTuple, Optional, Sequence, Tuple

import numpy as np
import torch
from matplotlib import rc_context
from pytorch_lightning import LightningModule, Trainer
from torch import nn

from ocl_msf.files import DataError, replacing
from ocl_msf.metrics import ARI, refuse_nan
from ocl_msf.results.figures._saved import LowestRanks, load_arrays, rank_of
from ocl_msf.results.style import STYLE, enlarge, paint_segments, picture_grid, save, to_pixels
from ocl_msf.training.callbacks import at_validation_end, gather

FILE = "scenes.npz"


class Scenes(NamedTuple):
    """The contents of the file that `SceneScores` writes.

    Attributes:
        keys: names of all n scenes of the split, sorted.
        ari_fg: (n,), ARI_fg of each, 0 to 1 (below 0 if worse than chance); NaN where no object is to be scored.
        shown: names of the m <= n scenes that have pictures, sorted.
        images: (m, h, w, 3), uint8; for a video its middle frame.
        true_segments: (m, h, w), uint8, 0 is the background.
        segments: (m, h, w), uint8, the slot of each pixel, counted from 1.
    """

    keys: np.ndarray
    ari_fg: np.ndarray
    shown: np.ndarray
    images: np.ndarray
    true_segments: np.ndarray
    segments: np.ndarray

    @property
    def ranking(self) -> List[Tuple[float, int]]:
        """(ARI_fg, number of the picture) of the scenes that have both, the best first."""
        pairs = ((self.scores[key], n) for n, key in enumerate(self.shown.tolist()) if key in self.scores)
        return sorted(pairs, key=lambda x: (-x[0], x[1]))

    @property
    def scores(self) -> Dict[str, float]:
        """ARI_fg of the scenes that it is defined for, by name."""
        return {key: score for key, score in zip(self.keys.tolist(), self.ari_fg.tolist()) if score == score}

    @property
    def mean(self) -> float:
        """Their mean; NaN without any."""
        return float(np.mean([*self.scores.values()] or np.nan))


class SceneScores(nn.Module):
    """Evaluation module that scores every scene separately, into `<folder>/scenes.npz`, some with pictures.

    Which scenes have pictures depends only on their names, so runs on the same data show the same scenes. Rank 0 writes
    the file when the evaluation of a split has ended.

    Args:
        folder: where the file goes; the value of rank 0 is used.
        num_pictures: how many scenes have pictures.
    """

    def __init__(self, folder: str, num_pictures: int = 200):
        super().__init__()
        self.path = Path(folder) / FILE
        self.scores: Dict[str, float] = {}
        self.pictures = LowestRanks(num_pictures)

    def forward(
        self,
        image: torch.Tensor,
        true_masks: torch.Tensor,
        masks: torch.Tensor,
        key: Sequence[str],
        model: LightningModule,
        ignore: Optional[torch.Tensor] = None,
    ) -> int:
        """Score the scenes of a batch.

        Args:
            image: (b, 3, h, w) or (b, t, 3, h, w) in [-1, 1].
            true_masks: (b, n, h, w) or (b, t, n, h, w), one-hot; channel 0 is the background.
            masks: (b, k, h, w) or (b, t, k, h, w), scores.
            key: names of the b scenes.
            model: its trainer signals the end of the evaluation.
            ignore: (b, 1, h, w) or (b, t, 1, h, w), positive where pixels are left out of the scores.

        Returns:
            How many scenes this rank has scored.

        Raises:
            ValueError: masks hold NaN.
        """
        refuse_nan(masks=masks, true_masks=true_masks, ignore=ignore)
        at_validation_end(model.trainer, self._write)
        for number, name in enumerate(key):
            one = slice(number, number + 1)
            metric = ARI()
            metric.distributed_available_fn = None  # each rank has its own scenes
            metric.update(masks[one].cpu(), true_masks[one].cpu(), None if ignore is None else ignore[one].cpu())
            self.scores[name] = float(metric.compute())
            show = (image[number], true_masks[number], masks[number])
            self.pictures.offer(rank_of(name), lambda show=show: _picture(*show))  # type: ignore[misc]
        return len(self.scores)

    def _write(self, trainer: Trainer) -> None:
        ranks = gather((self.scores, self.pictures.items))
        if not trainer.is_global_zero:
            return
        scores = {name: score for its, _ in ranks for name, score in its.items()}
        pictures = {place: picture for _, its in ranks for place, picture in its.items()}
        shown = {name: pictures[place, name] for place, name in sorted(pictures)[: self.pictures.size]}
        names, kept = sorted(scores), sorted(shown)
        kinds = (np.stack(kind) for kind in zip(*(shown[name] for name in kept)))
        arrays = Scenes(np.array(names), np.array([scores[name] for name in names]), np.array(kept), *kinds)
        with replacing(self.path) as file:
            np.savez(file, **arrays._asdict())


def _picture(image: torch.Tensor, true_masks: torch.Tensor, masks: torch.Tensor) -> Tuple[np.ndarray, ...]:
    """One scene's image and segments; for a video those of its middle frame."""
    if image.dim() == 4:
        image, true_masks, masks = (x[len(x) // 2] for x in (image, true_masks, masks))
    segments = (true_masks.argmax(0), masks.argmax(0) + 1)
    return (to_pixels(image), *(x.cpu().numpy().astype(np.uint8) for x in segments))


def read_scenes(path: Path) -> Scenes:
    """Read the file of `SceneScores`.

    Raises:
        DataError: the file does not exist, or is damaged or of another kind.
    """
    arrays = load_arrays(path, "msf/scenes")
    if set(arrays) != set(Scenes._fields):
        raise DataError(f"{path} holds no scenes. Delete it and evaluate again.")
    return Scenes(**arrays)


def common_scenes(models: Mapping[str, Scenes], count: int) -> List[str]:
    """Choose scenes that all models have scores and pictures of, evenly spaced from the best to the worst mean ARI_fg.

    Raises:
        DataError: there is none.
    """
    scores = [scenes.scores for scenes in models.values()]
    shared = sorted(set.intersection(*({*scenes.shown.tolist()} & {*scenes.scores} for scenes in models.values())))
    if not shared:
        raise DataError("These runs have no scene in common that shows an object: evaluate them on the same data.")
    ranking = sorted(shared, key=lambda name: (-sum(one[name] for one in scores), name))
    places = np.linspace(0, len(ranking) - 1, min(count, len(ranking))).round().astype(int)
    return [ranking[place] for place in places]


@rc_context(STYLE)
def draw_segmentations(models: Mapping[str, Scenes], path: Path, count: int = 8) -> List[str]:
    """Write segmentations of the same scenes by several models as PNG (Fig. 2).

    A column for each scene, from the best to the worst mean over the models; a row for each model. A segment has the
    colour of the true segment that it is matched to; ARI_fg is printed below.

    Args:
        models: their scenes, by the label of their row.
        path: the file.
        count: how many scenes.

    Returns:
        The names of the scenes.

    Raises:
        DataError: the models have no scene in common, or the file cannot be written.
    """
    names = common_scenes(models, count)
    first = next(iter(models.values()))
    places = [first.shown.tolist().index(name) for name in names]
    rows = {"input": [first.images[place] for place in places]}
    rows["true"] = [paint_segments(first.true_segments[place]) for place in places]
    for label, scenes in models.items():
        places = [scenes.shown.tolist().index(name) for name in names]
        rows[label] = [paint_segments(scenes.segments[place], scenes.true_segments[place]) for place in places]
    figure, axes = picture_grid(rows, 1.02, 1.12, margin=0.55)
    for line, scenes in zip(axes[2:], models.values()):
        for axis, name in zip(line, names):
            axis.set_xlabel(f"ARI_fg {100 * scenes.scores[name]:.1f}", labelpad=2)
    save(figure, path)
    return names


def scene_strip(scenes: Scenes, number: int, size: int = 128) -> np.ndarray:
    """Put input, true and predicted segments of one scene side by side: (h, w, 3), uint8, on white."""
    true, predicted = scenes.true_segments[number], scenes.segments[number]
    size = max(size, min(true.shape))
    parts = [paint_segments(true, size=size), paint_segments(predicted, true, size)]
    image = enlarge(scenes.images[number], size)
    gap = np.full((len(image), max(2, size // 32), 3), 255, np.uint8)
    return np.concatenate([image, gap, parts[0], gap, parts[1]], 1)
