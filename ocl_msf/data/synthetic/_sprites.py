"""Flat textured objects that move over a ground, drawn from back to front."""

import math
from dataclasses import dataclass
from typing import Callable, List, Tuple

import numpy as np

from ocl_msf.data.synthetic._textures import Material

CLIP = 24  # frames: the unit of time of velocities
WALLS = (-0.1, 1.1)  # where objects bounce off, in frame widths
_OVERSAMPLING = 2  # like MOVi's 128 pixels from 256: colours are averaged, masks take every second pixel
_GROUND_UNITS = 6.0  # units of the ground's pattern in a frame width


def _regular(sides: int) -> Callable[[np.ndarray, np.ndarray], np.ndarray]:
    angles = np.arange(sides) * 2 * np.pi / sides
    return lambda u, v: np.maximum.reduce([np.cos(a) * u + np.sin(a) * v for a in angles]) < np.cos(np.pi / sides)


def _lobed(lobes: int, depth: float) -> Callable[[np.ndarray, np.ndarray], np.ndarray]:
    return lambda u, v: np.hypot(u, v) < 1 - depth + depth * np.cos(lobes * np.arctan2(v, u))


# name: whether points (u, v) are inside; all fit into the unit circle
OUTLINES = {
    "disc": lambda u, v: u**2 + v**2 < 1,
    "ellipse": lambda u, v: u**2 + (v / 0.6) ** 2 < 1,
    "triangle": _regular(3),
    "square": _regular(4),
    "hexagon": _regular(6),
    "bar": lambda u, v: (np.abs(u) < 0.9) & (np.abs(v) < 0.4),
    "cross": lambda u, v: (np.minimum(np.abs(u), np.abs(v)) < 0.3) & (np.maximum(np.abs(u), np.abs(v)) < 0.9),
    "star": _lobed(5, 0.25),
    "clover": _lobed(3, 0.2),
}


@dataclass(frozen=True)
class MovingObject:
    """A flat object that moves over the ground.

    Attributes:
        outline: key of `OUTLINES`.
        material: its texture.
        radius: in frame widths.
        start: (2,) position (x, y) in frame 0, (0, 0) the upper left corner of the frame and (1, 1) the lower
            right one.
        velocity: (2,) per clip of 24 frames; (0, 0) for objects at rest.
        angle: in frame 0, in radians.
        spin: radians per clip.
    """

    outline: str
    material: Material
    radius: float
    start: np.ndarray
    velocity: np.ndarray
    angle: float
    spin: float

    def position(self, time: float) -> np.ndarray:
        """The position (2,) at a time in clips, on a line that the walls reflect."""
        low, high = WALLS
        distance = self.start + self.velocity * time - low
        return low + np.abs((distance + high - low) % (2 * (high - low)) - (high - low))


@dataclass(frozen=True)
class MovingScene:
    """The content of a video: `objects` from back to front, and the velocity `camera` (2,) in frame widths per clip."""

    ground: Material
    objects: List[MovingObject]
    camera: np.ndarray
    light: np.ndarray


def _colours(material: Material, points: np.ndarray) -> np.ndarray:
    """sRGB (n, 3) uint8 of points (3, n)."""
    linear = np.clip(0.9 * material.albedo(points.astype(np.float32)), 0, 1)
    return (linear.T ** np.float32(1 / 2.2) * 255 + 0.5).astype(np.uint8)


def _ground_texture(material: Material, side: int, margin: int) -> np.ndarray:
    """The ground (h, h, 3) uint8, h = side + 2 margin, with the frame at its centre."""
    along = np.arange(-margin, side + margin) * (_GROUND_UNITS / side)
    x, y = (axis.ravel() for axis in np.meshgrid(along, along))
    return _colours(material, np.stack([x, y, np.zeros_like(x)])).reshape(len(along), len(along), 3)


def _object_texture(item: MovingObject, side: int) -> np.ndarray:
    """The texture (h, h, 3) uint8 at local positions from (-1, -1) to (1, 1), with the pattern of a dome."""
    along = np.linspace(-1, 1, max(int(2 * item.radius * side), 4))
    u, v = (axis.ravel() for axis in np.meshgrid(along, along))
    dome = np.sqrt(np.maximum(1 - u**2 - v**2, 0))
    return _colours(item.material, np.stack([u, v, dome])).reshape(len(along), len(along), 3)


def _paint(
    frame: np.ndarray,
    numbers: np.ndarray,
    item: MovingObject,
    number: int,
    texture: np.ndarray,
    centre: np.ndarray,
    turn: float,
    light: np.ndarray,
) -> None:
    """Draw an object, its centre (x, y) in pixels, into a frame (s, s, 3) and its number into a mask (s, s)."""
    side = len(frame)
    radius = item.radius * side
    left, top = (max(int(c - radius), 0) for c in centre)
    right, bottom = (min(int(c + radius) + 2, side) for c in centre)
    if left >= right or top >= bottom:
        return
    dx = (np.arange(left, right, dtype=np.float32) + 0.5 - centre[0]) / radius
    dy = ((np.arange(top, bottom, dtype=np.float32) + 0.5 - centre[1]) / radius)[:, None]
    cos, sin = math.cos(turn), math.sin(turn)
    u, v = cos * dx + sin * dy, cos * dy - sin * dx
    inside = OUTLINES[item.outline](u, v)
    rows, columns = (((axis[inside] + 1) * 0.5 * len(texture)).astype(np.intp) for axis in (v, u))
    shade = np.clip(0.85 + 0.3 * (light[0] * dx + light[1] * dy), 0.4, 1)[inside]
    frame[top:bottom, left:right][inside] = texture[rows, columns] * shade[:, None]
    numbers[top:bottom, left:right][inside] = number


def render_video(scene: MovingScene, frames: int, size: int) -> Tuple[np.ndarray, np.ndarray]:
    """Frames (T, size, size, 3) uint8 and masks (T, size, size) uint8: 0 the ground, i the i-th object."""
    side = size * _OVERSAMPLING
    path = scene.camera * ((frames - 1) / CLIP)
    margin = int(math.ceil(np.abs(path).max() * side)) + 1
    ground = _ground_texture(scene.ground, side, margin)
    textures = [_object_texture(item, side) for item in scene.objects]
    video = np.empty((frames, size, size, 3), np.uint8)
    masks = np.empty((frames, size, size), np.uint8)
    for t in range(frames):
        time = t / CLIP
        x, y = np.rint(scene.camera * time * side).astype(int) + margin
        frame = ground[y : y + side, x : x + side].copy()
        numbers = np.zeros((side, side), np.uint8)
        for number, (item, texture) in enumerate(zip(scene.objects, textures), 1):
            centre = (item.position(time) - scene.camera * time) * side
            _paint(frame, numbers, item, number, texture, centre, item.angle + item.spin * time, scene.light)
        blocks = frame.reshape(size, _OVERSAMPLING, size, _OVERSAMPLING, 3)
        video[t] = (blocks.sum(axis=(1, 3), dtype=np.uint16) + 2) // _OVERSAMPLING**2
        masks[t] = numbers[::_OVERSAMPLING, ::_OVERSAMPLING]
    return video, masks
