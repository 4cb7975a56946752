"""The HTML of the page: a picture with its slots, what the decoder draws, and a strip of slots."""

import base64
import io
from html import escape

from PIL import Image

from ocl_msf.inference.generation import Sampling
from ocl_msf.results.view.editor import State, partner
from ocl_msf.results.view.painting import color_of, ink_on, paint_overlay, paint_tile

LETTERS = "AB"  # names of the pictures
INTRO = """<div class="intro"><h1>What slots hold</h1>
<p>{model} puts a picture into slots, each an object or a piece of the ground,
and draws it again from these alone. Click objects or slots to take them away, or to exchange them.</p></div>
"""

# Clicks say where on the picture, as shares of its sides, or which slot of the strip.
SCRIPT = """
element.addEventListener('click', event => {
  const slot = event.target.closest('[data-slot]');
  if (slot) { trigger('select', {slot: Number(slot.dataset.slot)}); return; }
  if (!event.target.matches('.overlay')) return;
  const box = event.target.getBoundingClientRect();
  trigger('select', {x: (event.clientX - box.left) / box.width, y: (event.clientY - box.top) / box.height});
});
"""

STYLE = """
.gradio-container { max-width: 1280px !important; margin: 0 auto !important; }
.intro h1 { font-size: 1.35rem; margin: 0; } .intro p { margin: .15rem 0 0; }
.pictures { display: flex; gap: 10px; } .pictures figure { flex: 1 1 0; min-width: 0; margin: 0; }
.pictures img, .pictures .none { width: 100%; display: block; border-radius: 8px; margin: 0; }
.pictures .none { aspect-ratio: 2.2; display: grid; place-items: center; text-align: center; padding: 1rem;
  box-sizing: border-box; border: 2px dashed var(--border-color-primary); }
.pictures figcaption { font-size: .8rem; padding: 4px 0; overflow-wrap: anywhere; }
.overlay { cursor: pointer; }
.slots { display: grid; grid-template-columns: repeat(auto-fill, minmax(76px, 1fr)); gap: 6px; margin-top: 6px; }
.slots button { all: unset; box-sizing: border-box; cursor: pointer; border: 3px solid var(--color); border-radius: 8px;
  overflow: hidden; background: var(--color); font-size: .75rem; text-align: center; }
.slots button:hover { filter: brightness(1.08); } .slots button:focus-visible { outline: 3px solid #1d4ed8; }
.slots button span, .slots button b { color: var(--ink) !important; }
.slots span { display: block; padding: 1px 0 2px; }
.slots img { width: 100%; display: block; margin: 0; background: #f5f5f5; }
.slots .dropped { background: #8a8a8a; border-color: #8a8a8a; }
.slots .dropped img { filter: grayscale(1) contrast(.3); }
.slots .dropped span { text-decoration: line-through; }
.slots .chosen, .slots .chosen:focus-visible { outline: 4px solid #111; outline-offset: 1px; }
.dark .slots .chosen { outline-color: #fff; }
.message { background: #fff3cd; color: #5c4300; border-left: 4px solid #e69f00; border-radius: 4px; padding: 8px 12px;
  margin-bottom: 8px; overflow-wrap: anywhere; }
.drop .wrap { flex-direction: row; flex-wrap: wrap; gap: 0 .4em; min-height: 0; padding: 26px 8px 0; font-size: .85rem;
  line-height: 1.3; }
.drop .icon-wrap { display: none; }
.choice input { padding-right: 2em !important; text-overflow: ellipsis; }
footer { display: none !important; }
"""


def intro(model: str) -> str:
    """The head of the page, for a model of this name."""
    return INTRO.format(model=_text(model))


def panel(state: State, picture: int, sampling: Sampling, message: str = "") -> str:
    """What is shown of picture 0 or 1.

    Args:
        state: with its drawings.
        picture: its number.
        sampling: how they were drawn.
        message: what went wrong, above it.
    """
    alert = f'<div class="message" role="alert">{_text(message)}</div>' if message else ""
    clip = state.clips[picture]
    if clip is None:
        hint = "Choose or drop a picture." if picture == 0 else "A second picture, to swap slots with."
        return f'{alert}<div class="pictures"><div class="none">{hint}</div></div>'
    number = f", frame {state.frames[picture] + 1} of {len(clip.frames)}" if len(clip.frames) > 1 else ""
    note = f" ({clip.note})" if clip.note else ""
    overlay = _image(paint_overlay(state, picture), "slots of the picture, in colours", "overlay")
    pictures = [
        f"<figure>{overlay}<figcaption>{_text(clip.name)}{number}{_text(note)}</figcaption></figure>",
        _drawn(state, picture, sampling),
    ]
    slots = "".join(_slot(state, picture, slot) for slot in range(clip.count))
    return f'{alert}<div class="pictures">{"".join(pictures)}</div><div class="slots">{slots}</div>'


def _drawn(state: State, picture: int, sampling: Sampling) -> str:
    drawing, clip = state.drawings[picture], state.open(picture)
    if drawing is None or drawing.image is None:
        reason = drawing.reason if drawing else ""
        return f'<figure><div class="none">{_text(reason)}</div></figure>'
    height, width = clip.frames[0].shape[:2]
    image = Image.fromarray(drawing.image).resize((width, height), Image.Resampling.BICUBIC)
    how = sampling.describe(clip.model.models["decoder"])
    caption = f"drawn from slots: {how}"
    return f"<figure>{_image(image, caption, 'drawn')}<figcaption>{_text(caption)}</figcaption></figure>"


def _slot(state: State, picture: int, slot: int) -> str:
    """A slot as a button. One that was swapped in is shown as it is in the other picture, whose edits do not matter."""
    other = partner(state, picture, slot)
    source = (picture, slot) if other is None else (1 - picture, other)
    clip = state.open(source[0])
    share = float(clip.shares(state.frames[source[0]])[source[1]])
    origin = "" if other is None else f" = {LETTERS[1 - picture]}{other}"
    dropped, chosen = (picture, slot) in state.dropped, state.chosen == (picture, slot)
    names = " ".join(name for name, holds in (("dropped", dropped), ("chosen", chosen)) if holds)
    label = f"slot {slot}{origin}{', dropped' if dropped else ''}{', chosen for a swap' if chosen else ''}"
    tile = _image(paint_tile(state, *source), "")
    return (
        f'<button type="button" class="{names}" data-slot="{slot}" aria-label="{label}" aria-pressed='
        f'"{str(dropped).lower()}" style="--color:{color_of(slot)};--ink:{ink_on(slot)}">'
        f"{tile}<span><b>{slot}</b>{origin or f' · {share:.0%}'}</span></button>"
    )


def _image(image: Image.Image, text: str, name: str = "") -> str:
    buffer = io.BytesIO()
    image.save(buffer, "jpeg", quality=88)
    data = base64.b64encode(buffer.getvalue()).decode()
    return f'<img class="{name}" alt="{_text(text)}" src="data:image/jpeg;base64,{data}" draggable="false">'


def _text(text: str) -> str:
    """Text that is neither HTML nor, with its braces, a template of Gradio's."""
    return escape(text).replace("{", "&#123;").replace("$", "&#36;")
