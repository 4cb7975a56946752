"""What the controls of the page do, without the controls."""

from pathlib import Path
from typing import Any, Callable, List, Tuple

from ocl_msf.files import DataError
from ocl_msf.inference.generation import Sampling
from ocl_msf.inference.model import Model
from ocl_msf.results.view.clips import open_clip
from ocl_msf.results.view.editor import State, click, draw, put, slot_at
from ocl_msf.results.view.library import Library, read_upload
from ocl_msf.results.view.markup import panel

Change = Callable[[State], State]


class Page:
    """A model and what it can be shown.

    Args:
        model: from `ocl_msf.load`.
        library: what can be chosen.
        fit: see `Model.forward`.
    """

    def __init__(self, model: Model, library: Library, fit: str = "crop"):
        self.model, self.library, self.fit = model, library, fit

    def show(
        self, state: State, picture: int, change: Change, temperature: float = 0, seed: float = 0
    ) -> Tuple[State, List[str]]:
        """Change the state and draw what is new; what cannot be done leaves it as it was, with a sentence.

        Args:
            state: of before.
            picture: where the sentence is shown.
            change: what gives the next state.
            temperature, seed: see `Sampling`; None, of an empty field, is 0.

        Returns:
            The next state, and the HTML of both pictures.
        """
        messages = ["", ""]
        sampling = Sampling(float(temperature or 0), seed=int(seed or 0))
        try:
            state = draw(change(state), sampling)
        except (DataError, ValueError) as error:
            messages[picture] = str(error)
        return state, [panel(state, number, sampling, messages[number]) for number in (0, 1)]

    def choose(self, picture: int, name: str) -> Change:
        """Open a picture or video of the library."""
        return lambda state: put(state, picture, open_clip(self.model, name, self.library.frames(name), self.fit))

    def upload(self, picture: int, path: Path) -> Change:
        """Open a file that was put on the page."""
        return lambda state: put(state, picture, open_clip(self.model, path.name, read_upload(path), self.fit))

    def start(self, state: State) -> State:
        """Open the first two pictures of the library, if there are any."""
        for number, name in enumerate(self.library.names[:2]):
            state = self.choose(number, name)(state)
        return state


def read_click(picture: int, action: str, data: Any) -> Change:
    """What a click says, from what the page's script tells of it.

    Args:
        picture: what was clicked.
        action: see `click`.
        data: {"slot": number}, or {"x": share, "y": share} of the picture's sides.
    """

    def change(state: State) -> State:
        try:
            slot = int(data["slot"]) if "slot" in data else None
            point = (0.0, 0.0) if "slot" in data else (float(data["x"]), float(data["y"]))
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise ValueError("This click is not understood.") from error
        return click(state, picture, slot_at(state, picture, *point) if slot is None else slot, action)

    return change
