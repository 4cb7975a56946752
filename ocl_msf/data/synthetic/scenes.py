"""Make scenes like ClevrTex's, without any download; the command is `ocl-msf scenes`.

Three to ten textured bodies of very different sizes stand on a textured ground. The files have the layout of ClevrTex
(https://www.robots.ox.ac.uk/~vgg/data/clevrtex/), so that `ocl-msf convert clevrtex` reads them. Sizes of bodies,
contrasts, spectra and light are fitted to scenes that Blender rendered in ClevrTex's style, and so is what a blind grid
and clustering of colours score. Hard scenes have patterns as coarse as the bodies, in full contrast, in an even light.
"""

import functools
import itertools
import json
import math
from pathlib import Path
from typing import Any, Dict, List, Optional, Tuple

import numpy as np
from PIL import Image

from ocl_msf.data.shards import encode_png
from ocl_msf.data.synthetic._materials import sample_hard_material, sample_material
from ocl_msf.data.synthetic._render import Camera, Light, Scene, render, trace
from ocl_msf.data.synthetic._shapes import SHAPES, Body
from ocl_msf.data.synthetic._textures import Material
from ocl_msf.data.workers import run_tasks
from ocl_msf.files import DataError, encode_json, replacing

VERSION = 2  # of the generator: scenes of different versions differ and must not be mixed
HARD_VERSION = 1  # the hard scenes are those of the generator's first version
SIZES = {"large": (1.15, 1.35), "medium": (0.58, 0.7), "small": (0.26, 0.36)}  # ranges of the radii
_SHARES = (0.2, 0.38, 0.42)  # of the sizes among bodies
HARD_SIZES = {"large": (1.0, 1.35), "medium": (0.5, 0.75), "small": (0.22, 0.33)}
MIN_VISIBLE = 60 / (320 * 240)  # share of the frame that every body must cover
_AREA = 3.0  # bodies stand within +-_AREA of the origin in x and y
_MARGIN = 0.1
_PALETTE = [
    (0, 0, 0), (255, 0, 0), (0, 100, 0), (0, 0, 255), (255, 255, 0), (255, 0, 255), (0, 255, 255),
    (255, 140, 0), (128, 0, 128), (160, 220, 120), (250, 190, 200), (110, 70, 20), (128, 128, 128),
    (240, 240, 240),
]  # fmt: skip


def _camera(rng: np.random.Generator, width: int, height: int) -> Camera:
    position = np.array([7.2, -6.8, 5.1]) + rng.uniform(-0.5, 0.5, 3)
    forward = np.array([0, 0, 0.3]) - position
    forward /= np.linalg.norm(forward)
    right = np.cross(forward, [0, 0, 1])
    right /= np.linalg.norm(right)
    axes = np.stack([right, np.cross(right, forward), forward])
    return Camera(position.astype(np.float32), axes.astype(np.float32), 35 / 32, width, height)


def _light(rng: np.random.Generator, camera: Camera, hard: bool) -> Light:
    def direction(azimuth: float, elevation: float) -> np.ndarray:
        right, _, forward = camera.axes
        level = np.cos(azimuth) * right - np.sin(azimuth) * forward * [1, 1, 0]
        vector = level / np.linalg.norm(level) * np.cos(elevation) + np.array([0, 0, np.sin(elevation)])
        return vector.astype(np.float32)

    def colour(strength: float) -> np.ndarray:
        warmth = rng.uniform(-0.08, 0.08)
        return (strength * np.array([1 + warmth, 1, 1 - warmth])).astype(np.float32)

    azimuth = rng.uniform(-0.4, np.pi + 0.4)
    return Light(
        sun=direction(azimuth, rng.uniform(0.7, 1.15)),
        sun_colour=colour(rng.uniform(0.95, 1.3)),
        fill=direction(azimuth + np.pi + rng.uniform(-0.6, 0.6), 0.5),
        fill_colour=colour(rng.uniform(0.1, 0.25)),
        ambient=float(rng.uniform(0.2, 0.34)),
        distance=math.inf if hard else float(rng.uniform(6, 9)),
    )


