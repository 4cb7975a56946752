"""Pictures and videos with their slots, ready to be shown."""

import itertools
from dataclasses import dataclass, field
from typing import Dict, Iterable, Iterator, List

import numpy as np
import torch
from PIL import Image
from scipy.optimize import linear_sum_assignment

from ocl_msf.inference.inputs import Place, as_arrays, find_place, to_segments
from ocl_msf.inference.model import Model, Result

SIDE = 448  # longer side of what is shown, in pixels
FRAMES = 120  # of a video; a session holds two in memory


@dataclass(frozen=True, eq=False)
class Clip:
    """A picture, which has one frame, or a video.

    Attributes:
        name: for its reader.
        model: it found the slots.
        frames: what the model was shown, (h, w, 3) uint8 each, enlarged or reduced to `SIDE`.
        parts: all that there is of every slot, (t, k, ...) by name; see `Result.parts`.
        scores: (t, k, s, s), soft masks.
        note: what a reader should know of it, or "".
    """

    name: str
    model: Model
    frames: List[np.ndarray]
    parts: Dict[str, torch.Tensor]
    scores: torch.Tensor
    note: str = ""
    _segments: Dict[int, np.ndarray] = field(default_factory=dict)

    @property
    def count(self) -> int:
        """Number of slots."""
        return self.scores.shape[1]

    def segments(self, frame: int) -> np.ndarray:
        """The slot of every pixel of a frame, (h, w) uint8."""
        if frame not in self._segments:
            height, width = self.frames[frame].shape[:2]
            place = Place((height, width), 0, 0, height, width)
            self._segments[frame] = to_segments(self.scores[frame], place).cpu().numpy()
        return self._segments[frame]

    def shares(self, frame: int) -> np.ndarray:
        """How much of a frame each slot takes, (k,) in [0, 1]."""
        segments = self.segments(frame)
        return np.bincount(segments.ravel(), minlength=self.count) / segments.size


def open_clip(model: Model, name: str, frames: Iterable[np.ndarray], fit: str = "crop") -> Clip:
    """Find the slots of a picture, the only frame, or of a video.

    A slot keeps its number over the frames: a model of videos carries it on, and what a model of pictures finds is
    matched from frame to frame.

    Args:
        model: from `ocl_msf.load`.
        name: for its reader.
        frames: (h, w, 3) each, uint8; those after the first `FRAMES` are left out.
        fit: see `Model.forward`.

    Raises:
        DataError: a frame cannot be read.
        ValueError: there is none, or they differ in size and the model is one of videos.
    """
    shown: List[np.ndarray] = []

    def shrinking(frames: Iterator[np.ndarray]) -> Iterator[np.ndarray]:
        for frame in itertools.islice(frames, FRAMES):
            shown.append(_to_show(frame, fit))
            yield frame

    remaining = iter(frames)
    results = [_flat(result) for result in model.track(shrinking(remaining), fit)]
    if not results:
        raise ValueError(f"{name} has no frames.")
    parts = {part: torch.cat([result[0][part] for result in results]) for part in results[0][0]}
    scores = torch.cat([result[1] for result in results])
    if not model.description.video:
        order = match_slots(scores)
        rows = torch.arange(len(order), device=scores.device)[:, None]
        scores = scores[rows, order]
        parts = {part: x[rows, order] for part, x in parts.items()}
    cut = len(shown) == FRAMES and next(remaining, None) is not None
    return Clip(name, model, shown, parts, scores, f"the first {FRAMES} frames" if cut else "")


def _flat(result: Result) -> List:
    """Parts (t, k, ...) and scores (t, k, s, s) of some frames."""
    lead = result.slots.ndim - 2
    parts = {name: x.reshape(-1, *x.shape[lead:]) for name, x in result.parts.items()}
    return [parts, result.scores.reshape(-1, *result.scores.shape[lead:])]


def match_slots(scores: torch.Tensor) -> torch.Tensor:
    """Give slots of each frame the numbers of those of the frame before that they overlap most with.

    Hungarian matching; the overlap of soft masks p and q is sum(p q) / (sum(p) + sum(q) - sum(p q)).

    Args:
        scores: (t, k, s, s).

    Returns:
        (t, k), int64: which slot of the frame gets each number.
    """
    flat = scores.flatten(2).float()
    order = [torch.arange(flat.shape[1])]
    for before, after in zip(flat, flat[1:]):
        both = before[order[-1].to(flat.device)] @ after.T
        either = before[order[-1].to(flat.device)].sum(1)[:, None] + after.sum(1)[None] - both
        _, columns = linear_sum_assignment(-(both / either.clamp(min=1e-6)).cpu().numpy())
        order.append(torch.as_tensor(columns))
    return torch.stack(order).to(scores.device)


def _to_show(frame: np.ndarray, fit: str) -> np.ndarray:
    (frame,) = as_arrays(frame, video=False)
    place = find_place(frame, fit)
    part = frame[place.top : place.top + place.height, place.left : place.left + place.width]
    scale = SIDE / max(part.shape[:2])
    height, width = (max(round(size * scale), 1) for size in part.shape[:2])
    return np.asarray(Image.fromarray(part).resize((width, height), Image.Resampling.BICUBIC))
