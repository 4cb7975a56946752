"""Procedural solid textures: a scalar pattern in space, coloured by a ramp."""

import functools
from dataclasses import dataclass

import numpy as np

_VOXELS = 128  # the noise volume's edge; 8 voxels are one unit of pattern space, so it repeats every 16 units
_PER_UNIT = 8
_HASH = np.random.RandomState(71).permutation(4096).astype(np.float32) / 4096


@functools.lru_cache(maxsize=None)
def _noise_volume() -> np.ndarray:
    """A periodic random field with a fractal (1/f) spectrum, mean 0.5, mostly within 0..1."""
    white = np.random.RandomState(17).standard_normal((_VOXELS,) * 3)
    axis = np.fft.fftfreq(_VOXELS, 1 / _PER_UNIT)
    last = np.fft.rfftfreq(_VOXELS, 1 / _PER_UNIT)
    cycles = np.sqrt(axis[:, None, None] ** 2 + axis[None, :, None] ** 2 + last[None, None, :] ** 2)
    amplitude = np.where(cycles < 0.4, 0.0, np.maximum(cycles, 0.4) ** -2.3)
    field = np.fft.irfftn(np.fft.rfftn(white) * amplitude, s=white.shape, axes=(0, 1, 2))
    return (0.5 + 0.2 * field / field.std()).astype(np.float32).ravel()


def _flat_index(x: np.ndarray, y: np.ndarray, z: np.ndarray) -> np.ndarray:
    wrap = _VOXELS - 1
    return ((x & wrap) * _VOXELS + (y & wrap)) * _VOXELS + (z & wrap)


def fractal_noise(points: np.ndarray) -> np.ndarray:
    """Smooth noise at points (3, n), interpolated linearly: (n,), about 0.5."""
    volume = _noise_volume()
    scaled = points * _PER_UNIT
    floor = np.floor(scaled)
    fx, fy, fz = scaled - floor
    x, y, z = floor.astype(np.int32)

    def along_z(i: np.ndarray, j: np.ndarray) -> np.ndarray:
        low = volume[_flat_index(i, j, z)]
        return low + fz * (volume[_flat_index(i, j, z + 1)] - low)

    def along_y(i: np.ndarray) -> np.ndarray:
        low = along_z(i, y)
        return low + fy * (along_z(i, y + 1) - low)

    low = along_y(x)
    return low + fx * (along_y(x + 1) - low)


def _grain(points: np.ndarray) -> np.ndarray:
    """Rough noise at points (3, n): the nearest voxel, without interpolation."""
    return _noise_volume()[_flat_index(*(points * _PER_UNIT).astype(np.int32))]


def _cell_value(cells: np.ndarray) -> np.ndarray:
    """A random number 0..1 for each integer cell; cells (3, n) hold whole numbers."""
    x, y, z = cells.astype(np.int32)
    return _HASH[((x * 1619) ^ (y * 31337) ^ (z * 6971)) & 4095]


def _fraction(x: np.ndarray) -> np.ndarray:
    return x - np.floor(x)


# A pattern maps points (3, n) and one free number `v` in 0..1 to levels (n,), which are clipped to 0..1.


def _clouds(p: np.ndarray, v: float) -> np.ndarray:
    return (fractal_noise(p * 0.6) - 0.5) * (1.3 + v) + 0.5


def _contours(p: np.ndarray, v: float) -> np.ndarray:
    return _fraction(fractal_noise(p * 0.35) * (4 + 5 * v))


def _marble(p: np.ndarray, v: float) -> np.ndarray:
    return 0.5 + 0.5 * np.sin(4 * p[0] + (8 + 8 * v) * fractal_noise(p * 0.5))


def _wood(p: np.ndarray, v: float) -> np.ndarray:
    radius = np.sqrt(p[0] ** 2 + p[2] ** 2)
    return _fraction(radius + (0.5 + v) * fractal_noise(p * np.float32([[0.4], [0.1], [0.4]])))


def _speckles(p: np.ndarray, v: float) -> np.ndarray:
    return (fractal_noise(p * 1.5) - 0.5) * 4 + 0.3 + 0.4 * v


def _stripes(p: np.ndarray, v: float) -> np.ndarray:
    return _fraction(p[0] * 0.8)


def _wavy_stripes(p: np.ndarray, v: float) -> np.ndarray:
    return _fraction(p[0] * 0.8 + (0.3 + 0.5 * v) * np.sin(2.5 * p[1]))


def _chevrons(p: np.ndarray, v: float) -> np.ndarray:
    return _fraction(p[0] * 0.8 + (0.8 + 0.8 * v) * np.abs(_fraction(p[1] * 0.6) - 0.5))


