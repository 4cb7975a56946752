"""Frames of reference: a slot that knows where it is and how large, so that it can see and draw relative to itself.

A slot with a frame is a vector (d + 3) whose last three channels are its position y, x and its scale, in units of half
an image: (0, 0) is the centre, and y and x are in [-1, 1]. Whatever copies, drops or swaps slots moves frames along.
"""

from typing import Tuple

import torch

FRAME_CHANNELS = 3  # y, x, scale
RELATIVE_FEATURES = 7
FRAME_FEATURES = 7


def split_frames(slots: torch.Tensor) -> Tuple[torch.Tensor, torch.Tensor]:
    """Slots (..., d + 3) -> their vectors (..., d) and frames (..., 3)."""
    return slots[..., :-FRAME_CHANNELS], slots[..., -FRAME_CHANNELS:]


def unlimited_frames(slots: torch.Tensor) -> torch.Tensor:
    """Frames (..., 3) of slots (..., d) that have seen nothing yet: in the centre, and so large that places are one."""
    frames = slots.new_zeros(*slots.shape[:-1], FRAME_CHANNELS)
    frames[..., 2] = 1e3
    return frames


def box_frames(boxes: torch.Tensor) -> torch.Tensor:
    """Frames (..., 3) of boxes (..., 4): centres, and the mean deviation of points that are spread evenly in a box.

    Args:
        boxes: corners x, y, x, y in [0, 1]; four zeros where there is none, which gives a frame as small as can be.
    """
    first, second = boxes[..., :2].flip(-1), boxes[..., 2:].flip(-1)  # ... 2, y and x
    scale = (second - first).mean(-1, keepdim=True) / 3**0.5  # ... 1: 2 s wide, of variance (2 s)^2 / 12
    return torch.cat([first + second - 1, scale.clamp(min=1e-3)], -1)


def fit_frames(weights: torch.Tensor, points: torch.Tensor, min_scale: float) -> torch.Tensor:
    """Mean and standard deviation of the points that slots attend to.

    Args:
        weights: (b, k, n), of sum 1 over n.
        points: (n, 2), y and x in [-1, 1].
        min_scale: the smallest scale.

    Returns:
        Frames (b, k, 3); the scale is the mean of the deviations along y and x.
    """
    position = weights @ points  # b k 2
    variance = weights @ points**2 - position**2  # b k 2
    scale = variance.clamp(min=1e-6).sqrt().mean(-1, keepdim=True).clamp(min=min_scale)  # b k 1
    return torch.cat([position, scale], -1)


def relative_features(frames: torch.Tensor, points: torch.Tensor) -> torch.Tensor:
    """Describe points as slots see them: moved and scaled with their frames, a picture gives the same features.

    Args:
        frames: (..., 3).
        points: (..., 2), y and x, with axes that broadcast with those of the frames.

    Returns:
        (..., 7): y, x, r^2, y^2 - x^2, y x, exp(-r^2 / 2) - 1 and exp(-r^2 / 8) - 1 in a slot's coordinates. All are 0
        at its centre, and everywhere in a frame without limits. Six scales away, y and x stop growing.
    """
    y, x = ((points - frames[..., :2]) / frames[..., 2:]).clamp(-6, 6).unbind(-1)
    square = y * y + x * x
    return torch.stack([y, x, square, y * y - x * x, y * x, torch.expm1(-square / 2), torch.expm1(-square / 8)], -1)


def frame_features(frames: torch.Tensor) -> torch.Tensor:
    """Describe frames (..., 3) by (..., 7): y, x, log s, and 1, y, x and y^2 + x^2 over s^2 + 1/10.

    The last four times 1, y, x and y^2 + x^2 of a point can make the squared distance in units of the scale s.
    """
    position, scale = frames[..., :2], frames[..., 2:]
    inverse = 1 / (scale.square() + 0.1)
    square = position.square().sum(-1, keepdim=True)
    return torch.cat([position, scale.log(), inverse, position * inverse, square * inverse], -1)
