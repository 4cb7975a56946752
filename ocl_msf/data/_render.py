"""A small ray caster: convex bodies on a ground that curves up into a backdrop, one sun with soft shadows.

Vectors are columns: arrays of points and directions are (3, n) or (3, h, w), float32, in world space with z up.
"""

from dataclasses import dataclass
from typing import List, Optional, Tuple

import numpy as np

from ocl_msf.data._textures import Material

# Sub-pixel offsets of the image samples in pixels (a rotated grid); each one sees the sun from another side.
_SAMPLES = ((-0.125, -0.375), (0.375, -0.125), (-0.375, 0.125), (0.125, 0.375))
_SUN_RADIUS = 0.09


@dataclass(frozen=True)
class Shape:
    """A convex body: what satisfies every plane and the quadric x'Ax + b z + c <= 0, with A diagonal.

    Attributes:
        planes: (k, 4) rows (nx, ny, nz, d) with n.p <= d, n of length 1.
        quadric: (ax, ay, az, b, c), or None.
        bottom: Height of its lowest point, negative.
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

# All shapes fit into a sphere of radius 1.3.
SHAPES = {
    "sphere": Shape(np.empty((0, 4), np.float32), (1, 1, 1, 0, -1), -1.0),
    "ellipsoid": Shape(np.empty((0, 4), np.float32), (0.7, 1.6, 2.2, 0, -1), -(2.2**-0.5)),
    "cube": _prism(4, 1.0, _CUBE),
    "prism": _prism(6, 0.95, 0.8),
    "pyramid": _pyramid(4, 1.1, 0.7),
    "cylinder": Shape(_CAPS, (1, 1, 0, 0, -0.8), -0.8),
    "cone": Shape(np.float32([(0, 0, 1, 0.9), (0, 0, -1, 0.9)]), (1, 1, -0.25, 0.45, -0.2025), -0.9),
}
_BOUND = 1.3


@dataclass(frozen=True)
class Body:
    """A shape in the world: scaled by `radius`, turned by `angle` (radians) about z, moved to `centre` (3,)."""

    shape: str
    radius: float
    angle: float
    centre: np.ndarray
    material: Material

    def to_local(self, vectors: np.ndarray) -> np.ndarray:
        """World directions (3, n) in the body's axes and units."""
        c, s = np.cos(self.angle) / self.radius, np.sin(self.angle) / self.radius
        x, y, z = vectors
        return np.stack([float(c) * x + float(s) * y, float(c) * y - float(s) * x, z * (1 / self.radius)])

    def interval(self, origin: np.ndarray, direction: np.ndarray) -> Tuple[np.ndarray, np.ndarray]:
        """Where rays (3, n) or (3, 1) enter and leave the body, in units of `direction`; empty where enter > leave."""
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
            value = (plane[:3, None] * local).sum(axis=0) - plane[3]
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
        """Rows and columns that hold the whole body."""
        x, y, depth = self.project(body.centre)
        reach = _BOUND * body.radius
        size = self.focal * self.width * reach / max(depth - reach, 0.1) * 1.1 + 1
        rows = slice(max(int(y - size), 0), max(int(y + size) + 1, 0))
        return rows, slice(max(int(x - size), 0), max(int(x + size) + 1, 0))


@dataclass(frozen=True)
class Light:
    """A sun and the light from everywhere else; directions (3,) point to the light, colours are linear RGB (3,)."""

    sun: np.ndarray
    sun_colour: np.ndarray
    fill: np.ndarray
    fill_colour: np.ndarray
    ambient: float


@dataclass(frozen=True)
class Scene:
    """What is rendered; the ground curves up with `curve_radius` from `curve_start` behind the origin on."""

    camera: Camera
    light: Light
    bodies: List[Body]
    ground: Material
    curve_start: float
    curve_radius: float


def trace(scene: Scene, rays: np.ndarray) -> Tuple[np.ndarray, np.ndarray]:
    """First hits of rays (3, h, w): body numbers from 1, 0 for the ground (h, w) uint8, and distances (h, w)."""
    ids = np.zeros(rays.shape[1:], np.uint8)
    distance = np.full(rays.shape[1:], np.inf, np.float32)
    for number, body in enumerate(scene.bodies, 1):
        rows, columns = scene.camera.window(body)
        part = rays[:, rows, columns]
        enter, leave = body.interval(scene.camera.position[:, None], part.reshape(3, -1))
        enter = np.where((enter < leave) & (enter > 0), enter, np.inf).reshape(part.shape[1:])
        closer = enter < distance[rows, columns]
        ids[rows, columns][closer] = number
        distance[rows, columns][closer] = enter[closer]
    return ids, distance


