"""Make videos like MOVi's, without any download; the command is `ocl-msf videos`.

The files have the layout of MOVi-C, D and E (https://github.com/google-research/kubric), so that `ocl-msf convert movi`
reads them. The videos are far simpler: flat objects, textured and shaded like bodies, move over a textured ground,
cover each other, turn, bounce off walls around the frame, and leave it and return. Casting rays, as
`ocl_msf.data.synthetic.scenes` does, would take about six times as long.

c: 3 to 10 objects, all moving. d: 10 to 20 objects at rest and 1 to 3 moving. e: as d, with a moving camera.
"""

import functools
import json
import math
from pathlib import Path
from typing import Any, Callable, Dict, List, Sequence, Tuple

import numpy as np
from PIL import Image

from ocl_msf.data.shards import encode_png
from ocl_msf.data.synthetic._materials import sample_hard_material
from ocl_msf.data.synthetic._sprites import OUTLINES, WALLS, MovingObject, MovingScene, render_video
from ocl_msf.data.tfrecord import encode_example, write_records
from ocl_msf.data.workers import run_tasks
from ocl_msf.files import DataError, encode_json, replacing

VERSION = 1  # of the generator: videos of different versions differ and must not be mixed
VARIANTS = ("c", "d", "e")
SPLITS = ("train", "validation")
_PER_SHARD = 20
_DRIFT = 0.3  # greatest distance that the camera moves in a clip, in frame widths


def _direction(rng: np.random.Generator) -> np.ndarray:
    angle = rng.uniform(0, 2 * np.pi)
    return np.array([np.cos(angle), np.sin(angle)])


def sample_moving_scene(rng: np.random.Generator, variant: str) -> MovingScene:
    """Draw what a video shows."""
    if variant == "c":
        resting, moving = 0, int(rng.integers(3, 11))
    else:
        resting, moving = int(rng.integers(10, 21)), int(rng.integers(1, 4))
    low, high = (0.08, 0.2) if variant == "c" else (0.045, 0.11)
    objects: List[MovingObject] = []
    for moves in rng.permutation([False] * resting + [True] * moving):
        places = rng.uniform(*(WALLS if moves else (0.03, 0.97)), (3, 2))
        gaps = [min([math.dist(place, other.start) for other in objects], default=1) for place in places]
        speed = rng.uniform(0.3, 1.3) if moves else 0.0
        objects.append(
            MovingObject(
                outline=str(rng.choice(list(OUTLINES))),
                material=sample_hard_material(rng, 0.8, 2.5, flat=False),
                radius=math.exp(rng.uniform(math.log(low), math.log(high))),
                start=places[int(np.argmax(gaps))],
                velocity=speed * _direction(rng),
                angle=float(rng.uniform(0, 2 * np.pi)),
                spin=float(rng.uniform(-3, 3)) if moves else 0.0,
            )
        )
    return MovingScene(
        ground=sample_hard_material(rng, 0.5, 2, flat=True),
        objects=objects,
        camera=_direction(rng) * rng.uniform(0.1, _DRIFT) if variant == "e" else np.zeros(2),
        light=_direction(rng),
    )


def _by_visibility(objects: List[MovingObject], masks: np.ndarray) -> Tuple[List[MovingObject], np.ndarray]:
    """Number objects by their visible pixels in the video, most first, and drop those that are never visible."""
    pixels = np.bincount(masks.ravel(), minlength=len(objects) + 1)[1:]
    order = [i for i in np.argsort(-pixels, kind="stable") if pixels[i]]
    renumbered = np.zeros(len(objects) + 1, np.uint8)
    renumbered[np.array(order, int) + 1] = np.arange(1, len(order) + 1)
    return [objects[i] for i in order], renumbered[masks]


def tight_boxes(masks: np.ndarray, number: int) -> Tuple[np.ndarray, np.ndarray]:
    """Frames (m,) in which an object is visible, and its boxes there, (m, 4) float32.

    A box is (ymin, xmin, ymax, xmax) as shares of the frame, the maxima exclusive.
    """
    shown = masks == number
    frames = np.flatnonzero(shown.any(axis=(1, 2)))
    rows, columns = shown[frames].any(axis=2), shown[frames].any(axis=1)
    first = [axis.argmax(axis=1) for axis in (rows, columns)]
    last = [axis.shape[1] - axis[:, ::-1].argmax(axis=1) for axis in (rows, columns)]
    return frames, (np.stack(first + last, axis=1) / masks.shape[1]).astype(np.float32).reshape(-1, 4)


