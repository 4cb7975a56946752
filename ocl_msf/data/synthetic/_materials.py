"""Materials drawn at random: hard ones, and ones with patterns finer than bodies in contrasts like ClevrTex's."""

import colorsys
import dataclasses
import math
from typing import List

import numpy as np

from ocl_msf.data.synthetic._textures import PATTERNS, Material

# Ranges from which materials are drawn, fitted to scenes that Blender rendered in ClevrTex's style.
_GROUND_CELLS = (0.9, 3.5)  # of the pattern per unit of length
_BODY_CELLS = (2.5, 8.0)  # per radius
_GROUND_CONTRAST = (0.6, 1.3)  # distance of the colours from their mean, relative to a hard material's
_BODY_CONTRAST = (0.35, 1.05)
_EXPOSURE = (0.5, 1.8)  # a factor of all colours
_GRAIN = (0.4, 1.0)


def _palette(rng: np.random.Generator, count: int) -> np.ndarray:
    """`count` sRGB colours that differ; how much they must is lowered until enough are drawn."""
    vivid = rng.uniform() < 0.3
    middle = rng.uniform((0, 0.05, 0.3), (1, 0.9 if vivid else 0.5, 0.85))
    spread = np.array((0.5, 0.3, 0.4) if vivid else (0.06, 0.15, 0.25))
    colours: List[np.ndarray] = []
    apart = 0.3
    while len(colours) < count:
        hue, saturation, value = middle + rng.uniform(-spread, spread)
        colour = np.array(colorsys.hsv_to_rgb(hue % 1, np.clip(saturation, 0, 1), np.clip(value, 0.08, 0.95)))
        if all(np.linalg.norm(colour - other) > apart for other in colours):
            colours.append(colour)
        apart *= 0.9
    return np.stack(colours)


def _rotation(rng: np.random.Generator, flat: bool) -> np.ndarray:
    """A random rotation matrix; about the vertical axis alone where `flat`."""
    angle = rng.uniform(0, 2 * np.pi)
    turn = np.array([[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, 1]])
    if flat:
        return turn
    orthogonal, triangular = np.linalg.qr(rng.standard_normal((3, 3)))
    return turn @ (orthogonal * np.sign(np.diag(triangular)))


def sample_hard_material(rng: np.random.Generator, low: float, high: float, flat: bool) -> Material:
    """Draw a material of strong contrasts.

    Args:
        rng: source of all randomness.
        low, high: range of the pattern cells per unit of length of the owner's space, sampled log-uniformly.
        flat: the owner is a plane at height 0: only turn the pattern about the vertical axis.
    """
    cells = math.exp(rng.uniform(math.log(low), math.log(high)))
    pattern = str(rng.choice(list(PATTERNS)))
    count = int(rng.integers(2, 5))
    linear = _palette(rng, count) ** 2.2
    level = np.linspace(0, 1, 256)
    if rng.uniform() < PATTERNS[pattern][1]:
        stops = np.linspace(0, 1, count)
        ramp = np.stack([np.interp(level, stops, channel) for channel in linear.T], axis=1)
    else:
        ramp = linear[np.minimum((level * count).astype(int), count - 1)]
    offset = rng.uniform(0, 16, (3, 1))
    if flat:
        offset[2] = 0.5  # through the middle of the cells, not along their joints
    return Material(
        name=f"{pattern}{count}",
        pattern=pattern,
        variant=float(rng.uniform()),
        frame=(cells * _rotation(rng, flat)).astype(np.float32),
        offset=offset.astype(np.float32),
        ramp=ramp.astype(np.float32),
        gloss=float(rng.uniform(0, 0.5) ** 2),
        shininess=float(np.exp(rng.uniform(np.log(8), np.log(80)))),
    )


def sample_material(rng: np.random.Generator, flat: bool) -> Material:
    """Draw a material of the ground (`flat`) or of a body: a hard one, in fine cells, with its contrast changed."""
    low, high = _GROUND_CELLS if flat else _BODY_CELLS
    material = sample_hard_material(rng, low, high, flat)
    contrast = rng.uniform(*(_GROUND_CONTRAST if flat else _BODY_CONTRAST))
    mean = material.ramp.mean(axis=0)
    ramp = np.clip((mean + contrast * (material.ramp - mean)) * rng.uniform(*_EXPOSURE), 0.01, 0.9)
    return dataclasses.replace(material, ramp=ramp.astype(np.float32), grain=float(rng.uniform(*_GRAIN)))