def _ground_hits(scene: Scene, rays: np.ndarray) -> Tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Where rays (3, n) meet the ground: points, normals and the points on the unrolled ground, each (3, n)."""
    origin = scene.camera.position
    ahead = scene.camera.axes[2] * np.float32([1, 1, 0])
    ahead = ahead / np.linalg.norm(ahead)
    along_origin, along = float(ahead @ origin), ahead[0] * rays[0] + ahead[1] * rays[1]
    flat = (rays[2] < 0) & (along_origin - origin[2] * along / np.minimum(rays[2], -1e-6) <= scene.curve_start)
    t = -origin[2] / np.minimum(rays[2], -1e-6)
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


def _shadow(scene: Scene, points: np.ndarray, ids: np.ndarray, sun: np.ndarray) -> np.ndarray:
    """1 where points (3, n) see the sun, 0 in shadow; a convex body casts none on itself."""
    lit = np.ones(points.shape[1], np.float32)
    side = np.cross(sun, np.float32([0, 0, 1]))
    side = side / np.linalg.norm(side)
    axes = np.stack([side, np.cross(side, sun)]).astype(np.float32)
    u, v = (axis[0] * points[0] + axis[1] * points[1] + axis[2] * points[2] for axis in axes)
    for number, body in enumerate(scene.bodies, 1):
        centre_u, centre_v = (axes @ body.centre).tolist()
        near = (u - centre_u) ** 2 + (v - centre_v) ** 2 < (_BOUND * body.radius) ** 2
        candidates = np.flatnonzero(near & (ids != number))
        enter, leave = body.interval(points[:, candidates], sun[:, None])
        lit[candidates[(enter < leave) & (leave > 0)]] = 0
    return lit


def _contact(scene: Scene, points: np.ndarray) -> np.ndarray:
    """The share of ambient light that ground points (3, n) keep under the bodies above them."""
    open_sky = np.ones(points.shape[1], np.float32)
    for body in scene.bodies:
        x, y, z = body.centre.tolist()
        distance = (points[0] - x) ** 2 + (points[1] - y) ** 2 + z**2
        open_sky *= 1 - 0.7 * np.minimum(body.radius**2 / distance, 1) ** 2
    return open_sky


def _shade(scene: Scene, rays: np.ndarray, sun: np.ndarray) -> np.ndarray:
    """Linear RGB (3, n) seen along rays (3, h, w)."""
    ids, distance = trace(scene, rays)
    ids, distance, rays = ids.ravel(), distance.ravel(), rays.reshape(3, -1)
    points, normals, colour = np.empty_like(rays), np.empty_like(rays), np.empty_like(rays)
    gloss, shininess = np.empty_like(distance), np.empty_like(distance)
    open_sky = np.ones_like(distance)
    for number in range(len(scene.bodies) + 1):
        where = np.flatnonzero(ids == number)
        material = scene.bodies[number - 1].material if number else scene.ground
        if number:
            body = scene.bodies[number - 1]
            hits = scene.camera.position[:, None] + distance[where] * rays[:, where]
            normals[:, where] = body.normal(hits)
            surface = body.to_local(hits - body.centre[:, None])
        else:
            hits, normals[:, where], surface = _ground_hits(scene, rays[:, where])
            open_sky[where] = _contact(scene, hits)
        points[:, where] = hits
        colour[:, where] = material.albedo(surface)
        gloss[where], shininess[where] = material.gloss, material.shininess
    light = scene.light
    lit = _shadow(scene, points, ids, sun)
    half = sun[:, None] - rays / np.sqrt((rays**2).sum(axis=0))
    glint = (normals * half).sum(axis=0) / np.sqrt((half**2).sum(axis=0))
    diffuse = np.maximum((normals * sun[:, None]).sum(axis=0), 0) * lit
    fill = np.maximum((normals * light.fill[:, None]).sum(axis=0), 0) * open_sky
    ambient = light.ambient * (0.65 + 0.35 * normals[2]) * open_sky
    highlight = gloss * np.maximum(glint, 0) ** shininess * lit
    return colour * (light.sun_colour[:, None] * diffuse + light.fill_colour[:, None] * fill + ambient) + highlight


def render(scene: Scene) -> np.ndarray:
    """The scene's image, anti-aliased, with soft shadows: (height, width, 3) uint8."""
    light = scene.light
    total = np.zeros((3, scene.camera.height * scene.camera.width), np.float32)
    for number, (dx, dy) in enumerate(_SAMPLES):
        angle = np.pi / 2 * number
        across = np.cross(light.sun, np.float32([0, 0, 1]))
        up = np.cross(across, light.sun)
        sun = light.sun + _SUN_RADIUS * (np.cos(angle) * across + np.sin(angle) * up)
        sun = (sun / np.linalg.norm(sun)).astype(np.float32)
        total += np.minimum(_shade(scene, scene.camera.rays(dx, dy), sun), 1.5)
    encoded = np.clip(total / len(_SAMPLES), 0, 1) ** np.float32(1 / 2.2)
    image = (encoded * 255 + 0.5).astype(np.uint8)
    return np.ascontiguousarray(image.reshape(3, scene.camera.height, scene.camera.width).transpose(1, 2, 0))
