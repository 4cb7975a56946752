"""Segmentations that know nothing of objects: a grid that never sees the image, and clusters of colours.

The grid rewards whoever learns places, the clusters whoever learns colours. A model that has found objects is ahead of
both.
"""

import functools
import hashlib
import io
import os
import zipfile
from pathlib import Path
from typing import Dict, Mapping, Sequence

import numpy as np
from sklearn.cluster import KMeans

from ocl_msf.files import DataError, replacing

MOST_PIXELS = 4096  # of an image or video that k-means is fitted to: an image of 64x64 is taken whole


@functools.lru_cache(maxsize=8)
def blind_grid(height: int, width: int, segments: int) -> np.ndarray:
    """Compact segments of about equal size: k-means on the coordinates of pixels, the best of 4 starts.

    Args:
        height, width: of the image, in pixels.
        segments: how many, at most as many as there are pixels.

    Returns:
        Numbers of segments (h, w), uint8, from 0.
    """
    rows, columns = np.mgrid[:height, :width] / max(height, width)
    points = np.stack([rows, columns], -1).reshape(-1, 2)
    clustering = KMeans(min(segments, len(points)), n_init=4, random_state=0).fit(points)
    return clustering.labels_.reshape(height, width).astype(np.uint8)


def colour_centres(image: np.ndarray, segments: int) -> np.ndarray:
    """The colours that k-means finds in an image, or jointly in the frames of a video.

    One start (k-means++, seed 0) of 50 steps, fitted to `MOST_PIXELS` pixels if there are more, chosen by a fixed seed.

    Args:
        image: (..., 3), numbers on any scale.
        segments: how many colours, at most as many as the image has.

    Returns:
        Colours (m, 3), float64, m <= segments.
    """
    points = image.reshape(-1, 3).astype(np.float64)
    if len(points) > MOST_PIXELS:
        points = points[np.random.RandomState(0).choice(len(points), MOST_PIXELS, replace=False)]
    clusters = min(segments, len(np.unique(points, axis=0)))
    return KMeans(clusters, n_init=1, max_iter=50, random_state=0).fit(points).cluster_centers_


def nearest_colours(image: np.ndarray, centres: np.ndarray) -> np.ndarray:
    """The number of the nearest of some colours (m, 3) at every pixel of an image (..., 3): (...), uint8."""
    products = image.reshape(-1, 3).astype(np.float64) @ centres.T
    nearest = (np.square(centres).sum(1) - 2 * products).argmin(1)
    return nearest.reshape(image.shape[:-1]).astype(np.uint8)


class ColourClusters:
    """Colour clustering of images, whose centres are computed once and kept in a file.

    An image is known by its content, so that the file is right for whatever data it lies beside.

    Args:
        places: folders for the file, the first that can be written to is taken; the first that has one is read.
    """

    def __init__(self, places: Sequence[Path]):
        self.places = [Path(place) for place in places]
        self.known: Dict[str, Dict[str, np.ndarray]] = {}  # colours by name of the file and of the image
        self.new: Dict[str, Dict[str, np.ndarray]] = {}

    def segment(self, image: np.ndarray, segments: int) -> np.ndarray:
        """Numbers of segments (...), uint8, of an image or video (..., 3)."""
        file = f"colours-{'x'.join(map(str, image.shape[:-1]))}-{segments}.npz"
        if file not in self.known:
            self.known[file] = next(filter(None, (_read(place / file) for place in self.places)), {})
        name = hashlib.sha256(np.ascontiguousarray(image).tobytes()).hexdigest()[:32]
        if name not in self.known[file]:
            centres = colour_centres(image, segments)
            self.known[file][name] = self.new.setdefault(file, {})[name] = centres
        return nearest_colours(image, self.known[file][name])

    def save(self, found: Sequence[Mapping[str, Mapping[str, np.ndarray]]]) -> None:
        """Add to the files what ranks have found in their `new`; where no place can be written to, it is not kept."""
        for file in sorted({file for new in found for file in new}):
            for place in self.places:
                centres = {**_read(place / file)}
                for new in found:
                    centres.update(new.get(file, {}))
                try:
                    _write(place / file, centres)
                    break
                except (DataError, OSError):
                    continue
        self.new.clear()


def _read(path: Path) -> Dict[str, np.ndarray]:
    """Centres by the name of their image; none if the file is missing or damaged, which makes them anew."""
    try:
        with np.load(io.BytesIO(path.read_bytes()), allow_pickle=False) as file:
            names, counts, centres = file["names"], file["counts"], file["centres"]
    except (OSError, EOFError, KeyError, ValueError, zipfile.BadZipFile):
        return {}
    return dict(zip(names.tolist(), np.split(centres, np.cumsum(counts)[:-1])))


def _write(path: Path, centres: Mapping[str, np.ndarray]) -> None:
    own = path.with_name(f"{os.getpid()}-{path.name}")  # several evaluations may write at a time
    with replacing(own) as file:
        counts = [len(one) for one in centres.values()]
        np.savez(file, names=np.array([*centres]), counts=np.array(counts), centres=np.concatenate([*centres.values()]))
    os.replace(own, path)
