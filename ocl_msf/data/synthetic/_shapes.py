"""Convex bodies as intersections of half-spaces and a quadric, and how rays meet them."""

from dataclasses import dataclass
from typing import Optional, Tuple

import numpy as np


def dot(vector: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """Products (n,) of one vector (3,) with columns (3, n)."""
    x, y, z = vector.tolist()
    return x * columns[0] + y * columns[1] + z * columns[2]


def cross(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """The cross product of two vectors (3,); `np.cross` takes many times as long for so few numbers."""
    (ax, ay, az), (bx, by, bz) = a, b
    return np.array([ay * bz - az * by, az * bx - ax * bz, ax * by - ay * bx])


@dataclass(frozen=True)
class Shape:
    """A convex body: the points within every plane and the quadric x'Ax + b z + c <= 0, with A diagonal.

    Attributes:
        planes: (k, 4) rows (nx, ny, nz, d) with n.p <= d, n of length 1.
        quadric: (ax, ay, az, b, c), or None.
        bottom: height of the lowest point, negative.
    """

    planes: np.ndarray
    quadric: Optional[Tuple[float, float, float, float, float]]
    bottom: float


def _prism(sides: int, radius: float, half_height: float) -> Shape:
    angles = np.arange(sides) * 2 * np.pi / sides
    inner = radius * np.cos(np.pi / sides)
    around = [(np.cos(a), np.sin(a), 0, inner) for a in angles]
    return Shape(np.float32([(0, 0, 1, half_height), (0, 0, -1, half_height)] + around), None, -half_height)


def _pyramid(sides: int, radius: float, half_height: float) -> Shape:
    angles = np.arange(sides) * 2 * np.pi / sides
    inner, height = radius * np.cos(np.pi / sides), 2 * half_height
    scale = 1 / np.hypot(height, inner)
    around = [
        (height * scale * np.cos(a), height * scale * np.sin(a), inner * scale, half_height * inner * scale)
        for a in angles
    ]
    return Shape(np.float32([(0, 0, -1, half_height)] + around), None, -half_height)


_CAPS = np.float32([(0, 0, 1, 0.8), (0, 0, -1, 0.8)])
_CUBE = 0.5**0.5

SHAPES = {
    "sphere": Shape(np.empty((0, 4), np.float32), (1, 1, 1, 0, -1), -1.0),
    "ellipsoid": Shape(np.empty((0, 4), np.float32), (0.7, 1.6, 2.2, 0, -1), -(2.2**-0.5)),
    "cube": _prism(4, 1.0, _CUBE),
    "prism": _prism(6, 0.95, 0.8),
    "pyramid": _pyramid(4, 1.1, 0.7),
    "cylinder": Shape(_CAPS, (1, 1, 0, 0, -0.8), -0.8),
    "cone": Shape(np.float32([(0, 0, 1, 0.9), (0, 0, -1, 0.9)]), (1, 1, -0.25, 0.45, -0.2025), -0.9),
}
BOUND = 1.31  # all shapes fit into a sphere of this radius


@dataclass(frozen=True)
class Body:
    """A shape in the world: scaled by `radius`, turned by `angle` (radians) about z, centred at `centre`."""

    shape: str
    radius: float
    angle: float
    centre: np.ndarray

    def to_local(self, vectors: np.ndarray) -> np.ndarray:
        """World directions (3, n) in the body's axes and units."""
        c, s = np.cos(self.angle) / self.radius, np.sin(self.angle) / self.radius
        x, y, z = vectors
        return np.stack([float(c) * x + float(s) * y, float(c) * y - float(s) * x, z * (1 / self.radius)])

    def interval(self, origin: np.ndarray, direction: np.ndarray) -> Tuple[np.ndarray, np.ndarray]:
        """Where rays (3, n) enter and leave, in units of `direction`; rays that miss enter after they leave."""
        shape = SHAPES[self.shape]
        o, d = self.to_local(origin - self.centre[:, None]), self.to_local(direction)
        enter = np.full(np.broadcast(o[0], d[0]).shape, -np.inf, np.float32)
        leave = np.full_like(enter, np.inf)
        for nx, ny, nz, offset in shape.planes.tolist():
            slope = nx * d[0] + ny * d[1] + nz * d[2]
            t = (offset - (nx * o[0] + ny * o[1] + nz * o[2])) / np.where(np.abs(slope) < 1e-9, 1e-9, slope)
            enter = np.where(slope < 0, np.maximum(enter, t), enter)
            leave = np.where(slope < 0, leave, np.minimum(leave, t))
        if shape.quadric is not None:
            first, last = _quadric_interval(shape.quadric, o, d)
            enter, leave = np.maximum(enter, first), np.minimum(leave, last)
        return enter, leave

    def normal(self, points: np.ndarray) -> np.ndarray:
        """World normals (3, n) at points (3, n) of the surface: the gradient of the tightest constraint."""
        shape = SHAPES[self.shape]
        local = self.to_local(points - self.centre[:, None])
        tightest = np.full(local.shape[1], -np.inf, np.float32)
        normal = np.zeros_like(local)
        for plane in shape.planes:
            value = dot(plane[:3], local) - plane[3]
            normal = np.where(value > tightest, plane[:3, None], normal)
            tightest = np.maximum(tightest, value)
        if shape.quadric is not None:
            ax, ay, az, b, c = shape.quadric
            scale = np.float32([[ax], [ay], [az]])
            gradient = 2 * scale * local
            gradient[2] += b
            length = np.sqrt((gradient**2).sum(axis=0)) + 1e-6
            value = ((scale * local**2).sum(axis=0) + b * local[2] + c) / length
            normal = np.where(value > tightest, gradient / length, normal)
        c, s = float(np.cos(self.angle)), float(np.sin(self.angle))
        x, y, z = normal
        return np.stack([c * x - s * y, s * x + c * y, z])


def _quadric_interval(quadric, o: np.ndarray, d: np.ndarray) -> Tuple[np.ndarray, np.ndarray]:
    ax, ay, az, b, c = quadric
    a2 = ax * d[0] ** 2 + ay * d[1] ** 2 + az * d[2] ** 2
    a1 = ax * o[0] * d[0] + ay * o[1] * d[1] + az * o[2] * d[2] + 0.5 * b * d[2]
    a0 = ax * o[0] ** 2 + ay * o[1] ** 2 + az * o[2] ** 2 + b * o[2] + c
    a2 = np.where(np.abs(a2) < 1e-9, 1e-9, a2)
    square = a1**2 - a2 * a0
    root = np.sqrt(np.maximum(square, 0)) / np.abs(a2)
    middle = -a1 / a2
    first, last = middle - root, middle + root
    # A ray steeper than a cone is inside the lower half from one root on, in the direction that goes down.
    steep, down = a2 < 0, d[2] < 0
    enter = np.where(steep, np.where(down, last, -np.inf), first)
    leave = np.where(steep, np.where(down, np.inf, first), last)
    return np.where((square < 0) & ~steep, np.inf, enter), leave
