"""A small ray caster: convex bodies on a ground that curves up into a backdrop, one sun with soft shadows.

Vectors are columns: points and directions are (3, n) or (3, h, w), float32, in world space with z up.
"""

import math
from dataclasses import dataclass
from typing import List, Tuple

import numpy as np

from ocl_msf.data.synthetic._shapes import BOUND, Body, cross, dot
from ocl_msf.data.synthetic._textures import Material

# Sub-pixel offsets of the image samples in pixels (a rotated grid); the sun moves a little from one to the next.
_SAMPLES = ((-0.125, -0.375), (0.375, -0.125), (-0.375, 0.125), (0.125, 0.375))
_SUN_RADIUS = 0.09


@dataclass(frozen=True)
class Camera:
    """A pinhole camera; `axes` (3, 3) has the rows right, up, forward, `focal` is in image widths."""

    position: np.ndarray
    axes: np.ndarray
    focal: float
    width: int
    height: int

    def rays(self, dx: float, dy: float) -> np.ndarray:
        """Directions (3, height, width) through the pixel centres moved by (dx, dy) pixels, of depth 1."""
        scale = 1 / (self.focal * self.width)
        x = (np.arange(self.width, dtype=np.float32) + float(0.5 + dx - self.width / 2)) * scale
        y = (np.arange(self.height, dtype=np.float32) + float(0.5 + dy - self.height / 2)) * scale
        right, up, forward = self.axes[:, :, None, None]
        return forward + right * x - up * y[:, None]

    def project(self, point: np.ndarray) -> Tuple[float, float, float]:
        """Pixel position and depth of a world point (3,)."""
        x, y, depth = self.axes @ (point - self.position)
        scale = self.focal * self.width / depth
        return float(self.width / 2 + x * scale), float(self.height / 2 - y * scale), float(depth)

    def window(self, body: Body) -> Tuple[slice, slice]:
        """Rows and columns that contain the whole body."""
        x, y, depth = self.project(body.centre)
        reach = BOUND * body.radius
        size = self.focal * self.width * reach / max(depth - reach, 0.1) * 1.1 + 1
        rows = slice(max(int(y - size), 0), max(int(y + size) + 1, 0))
        return rows, slice(max(int(x - size), 0), max(int(x + size) + 1, 0))


@dataclass(frozen=True)
class Light:
    """A sun, a fill light and ambient light; directions (3,) point to the light, colours (3,) are linear RGB.

    At a finite `distance` from the origin, the sun is a lamp: what is nearer to it is brighter.
    """

    sun: np.ndarray
    sun_colour: np.ndarray
    fill: np.ndarray
    fill_colour: np.ndarray
    ambient: float
    distance: float = math.inf

    def falloff(self, points: np.ndarray) -> np.ndarray:
        """How strongly the lamp lights points (3, n): (n,), 1 at the origin."""
        x, y, z = (self.distance * self.sun).tolist()
        return self.distance**2 / ((points[0] - x) ** 2 + (points[1] - y) ** 2 + (points[2] - z) ** 2)


@dataclass(frozen=True)
class Scene:
    """A scene to render.

    Attributes:
        bodies: numbered from 1; they do not touch.
        materials: of the ground, then of the bodies.
        curve_start: distance behind the origin from which the ground curves up.
        curve_radius: its radius.
    """

    camera: Camera
    light: Light
    bodies: List[Body]
    materials: List[Material]
    curve_start: float
    curve_radius: float


def trace(camera: Camera, bodies: List[Body], rays: np.ndarray) -> Tuple[np.ndarray, np.ndarray]:
    """First hits of rays (3, h, w): body numbers (h, w) uint8, 0 for the ground, and distances (h, w)."""
    ids = np.zeros(rays.shape[1:], np.uint8)
    distance = np.full(rays.shape[1:], np.inf, np.float32)
    for number, body in enumerate(bodies, 1):
        rows, columns = camera.window(body)
        part = rays[:, rows, columns]
        enter, leave = body.interval(camera.position[:, None], part.reshape(3, -1))
        enter = np.where((enter < leave) & (enter > 0), enter, np.inf).reshape(part.shape[1:])
        closer = enter < distance[rows, columns]
        ids[rows, columns][closer] = number
        distance[rows, columns][closer] = enter[closer]
    return ids, distance