def _radii(rng: np.random.Generator, hard: bool) -> List[float]:
    """Three to ten radii, the largest first; one is small, and one is not: in hard scenes it is large."""
    count = int(rng.integers(3, 11))
    first = "large" if hard else str(rng.choice(["large", "medium"], p=(0.3, 0.7)))
    sizes, shares = (HARD_SIZES, None) if hard else (SIZES, _SHARES)
    names = [first, "small"] + [str(rng.choice(list(sizes), p=shares)) for _ in range(count - 2)]
    return sorted((float(rng.uniform(*sizes[name])) for name in names), reverse=True)


def _bodies(rng: np.random.Generator, hard: bool) -> Optional[List[Body]]:
    """Three to ten bodies that do not touch; None if they do not fit."""
    bodies: List[Body] = []
    for radius in _radii(rng, hard):
        shape = str(rng.choice(list(SHAPES)))
        for _ in range(60):
            x, y = rng.uniform(-_AREA, _AREA, 2)
            if all(math.dist((x, y), b.centre[:2]) > 1.2 * (b.radius + radius) + _MARGIN for b in bodies):
                break
        else:
            return None
        centre = np.array([x, y, -SHAPES[shape].bottom * radius]).astype(np.float32)
        bodies.append(Body(shape, radius, float(rng.uniform(0, 2 * np.pi)), centre))
    return [bodies[i] for i in rng.permutation(len(bodies))]


def _materials(rng: np.random.Generator, bodies: int, hard: bool) -> List[Material]:
    if not hard:
        return [sample_material(rng, flat=number == 0) for number in range(bodies + 1)]
    ground = sample_hard_material(rng, 0.6, 2.5, flat=True)
    return [ground] + [sample_hard_material(rng, 1.2, 4, flat=False) for _ in range(bodies)]


def sample_scene(seed: int, index: int, width: int, height: int, hard: bool = False) -> Tuple[Scene, np.ndarray]:
    """Draw scene `index` of the infinite series `seed`.

    Returns:
        The scene, in which every body is visible, and its instance mask (height, width) uint8: 0 for the ground, i
        for the i-th body.
    """
    for attempt in itertools.count():
        rng = np.random.default_rng([seed, index, attempt])
        bodies = _bodies(rng, hard)
        if bodies is None:
            continue
        camera = _camera(rng, width, height)
        mask, _ = trace(camera, bodies, camera.rays(0, 0))
        visible = np.bincount(mask.ravel(), minlength=len(bodies) + 1)[1:]
        if visible.min() > MIN_VISIBLE * mask.size:
            break
    scene = Scene(
        camera=camera,
        light=_light(rng, camera, hard),
        bodies=bodies,
        materials=_materials(rng, len(bodies), hard),
        curve_start=float(rng.uniform(4.5, 6)),
        curve_radius=float(rng.uniform(6, 8)),
    )
    return scene, mask


def _directions(camera: Camera) -> Dict[str, List[float]]:
    right, _, forward = camera.axes
    behind = forward * [1, 1, 0] / np.linalg.norm(forward[:2])
    vectors = {"behind": behind, "front": -behind, "left": -right, "right": right}
    vectors.update(above=np.array([0, 0, 1]), below=np.array([0, 0, -1]))
    return {name: [float(x) for x in vector] for name, vector in vectors.items()}


def _object_record(number: int, body: Body, material: Material, camera: Camera) -> Dict[str, Any]:
    x, y, depth = camera.project(body.centre)
    mean = material.ramp.mean(axis=0) ** (1 / 2.2) * 255
    return {
        "shape": body.shape,
        "rotation": math.degrees(body.angle),
        "size": next(name for name, (low, _) in HARD_SIZES.items() if body.radius >= low),
        "radius": body.radius,
        "3d_coords": [float(v) for v in body.centre],
        "pixel_coords": [round(x), round(y), depth],
        "index": number,
        "color": "#" + bytes(int(v) for v in mean).hex(),
        "material": material.name,
    }


