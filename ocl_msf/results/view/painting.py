"""The pictures of the page: a frame under the colours of its slots, and what each slot holds."""

from functools import lru_cache
from pathlib import Path
from typing import Any, Optional

import numpy as np
import torch
from matplotlib import get_data_path
from PIL import Image, ImageDraw, ImageFont
from scipy.ndimage import binary_dilation, distance_transform_edt

from ocl_msf.results.style import segment_palette
from ocl_msf.results.view.editor import State

PALETTE = segment_palette()  # that of `ocl-msf predict`
TINT = 0.45  # of a slot's colour over the frame
PAPER = 245  # grey behind what a slot holds
TILE = 112  # side of a tile in pixels
STEP = 4  # of pixels that are looked at to place a number


def paint_overlay(state: State, picture: int) -> Image.Image:
    """The frame that is shown, with its slots numbered and in their colours.

    Dropped slots are dark and grey; the one that is chosen for a swap has a thick white line around it.
    """
    clip, frame = state.open(picture), state.frames[picture]
    pixels, segments = clip.frames[frame].astype(np.float32), clip.segments(frame)
    painted = pixels * (1 - TINT) + PALETTE[segments] * TINT
    off = np.isin(segments, [slot for number, slot in state.dropped if number == picture])
    painted[off] = pixels[off].mean(1, keepdims=True) * 0.3
    painted[_borders(segments)] = 255
    if state.chosen and state.chosen[0] == picture:
        inside = segments == state.chosen[1]
        painted[binary_dilation(inside, iterations=5) & ~inside] = 255
    image = Image.fromarray(painted.round().clip(0, 255).astype(np.uint8))
    draw = ImageDraw.Draw(image)
    for slot in np.unique(segments):
        _write_number(draw, int(slot), segments == slot)
    return image


def paint_tile(state: State, picture: int, slot: int) -> Image.Image:
    """What a slot holds: the pixels of its frame as far as they belong to it, on grey."""
    clip, frame = state.open(picture), state.frames[picture]
    pixels = Image.fromarray(clip.frames[frame])
    pixels.thumbnail((TILE, TILE))
    height, width = pixels.height, pixels.width
    score = torch.nn.functional.interpolate(
        clip.scores[frame, slot].float().cpu()[None, None], (height, width), mode="bilinear"
    )
    share = score[0, 0].clamp(0, 1).numpy()[..., None]
    return Image.fromarray((np.asarray(pixels) * share + PAPER * (1 - share)).round().astype(np.uint8))


def color_of(slot: int) -> str:
    """The colour of a slot, for CSS."""
    return "#{:02x}{:02x}{:02x}".format(*PALETTE[slot])


def ink_on(slot: int) -> str:
    """Black or white, whichever is read better on the colour of a slot."""
    red, green, blue = (int(value) for value in PALETTE[slot])
    return "#fff" if 0.299 * red + 0.587 * green + 0.114 * blue < 140 else "#111"


def _borders(segments: np.ndarray) -> np.ndarray:
    border = np.zeros(segments.shape, bool)
    border[:, 1:] |= segments[:, 1:] != segments[:, :-1]
    border[1:] |= segments[1:] != segments[:-1]
    return border


def _write_number(draw: Any, slot: int, mask: np.ndarray) -> None:
    """Write a slot's number where it is widest, unless it is a speck."""
    depth = distance_transform_edt(np.pad(mask[::STEP, ::STEP], 1))[1:-1, 1:-1]
    if depth.max() < 2:
        return
    y, x = (int(index) * STEP for index in np.unravel_index(depth.argmax(), depth.shape))
    box = draw.textbbox((x, y), str(slot), font=_font(), anchor="mm")
    draw.rounded_rectangle((box[0] - 6, box[1] - 4, box[2] + 6, box[3] + 4), 6, fill=color_of(slot))
    draw.text((x, y), str(slot), font=_font(), anchor="mm", fill=ink_on(slot))


@lru_cache(maxsize=None)
def _font(size: int = 17) -> Optional[Any]:
    return ImageFont.truetype(str(Path(get_data_path()) / "fonts" / "ttf" / "DejaVuSans-Bold.ttf"), size)