def _ground_hits(scene: Scene, rays: np.ndarray) -> Tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Where rays (3, n) meet the ground: points, normals and points on the unrolled ground, each (3, n)."""
    origin = scene.camera.position
    ahead = scene.camera.axes[2] * np.float32([1, 1, 0])
    ahead = ahead / np.linalg.norm(ahead)
    along_origin, along = float(ahead @ origin), ahead[0] * rays[0] + ahead[1] * rays[1]
    t = -origin[2] / np.minimum(rays[2], -1e-6)
    flat = along_origin + t * along <= scene.curve_start
    # The rest meets the inside of a lying cylinder: the farther root of a quadratic in (along, z).
    bent = np.flatnonzero(~flat)
    o_s, o_z = along_origin - scene.curve_start, float(origin[2]) - scene.curve_radius
    d_s, d_z = along[bent], rays[2, bent]
    a, b = d_s**2 + d_z**2, o_s * d_s + o_z * d_z
    c = o_s**2 + o_z**2 - scene.curve_radius**2
    t[bent] = (np.sqrt(np.maximum(b**2 - a * c, 0)) - b) / a
    points = origin[:, None] + t * rays
    normals = np.zeros_like(points)
    normals[2] = 1
    unrolled = points * np.float32([[1], [1], [0]])
    s, z = o_s + t[bent] * d_s, o_z + t[bent] * d_z
    normals[:, bent] = -ahead[:, None] * (s / scene.curve_radius)
    normals[2, bent] = -z / scene.curve_radius
    unrolled[:, bent] += ahead[:, None] * (scene.curve_radius * np.arctan2(s, -z) - s)
    return points, normals, unrolled


def _lit(scene: Scene, points: np.ndarray, owner: int, sun: np.ndarray) -> np.ndarray:
    """1 for points (3, n) of body `owner` in the sun, 0 in shadow; a convex body casts none on itself."""
    lit = np.ones(points.shape[1], np.float32)
    side = cross(sun, np.float32([0, 0, 1]))
    side = side / np.linalg.norm(side)
    axes = np.stack([side, cross(side, sun)]).astype(np.float32)
    u, v = (axis[0] * points[0] + axis[1] * points[1] + axis[2] * points[2] for axis in axes)
    for number, body in enumerate(scene.bodies, 1):
        if number == owner:
            continue
        centre_u, centre_v = (axes @ body.centre).tolist()
        near = np.flatnonzero((u - centre_u) ** 2 + (v - centre_v) ** 2 < (BOUND * body.radius) ** 2)
        if not near.size:
            continue
        enter, leave = body.interval(points.take(near, axis=1), sun[:, None])
        lit[near[(enter < leave) & (leave > 0)]] = 0
    return lit


def _open_sky(scene: Scene, points: np.ndarray) -> np.ndarray:
    """The share of indirect light that reaches ground points (3, n) under bodies."""
    share = np.ones(points.shape[1], np.float32)
    for body in scene.bodies:
        x, y, z = body.centre.tolist()
        distance = (points[0] - x) ** 2 + (points[1] - y) ** 2 + z**2
        share *= 1 - 0.7 * np.minimum(body.radius**2 / distance, 1) ** 2
    return share


def _shade(scene: Scene, owner: int, rays: np.ndarray, distance: np.ndarray, sun: np.ndarray) -> np.ndarray:
    """Linear RGB (3, n) of rays (3, n) that hit body `owner`, or the ground, at `distance` (n,)."""
    if owner:
        body = scene.bodies[owner - 1]
        points = scene.camera.position[:, None] + distance * rays
        normals, surface = body.normal(points), body.to_local(points - body.centre[:, None])
    else:
        points, normals, surface = _ground_hits(scene, rays)
    material, light = scene.materials[owner], scene.light
    lit = _lit(scene, points, owner, sun)
    if math.isfinite(light.distance):
        lit *= light.falloff(points)
    indirect = light.ambient * (0.65 + 0.35 * normals[2])
    indirect = indirect + light.fill_colour[:, None] * np.maximum(dot(light.fill, normals), 0)
    if not owner:
        indirect *= _open_sky(scene, points)
    direct = light.sun_colour[:, None] * (np.maximum(dot(sun, normals), 0) * lit)
    half = sun[:, None] - rays / np.sqrt((rays**2).sum(axis=0))
    cosine = np.maximum((normals * half).sum(axis=0) / np.sqrt((half**2).sum(axis=0)), 0)
    return material.albedo(surface) * (direct + indirect) + material.gloss * cosine**material.shininess * lit


def render(scene: Scene) -> np.ndarray:
    """The scene's image, anti-aliased, with soft shadows: (height, width, 3) uint8."""
    camera, middle = scene.camera, scene.light.sun
    across = np.cross(middle, np.float32([0, 0, 1]))
    up = np.cross(across, middle)
    total = np.zeros((3, camera.height * camera.width), np.float32)
    for number, (dx, dy) in enumerate(_SAMPLES):
        angle = np.pi / 2 * number
        sun = middle + _SUN_RADIUS * (np.cos(angle) * across + np.sin(angle) * up)
        sun = (sun / np.linalg.norm(sun)).astype(np.float32)
        rays = camera.rays(dx, dy)
        ids, distance = trace(camera, scene.bodies, rays)
        colour = np.empty_like(total)
        for owner in range(len(scene.bodies) + 1):
            where = np.flatnonzero(ids == owner)
            if not where.size:
                continue
            hits = rays.reshape(3, -1).take(where, axis=1), distance.ravel()[where]
            colour[:, where] = _shade(scene, owner, *hits, sun)
        total += np.minimum(colour, 1.5)
    encoded = np.clip(total / len(_SAMPLES), 0, 1) ** np.float32(1 / 2.2)
    image = (encoded * 255 + 0.5).astype(np.uint8)
    return np.ascontiguousarray(image.reshape(3, camera.height, camera.width).transpose(1, 2, 0))