def _metadata(scene: Scene, name: str, index: int, origin: Dict[str, Any]) -> Dict[str, Any]:
    directions = _directions(scene.camera)
    owners = zip(scene.bodies, scene.materials[1:])
    objects = [_object_record(i, body, material, scene.camera) for i, (body, material) in enumerate(owners, 1)]
    places = np.stack([body.centre for body in scene.bodies])
    relationships = {}
    for direction in ("behind", "front", "left", "right"):
        along = places @ np.float32(directions[direction])
        relationships[direction] = [np.flatnonzero(along > here + 0.2).tolist() for here in along]
    return {
        "num_objects": len(scene.bodies),
        "split": "full",
        "image_index": index,
        "image_filename": name + ".png",
        "mask_filename": name + "_flat.png",
        "ground_material": scene.materials[0].name,
        "directions": directions,
        "objects": objects,
        "relationships": relationships,
        "generator": origin,
    }


def scene_path(out: Path, index: int) -> Path:
    """The path of scene `index` below `out`, without `.png`, `_flat.png` or `.json`."""
    return out / "clevrtex_full" / str(index // 1000) / f"CLEVRTEX_full_{index:06d}"


def _origin(seed: int, size: Tuple[int, int], hard: bool) -> Dict[str, Any]:
    return {"version": HARD_VERSION if hard else VERSION, "seed": seed, "size": list(size)}


def write_scene(out: Path, seed: int, size: Tuple[int, int], hard: bool, index: int) -> None:
    """Render scene `index` and write its three files, the JSON last: where there is one, the scene is complete."""
    scene, mask = sample_scene(seed, index, *size, hard=hard)
    path = scene_path(out, index)
    opaque = np.full(mask.shape + (1,), 255, np.uint8)
    palette_image = Image.fromarray(mask)
    palette_image.putpalette([value for colour in _PALETTE * 4 for value in colour])
    metadata = _metadata(scene, path.name, index, _origin(seed, size, hard))
    contents = {
        ".png": encode_png(Image.fromarray(np.concatenate([render(scene), opaque], axis=2)), 1),
        "_flat.png": encode_png(palette_image, 1),
        ".json": encode_json(metadata, 1),
    }
    for ending, content in contents.items():
        with replacing(path.with_name(path.name + ending)) as file:
            file.write(content)


def _is_complete(out: Path, seed: int, size: Tuple[int, int], hard: bool, index: int) -> bool:
    path = scene_path(out, index)
    record = path.with_name(path.name + ".json")
    if not all(path.with_name(path.name + ending).exists() for ending in (".png", "_flat.png", ".json")):
        return False
    try:
        settings = json.loads(record.read_text()).get("generator")
    except ValueError:
        return False
    if settings != _origin(seed, size, hard):
        raise DataError(f"{record} is a scene made with other settings ({settings}). Use those or another folder.")
    return True


def make_scenes(
    out: Path, count: int, seed: int = 0, size: Tuple[int, int] = (320, 240), workers: int = 2, hard: bool = False
) -> int:
    """Write scenes 0 to `count` - 1 in ClevrTex's layout; existing ones are kept.

    Args:
        out: folder that gets `clevrtex_full/<index // 1000>/CLEVRTEX_full_<index>{.png,_flat.png,.json}`.
        count: number of scenes.
        seed: a scene depends on seed, size and its index alone.
        size: width and height in pixels.
        workers: number of processes.
        hard: patterns as coarse as the bodies, in full contrast, in an even light: the scenes of version 1.

    Returns:
        How many scenes were new.

    Raises:
        DataError: `out` holds scenes made with other settings, or the disk is full.
    """
    missing = [index for index in range(count) if not _is_complete(out, seed, size, hard, index)]
    task = functools.partial(write_scene, out, seed, size, hard)
    return sum(1 for _ in run_tasks(task, missing, workers, "scenes", chunk=4))
