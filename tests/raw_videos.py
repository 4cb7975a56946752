"""Little videos in the shards' layout of MOVi: two squares that move over noise."""

import numpy as np

from ocl_msf.data.shards import Conversion, encode_array, write_dataset


def encode_video(seed):
    """Of 10 boxes two are those of the squares, the others absent."""
    rng = np.random.default_rng(seed)
    video = rng.integers(0, 100, (12, 32, 32, 3), dtype=np.uint8)
    segments, boxes = np.zeros((12, 32, 32, 1), np.uint8), np.zeros((12, 10, 4), np.float32)
    for number in (1, 2):
        for frame in range(12):
            x, y = 4 + frame, 12 * number - 8
            video[frame, y : y + 8, x : x + 8] = 120 * number
            segments[frame, y : y + 8, x : x + 8] = number
            boxes[frame, number - 1] = np.array([x, y, x + 8, y + 8]) / 32
    arrays = {"video": video, "segmentations": segments, "instance_bbox": boxes}
    return f"{seed:06d}", {f"{name}.npy.gz": encode_array(array) for name, array in arrays.items()}


def write_videos(prefix, variants="cde"):
    """Write eight videos to train and four to validate as each of the MOVi variants."""
    for variant in variants:
        conversion = Conversion({}, {"train": range(8), "val": range(8, 12)}, encode_video)
        write_dataset(prefix / f"movi_{variant}", conversion, workers=1)