def _checker(p: np.ndarray, v: float) -> np.ndarray:
    return np.floor(p).sum(axis=0) % 2


def _plaid(p: np.ndarray, v: float) -> np.ndarray:
    return (_fraction(p) < 0.25 + 0.3 * v).sum(axis=0) / np.float32(3)


def _dots(p: np.ndarray, v: float) -> np.ndarray:
    cells = np.floor(p)
    distance = ((p - cells - 0.5) ** 2).sum(axis=0)
    return np.where(distance < (0.33 + 0.12 * v) ** 2, 0.5 + 0.5 * _cell_value(cells), 0)


def _tiles(p: np.ndarray, v: float) -> np.ndarray:
    cells = np.floor(p)
    grout = (np.abs(p - cells - 0.5) > 0.47 - 0.05 * v).any(axis=0)
    return np.where(grout, 0, 0.25 + 0.75 * _cell_value(cells))


def _bricks(p: np.ndarray, v: float) -> np.ndarray:
    row = np.floor(p[1])
    shifted = np.stack([p[0] * 0.5 + 0.5 * (row % 2), p[1], p[2]])
    cells = np.floor(shifted)
    margin = np.abs(shifted - cells - 0.5)
    mortar = (margin > np.float32([[0.47], [0.44], [0.47]])).any(axis=0)
    return np.where(mortar, 0, 0.25 + 0.75 * _cell_value(cells))


def _weave(p: np.ndarray, v: float) -> np.ndarray:
    cells = np.floor(p)
    inside = np.abs(p - cells - 0.5)
    over = cells.sum(axis=0) % 2
    across = np.where(over > 0, inside[0], inside[1])
    return np.where(across > 0.34 + 0.1 * v, 0, (0.4 + 0.6 * over) * (1 - across))


def _stones(p: np.ndarray, v: float) -> np.ndarray:
    """Voronoi cells with gaps; of each point's neighbours only the eight nearest are searched."""
    base = np.floor(p - 0.5)
    first = np.full(p.shape[1], 9, np.float32)
    second = first.copy()
    value = np.zeros_like(first)
    for corner in np.ndindex(2, 2, 2):
        cells = base + np.float32(corner)[:, None]
        random = _cell_value(cells)
        jitter = np.stack([random, _fraction(random * 37), _fraction(random * 1369)]) * 0.6 + 0.2
        distance = ((p - cells - jitter) ** 2).sum(axis=0)
        second = np.minimum(second, np.maximum(first, distance))
        value = np.where(distance < first, random, value)
        first = np.minimum(first, distance)
    return np.where(second - first < 0.05 + 0.1 * v, 0, 0.25 + 0.75 * value)


# name: (pattern, chance that its palette blends smoothly instead of in steps)
PATTERNS = {
    "clouds": (_clouds, 0.5),
    "contours": (_contours, 0.4),
    "marble": (_marble, 0.8),
    "wood": (_wood, 0.8),
    "speckles": (_speckles, 0.3),
    "stripes": (_stripes, 0.2),
    "wavystripes": (_wavy_stripes, 0.2),
    "chevrons": (_chevrons, 0.0),
    "checker": (_checker, 0.0),
    "plaid": (_plaid, 0.0),
    "dots": (_dots, 0.0),
    "tiles": (_tiles, 0.4),
    "bricks": (_bricks, 0.4),
    "weave": (_weave, 0.8),
    "stones": (_stones, 0.4),
}


@dataclass(frozen=True)
class Material:
    """A pattern placed in space, its colours and its gloss.

    Attributes:
        name: pattern name with the number of colours.
        pattern: key of `PATTERNS`.
        variant: the pattern's free number, 0..1.
        frame: (3, 3), from the owner's space to pattern space; rotation times cells per unit length.
        offset: (3, 1), added after `frame`.
        ramp: (256, 3) linear RGB by level.
        gloss: strength of the highlight, 0..1.
        shininess: exponent of the highlight.
        grain: strength of the fine noise that the colours are multiplied by, 0..1.
    """

    name: str
    pattern: str
    variant: float
    frame: np.ndarray
    offset: np.ndarray
    ramp: np.ndarray
    gloss: float
    shininess: float
    grain: float = 0.5

    def albedo(self, points: np.ndarray) -> np.ndarray:
        """Linear RGB (3, n) at points (3, n) of the owner's space."""
        placed = np.einsum("ij,jn->in", self.frame, points) + self.offset
        level = PATTERNS[self.pattern][0](placed, self.variant)
        index = (np.clip(level, 0, 1) * 255).astype(np.intp)
        return self.ramp.T.take(index, axis=1) * (1 - self.grain / 2 + self.grain * _grain(placed * 3))