def make_video(variant: str, seed: int, frames: int, size: int, split: str, index: int) -> Dict[str, Any]:
    """Video `index` of a split as the features of a MOVi record; it depends on the arguments alone."""
    rng = np.random.default_rng([VERSION, seed, VARIANTS.index(variant), SPLITS.index(split), index])
    scene = sample_moving_scene(rng, variant)
    video, masks = render_video(scene, frames, size)
    objects, masks = _by_visibility(scene.objects, masks)
    shown = [tight_boxes(masks, number) for number in range(1, len(objects) + 1)]
    lengths = np.array([len(times) for times, _ in shown], np.int64)
    features = {
        "video": [encode_png(Image.fromarray(frame), 1) for frame in video],
        "segmentations": [encode_png(Image.fromarray(mask), 1) for mask in masks],
        "instances/bboxes/ragged_flat_values": np.concatenate([np.zeros((0, 4))] + [boxes for _, boxes in shown]),
        "instances/bboxes/ragged_row_lengths_0": lengths,
        "instances/bbox_frames/ragged_flat_values": np.concatenate([np.zeros(0, int)] + [times for times, _ in shown]),
        "instances/bbox_frames/ragged_row_lengths_0": lengths,
        "instances/visibility": np.stack([np.bincount(m.ravel(), minlength=256) for m in masks], 1)[
            1 : len(objects) + 1
        ],
        "instances/asset_id": [f"{item.outline}-{item.material.name}".encode() for item in objects],
        "metadata/video_name": [f"{split}-{index}".encode()],
        "metadata/num_instances": np.array([len(objects)]),
        "metadata/num_frames": np.array([frames]),
        "metadata/width": np.array([size]),
        "metadata/height": np.array([size]),
        "background": [scene.ground.name.encode()],
    }
    if variant != "c":
        features["instances/is_dynamic"] = np.array([int(item.velocity.any()) for item in objects])
    return features


def _write_shard(make: Callable[..., Dict[str, Any]], task: Tuple[Path, str, Sequence[int]]) -> None:
    path, split, indices = task
    with replacing(path) as file:
        write_records(file, (encode_example(make(split, index)) for index in indices))


def _record_settings(folder: Path, settings: Dict[str, Any]) -> None:
    """Write the settings into a folder, or compare them with those that are recorded there."""
    path = folder / "generator.json"
    if path.exists():
        try:
            earlier = json.loads(path.read_text())
        except ValueError:
            earlier = None
        if earlier != settings:
            raise DataError(f"{folder} has videos of other settings ({earlier}). Use those or another folder.")
        return
    with replacing(path) as file:
        file.write(encode_json(settings))


def make_moving_scenes(
    out: Path,
    videos: int,
    validation: int,
    variant: str = "c",
    frames: int = 24,
    size: int = 128,
    seed: int = 0,
    workers: int = 2,
) -> Path:
    """Write videos in MOVi's layout; existing shards are kept.

    Args:
        out: folder that gets `movi_<variant>/<size>x<size>/1.0.0/movi_<variant>-<split>.tfrecord-<n>-of-<count>`.
        videos: number of training videos.
        validation: number of validation videos.
        variant: c, d or e.
        frames: per video.
        size: height and width in pixels.
        seed: other seeds give other videos.
        workers: number of processes.

    Returns:
        The folder of the shards.

    Raises:
        DataError: the folder holds videos of other settings, or the disk is full.
    """
    folder = out / f"movi_{variant}" / f"{size}x{size}" / "1.0.0"
    settings = {"variant": variant, "seed": seed, "frames": frames, "size": size}
    _record_settings(folder, {"version": VERSION, **settings, "videos": videos, "validation": validation})
    tasks = []
    for split, total in zip(SPLITS, (videos, validation)):
        count = -(-total // _PER_SHARD)
        for shard in range(count):
            path = folder / f"movi_{variant}-{split}.tfrecord-{shard:05d}-of-{count:05d}"
            if not path.exists():
                tasks.append((path, split, range(total)[shard::count]))
    write = functools.partial(_write_shard, functools.partial(make_video, variant, seed, frames, size))
    for _ in run_tasks(write, tasks, workers, f"shards of up to {_PER_SHARD} videos"):
        pass
    return folder
