"""Miniatures in the layout of the authors' LMDB files, with what they hold."""

import io
import pickle

import lmdb
import numpy as np
from PIL import Image


def file_of(array, form):
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, form, lossless=True)
    return buffer.getvalue()


def scene(seed, most=5, height=48, width=64):
    """An image and the numbers of its segments, some of them outside the central square alone."""
    generator = np.random.default_rng(seed)
    image = generator.integers(0, 256, (height, width, 3), np.uint8)
    numbers = np.zeros((height, width), np.uint8)
    for number in range(1, most + 1):
        top, left = generator.integers(0, height - 8), generator.integers(0, width - 8)
        numbers[top : top + 8, left : left + 8] = number
    numbers[:4, :4] = most + 1
    return image, numbers


def picture(seed):
    """A sample as ClevrTex and VOC have it: the segments are the content of a WebP file in a row of bytes."""
    image, numbers = scene(seed)
    rgb = np.repeat(numbers[..., None], 3, -1)
    return {"image": file_of(image, "PNG"), "segment": np.frombuffer(file_of(rgb, "WEBP"), np.uint8)}


def annotated(seed):
    """The same for COCO."""
    count = int(scene(seed)[1].max())
    generator = np.random.default_rng(seed)
    more = {
        "bbox": generator.random((count, 4), np.float32),
        "clazz": generator.integers(1, 201, count).astype(np.uint8),
        "isthing": generator.random(count) < 0.5,
    }
    return {**picture(seed), **more}


def write(path, samples, protocol=4):
    """An LMDB file with a pickle for each sample, and the pickled list of keys."""
    path.parent.mkdir(parents=True, exist_ok=True)
    keys = [f"{number:06d}".encode() for number in range(len(samples))]
    values = [x if isinstance(x, bytes) else pickle.dumps(x, protocol) for x in samples]
    with lmdb.open(str(path), subdir=False, map_size=2**24) as environment, environment.begin(
        write=True
    ) as transaction:
        for key, value in zip([b"__keys__", *keys], [pickle.dumps(keys, protocol), *values]):
            transaction.put(key, value)
