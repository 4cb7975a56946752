"""The page itself: Gradio's components, and which of them asks for what."""

from pathlib import Path
from typing import Any, List

from ocl_msf.files import explain_missing
from ocl_msf.results.view.editor import DROP, SWAP, State, go_to, reset
from ocl_msf.results.view.markup import LETTERS, SCRIPT, intro
from ocl_msf.results.view.page import Change, Page, read_click

INSTALL = "The page needs Gradio, on Python 3.10 or newer: pip install 'ocl-msf[app]'"
ACTIONS = [("drops or restores", DROP), ("swaps, one of A with one of B", SWAP)]
KEPT = 3600  # seconds that the state of a page is kept after it was closed


def require_gradio() -> Any:
    """The package `gradio`.

    Raises:
        DataError: it is not installed.
    """
    with explain_missing(INSTALL):
        import gradio
    return gradio


def build(page: Page, model: str) -> Any:
    """The page as `gradio.Blocks`.

    Args:
        page: what its controls do.
        model: its name, for the reader.
    """
    gr = require_gradio()
    with gr.Blocks(title="Slots", analytics_enabled=False, delete_cache=(KEPT, KEPT)) as blocks:
        _Controls(gr, page, model).connect(gr, blocks)
    for component in blocks.blocks.values():
        _take_uploads_only(component)
    return blocks.queue(max_size=64)


class _Controls:
    """All components, made in the order in which they are seen."""

    def __init__(self, gr: Any, page: Page, model: str):
        self.page = page
        self.state = gr.State(State(), time_to_live=KEPT)
        gr.HTML(intro(model))
        with gr.Row(equal_height=True):
            self.action = gr.Radio(ACTIONS, value=DROP, label="A click on an object or slot", scale=4, min_width=260)
            self.clear = gr.Button("Undo all edits", min_width=120)
        with gr.Accordion("How the decoder draws", open=False), gr.Row():
            temperature = gr.Slider(0, 1.5, 0, step=0.1, label="Temperature", info="0: the most probable codes")
            seed = gr.Number(0, precision=0, minimum=0, maximum=2**31 - 1, label="Seed", info="of what is sampled")
        self.sampling = [temperature, seed]
        self.choices: List[Any] = []
        self.files: List[Any] = []
        self.views: List[Any] = []
        self.sliders: List[Any] = []
        with gr.Row():
            for letter in LETTERS:
                with gr.Column(min_width=340):
                    self._add_picture(gr, letter)

    def _add_picture(self, gr: Any, letter: str) -> None:
        names = self.page.library.names
        with gr.Row(equal_height=True):
            label, has_names = f"Picture {letter}", bool(names)
            choice = gr.Dropdown(
                names, value=None, label=label, visible=has_names, min_width=200, elem_classes="choice"
            )
            with gr.Column(min_width=200):  # both in a row, but on phones
                file = gr.File(label=f"Or a file for {letter}", height=84, elem_classes="drop")
        self.choices.append(choice)
        self.files.append(file)
        self.views.append(gr.HTML(js_on_load=SCRIPT, elem_id=f"picture-{letter}"))
        slider = gr.Slider(1, 2, 1, step=1, label=f"Frame of {letter}", visible=False, elem_id=f"frame-{letter}")
        self.sliders.append(slider)

    def connect(self, gr: Any, blocks: Any) -> None:
        """Say what each of them does. The model does one thing at a time."""
        once: Any = {"concurrency_id": "model", "concurrency_limit": 1, "show_progress": "minimal"}
        latest: Any = {**once, "trigger_mode": "always_last"}
        inputs, pictures = [self.state, *self.sampling], [self.state, *self.views]

        def start(state: State, *sampling: float) -> List[Any]:
            opened = [*self.page.library.names[:2], None, None][:2]
            return [*self._open(gr, state, 0, self.page.start, *sampling), *opened]

        def redraw(state: State, *sampling: float) -> List[Any]:
            return self._show(state, 0, lambda same: same, *sampling)

        def clear(state: State, *sampling: float) -> List[Any]:
            return self._show(state, 0, reset, *sampling)

        blocks.load(start, inputs, [*pictures, *self.sliders, *self.choices], **once)
        self.clear.click(clear, inputs, pictures, **once)
        for control in self.sampling:
            control.change(redraw, inputs, pictures, **latest)
        for number, letter in enumerate(LETTERS):
            self._connect_picture(gr, number, letter, once, latest)

    def _connect_picture(self, gr: Any, number: int, letter: str, once: Any, latest: Any) -> None:
        inputs, pictures = [self.state, *self.sampling], [self.state, *self.views]
        choice, file, view, slider = (its[number] for its in (self.choices, self.files, self.views, self.sliders))

        def choose(name: str, state: State, *sampling: float) -> List[Any]:
            return self._open(gr, state, number, self.page.choose(number, name), *sampling)

        def upload(path: str, state: State, *sampling: float) -> List[Any]:
            shown = self._open(gr, state, number, self.page.upload(number, Path(path)), *sampling)
            Path(path).unlink()
            return [*shown, None, None]

        def select(action: str, state: State, temperature: float, seed: float, event: gr.EventData) -> List[Any]:
            return self._show(state, number, read_click(number, action, event._data), temperature, seed)

        def frame(value: float, state: State, *sampling: float) -> List[Any]:
            return self._show(state, number, lambda its: go_to(its, number, int(value) - 1), *sampling)

        opened = [*pictures, *self.sliders]
        choice.input(choose, [choice, *inputs], opened, api_name=f"choose_{letter}", **once)
        file.upload(upload, [file, *inputs], [*opened, file, choice], api_name=f"upload_{letter}", **once)
        view.select(select, [self.action, *inputs], pictures, api_name=f"click_{letter}", **once)
        slider.input(frame, [slider, *inputs], pictures, api_name=f"frame_{letter}", **latest)

    def _show(self, state: State, picture: int, change: Change, *sampling: float) -> List[Any]:
        state, html = self.page.show(state, picture, change, *sampling)
        return [state, *html]

    def _open(self, gr: Any, state: State, picture: int, change: Change, *sampling: float) -> List[Any]:
        """The same with sliders for what is open."""
        shown = self._show(state, picture, change, *sampling)
        lengths = [len(clip.frames) if clip else 1 for clip in shown[0].clips]
        sliders = [
            gr.update(visible=length > 1, maximum=max(length, 2), value=frame + 1)
            for length, frame in zip(lengths, shown[0].frames)
        ]
        return [*shown, *sliders]


def _take_uploads_only(component: Any) -> None:
    """Have a component take uploaded files alone.

    Gradio would copy whatever file of this machine a request names, unless the page was started by its own `launch`,
    and download what has an address.
    """
    move = component.async_move_resource_to_block_cache

    async def move_upload(path: Any) -> Any:
        if path is not None and Path(component.GRADIO_CACHE).resolve() not in Path(path).resolve().parents:
            raise ValueError("This is no file that was dropped here.")
        return await move(path)

    component.async_move_resource_to_block_cache = move_upload
