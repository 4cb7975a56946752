"""What is open and how it is edited: a state that never changes, and functions that give the next one."""

from dataclasses import dataclass, replace
from typing import Any, Dict, FrozenSet, List, Optional, Tuple

import numpy as np
import torch

from ocl_msf.files import DataError
from ocl_msf.inference.generation import Sampling
from ocl_msf.inference.inputs import Place
from ocl_msf.inference.model import Result, Slots
from ocl_msf.results.view.clips import Clip

DROP, SWAP = "drop", "swap"  # what a click does


@dataclass(frozen=True)
class Drawing:
    """What the decoder made of slots, (h, w, 3) uint8, or why there is nothing; the key is all that it depends on."""

    key: Tuple[Any, ...]
    image: Optional[np.ndarray]
    reason: str = ""


@dataclass(frozen=True)
class State:
    """Two pictures or videos, 0 and 1, and what was done to their slots. Edits hold for all frames.

    Attributes:
        clips: None where nothing is open.
        frames: the numbers of those that are shown.
        swaps: (slot of 0, slot of 1) each.
        dropped: (picture, slot) each.
        chosen: the first slot of a swap to be.
        drawings: what the decoder made last.
    """

    clips: Tuple[Optional[Clip], Optional[Clip]] = (None, None)
    frames: Tuple[int, int] = (0, 0)
    swaps: Tuple[Tuple[int, int], ...] = ()
    dropped: FrozenSet[Slots] = frozenset()
    chosen: Optional[Slots] = None
    drawings: Tuple[Optional[Drawing], Optional[Drawing]] = (None, None)

    def open(self, picture: int) -> Clip:
        """The clip with this number.

        Raises:
            ValueError: there is none.
        """
        clip = self.clips[picture]
        if clip is None:
            raise ValueError("Nothing is open here. Choose a picture first.")
        return clip


def put(state: State, picture: int, clip: Clip) -> State:
    """Show a clip; edits of the one before are gone, and swaps with it."""
    return replace(
        state,
        clips=_with(state.clips, picture, clip),
        frames=_with(state.frames, picture, 0),
        swaps=(),
        dropped=frozenset(x for x in state.dropped if x[0] != picture),
        chosen=None,
    )


def go_to(state: State, picture: int, frame: int) -> State:
    """Show a frame of a video; a number that it does not have stands for the first or last."""
    last = len(state.open(picture).frames) - 1
    return replace(state, frames=_with(state.frames, picture, min(max(int(frame), 0), last)))


def reset(state: State) -> State:
    """Without any edit."""
    return replace(state, swaps=(), dropped=frozenset(), chosen=None)


def slot_at(state: State, picture: int, x: float, y: float) -> int:
    """The slot at a point of a picture, given as shares of its width and height in [0, 1].

    Raises:
        ValueError: the point is outside, or nothing is open.
    """
    segments = state.open(picture).segments(state.frames[picture])
    if not (0 <= x <= 1 and 0 <= y <= 1):
        raise ValueError("This is no point of the picture.")
    row, column = (min(int(share * size), size - 1) for share, size in zip((y, x), segments.shape))
    return int(segments[row, column])


def click(state: State, picture: int, slot: int, action: str) -> State:
    """Do what a click on a slot says.

    Args:
        state: of before.
        picture, slot: what was clicked.
        action: `DROP` drops the slot, or brings it back. `SWAP` chooses it, and if one of the other picture is chosen
            exchanges the two; a slot that is exchanged already goes back.

    Raises:
        ValueError: there is no such slot or second picture, or no slot of a picture would be left.
    """
    clip = state.open(picture)
    if not 0 <= slot < clip.count:
        raise ValueError(f"There is no slot {slot}: this model's slots are 0 to {clip.count - 1}.")
    if action == DROP:
        changed = replace(state, dropped=state.dropped ^ {(picture, slot)}, chosen=None)
        edited(changed)
        return changed
    if state.clips[1 - picture] is None:
        raise ValueError("Open a second picture to swap slots with.")
    if partner(state, picture, slot) is not None:
        return replace(state, swaps=tuple(pair for pair in state.swaps if pair[picture] != slot), chosen=None)
    if state.chosen is None or state.chosen[0] == picture:
        return replace(state, chosen=None if state.chosen == (picture, slot) else (picture, slot))
    pair = (slot, state.chosen[1]) if picture == 0 else (state.chosen[1], slot)
    return replace(state, swaps=(*state.swaps, pair), chosen=None)


def partner(state: State, picture: int, slot: int) -> Optional[int]:
    """The slot of the other picture that a slot is exchanged with; None if it is not."""
    return next((pair[1 - picture] for pair in state.swaps if pair[picture] == slot), None)


def edited(state: State) -> Dict[int, Result]:
    """The slots of the frames that are shown, after all edits, b = 1: by the number of the picture.

    Raises:
        ValueError: no slot of a picture would be left.
    """
    numbers = [number for number, clip in enumerate(state.clips) if clip is not None]
    if not numbers:
        return {}
    clips = [state.open(number) for number in numbers]
    frames = [state.frames[number] for number in numbers]
    parts = {
        name: torch.stack([clip.parts[name][frame] for clip, frame in zip(clips, frames)]) for name in clips[0].parts
    }
    scores = torch.stack([clip.scores[frame] for clip, frame in zip(clips, frames)])
    place = Place((1, 1), 0, 0, 1, 1)  # masks in the size of a file are not asked for
    result = Result(clips[0].model, parts, scores, scores[:, :1], (place,) * len(numbers))
    for first, second in state.swaps:
        result = result.swap((0, first), (1, second))
    for number, slot in state.dropped:
        result = result.drop(slot, picture=numbers.index(number))
    return {number: _only(result, row) for row, number in enumerate(numbers)}


def draw(state: State, sampling: Sampling) -> State:
    """Decode the slots of each picture, unless nothing that matters to it has changed.

    Each is decoded by itself, so that what is sampled for one does not depend on whether the other is there.
    """
    results = edited(state)
    drawings: List[Optional[Drawing]] = [None, None]
    for number, result in results.items():
        before, key = state.drawings[number], _key(state, number, sampling)
        drawings[number] = before if before and before.key == key else _decode(result, key, sampling)
    return replace(state, drawings=(drawings[0], drawings[1]))


def _decode(result: Result, key: Tuple[Any, ...], sampling: Sampling) -> Drawing:
    try:
        image = result.reconstruct(**vars(sampling))[0]
    except DataError as error:  # a model that draws nothing
        return Drawing(key, None, str(error))
    return Drawing(key, (image.movedim(0, -1).cpu().numpy() * 255).round().astype(np.uint8))


def _key(state: State, picture: int, sampling: Sampling) -> Tuple[Any, ...]:
    """All that the drawing of a picture depends on."""
    its = [number for number in (picture, 1 - picture) if number == picture or state.swaps]
    dropped = frozenset(slot for number, slot in state.dropped if number == picture)
    return (*((state.clips[number], state.frames[number]) for number in its), state.swaps, dropped, sampling)


def _only(result: Result, row: int) -> Result:
    rows = slice(row, row + 1)
    parts = {name: x[rows] for name, x in result.parts.items()}
    return replace(
        result, parts=parts, scores=result.scores[rows], inputs=result.inputs[rows], places=result.places[rows]
    )


def _with(pair: Tuple[Any, Any], position: int, value: Any) -> Tuple[Any, Any]:
    return (value, pair[1]) if position == 0 else (pair[0], value)
