"""Pictures and videos in any form and size: to arrays, to a model's squares, and masks back to their size."""

import io
import itertools
import warnings
from pathlib import Path
from typing import Any, Callable, Iterable, Iterator, List, NamedTuple, Optional, Tuple, TypeVar, Union

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch.nn import functional as F

from ocl_msf.data.pictures import to_rgb
from ocl_msf.files import DataError

Frame = TypeVar("Frame")
OUTSIDE = 255  # in masks: pixels that the model has not been shown
FITS = ("crop", "stretch")
UNDERSTOOD = (
    "Pictures are paths, PIL images, arrays (h, w, 3) or tensors (3, h, w), one or several, uint8 or floats in [0, 1]; "
    "videos have a leading axis for their frames."
)


def read_picture(path: Union[str, Path], content: Optional[bytes] = None) -> np.ndarray:
    """Read a picture file as viewers show it: (h, w, 3), uint8.

    Args:
        path: the file.
        content: its bytes, if they have been read; `path` is then a name for messages.

    Raises:
        DataError: the file does not exist, is no picture, or has more pixels than Pillow takes for harmless.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # twice as many are an error
            with Image.open(path if content is None else io.BytesIO(content)) as image:
                return np.asarray(to_rgb(ImageOps.exif_transpose(image)))
    except Image.DecompressionBombError as error:
        limit = 2 * (Image.MAX_IMAGE_PIXELS or 0)
        raise DataError(
            f"{path} has more than {limit:,} pixels, which can be a trap: make it smaller first."
        ) from error
    except Exception as error:  # Pillow has no common class for what a damaged file can cause
        unknown = isinstance(error, UnidentifiedImageError)  # its words name an object of Python's
        reason = "it is in no format that Pillow knows" if unknown else str(error) or repr(error)
        raise DataError(f"{path} cannot be read as a picture: {reason}") from error


def as_arrays(images: Any, video: bool) -> List[np.ndarray]:
    """Pictures, or for a model of videos videos, as a list of arrays with channels last.

    Args:
        images: one or several, in any of the forms that `UNDERSTOOD` names.
        video: each item of the result is a video; several single pictures are the frames of one.

    Returns:
        (h, w, 3) each, of videos (t, h, w, 3): uint8, or float32 in [0, 1].

    Raises:
        DataError: a file cannot be read.
        ValueError: these are no pictures, or none.
    """
    several = isinstance(images, (list, tuple))
    arrays = [_as_array(image) for image in (images if several else [images])]
    wanted = 4 if video else 3
    if video and arrays and all(array.ndim == 3 for array in arrays):
        if len({array.shape for array in arrays}) > 1:
            raise ValueError("The frames of a video must all have the same size.")
        arrays = [np.stack(arrays)]
    result: List[np.ndarray] = []
    for array in arrays:
        if array.ndim == wanted:
            result.append(array)
        elif array.ndim == wanted + 1:
            result.extend(array)
        else:
            takes = "videos" if video else "pictures"
            raise ValueError(f"This model takes {takes}, not an array of the shape {array.shape}. {UNDERSTOOD}")
    if not result or any(not array.size for array in result):
        raise ValueError(f"There is nothing in these pictures: none was given, or one has no pixels. {UNDERSTOOD}")
    return result


def _as_array(image: Any) -> np.ndarray:
    if isinstance(image, (str, Path)):
        return read_picture(Path(image))
    if isinstance(image, Image.Image):
        return np.asarray(to_rgb(image))
    if isinstance(image, torch.Tensor):
        image = image.detach().cpu()
        image = (image.movedim(-3, -1) if image.ndim > 2 else image).numpy()
    if not isinstance(image, np.ndarray) or image.ndim < 2:
        raise ValueError(f"This is no picture: {type(image).__name__}. {UNDERSTOOD}")
    if image.ndim == 2:
        image = image[..., None]
    if image.shape[-1] == 1:
        image = image.repeat(3, -1)
    if image.shape[-1] != 3:
        raise ValueError(f"A picture has 3 channels, or 1 if it is grey, not the shape {image.shape}. {UNDERSTOOD}")
    if image.dtype == np.uint8:
        return image
    if not np.issubdtype(image.dtype, np.floating):
        raise ValueError(f"A picture is uint8, or floats in [0, 1], not {image.dtype}.")
    if image.size and not (0 <= image.min() and image.max() <= 1):  # NaN is refused, too
        raise ValueError(f"A picture of floats has values in [0, 1], not {image.min():g} to {image.max():g}.")
    return image.astype(np.float32)


class Place(NamedTuple):
    """Where a square that a model was shown is in its picture.

    Attributes:
        size: height and width of the picture.
        top, left, height, width: of the part that is shown.
    """

    size: Tuple[int, int]
    top: int
    left: int
    height: int
    width: int


def find_place(array: np.ndarray, fit: str) -> Place:
    """The part of a picture or video (..., h, w, 3) that is shown: its central square, or with "stretch" all of it.

    Raises:
        ValueError: `fit` is neither of the two.
    """
    if fit not in FITS:
        raise ValueError(f"fit must be {' or '.join(FITS)}, got {fit!r}.")
    height, width = array.shape[-3:-1]
    if fit == "stretch":
        return Place((height, width), 0, 0, height, width)
    side = min(height, width)
    return Place((height, width), (height - side) // 2, (width - side) // 2, side, side)


def to_square(array: np.ndarray, place: Place, prepare: Callable[[np.ndarray], torch.Tensor]) -> torch.Tensor:
    """Prepare the shown part of a picture or video as in evaluation.

    Args:
        array: (h, w, 3) or (t, h, w, 3).
        place: what is shown of it.
        prepare: the run's own preprocessing, which brings the shorter side to s pixels.

    Returns:
        (3, s, s) or (t, 3, s, s) in [-1, 1].
    """
    rows, columns = slice(place.top, place.top + place.height), slice(place.left, place.left + place.width)
    shown = prepare(np.array(array[..., rows, columns, :]))  # a copy: Pillow's arrays are read-only
    side = min(shown.shape[-2:])
    if shown.shape[-2] == shown.shape[-1]:
        return shown
    flat = shown.reshape(-1, *shown.shape[-3:])
    return F.interpolate(flat, (side, side), mode="bilinear", antialias=True).reshape(*shown.shape[:-2], side, side)


def to_segments(scores: torch.Tensor, place: Place) -> torch.Tensor:
    """Masks in the size of the picture.

    Args:
        scores: (k, s, s), or of a video (t, k, s, s).
        place: where the square is in the picture.

    Returns:
        (h, w) or (t, h, w), uint8: for every pixel the slot with the highest score, `OUTSIDE` where nothing was shown.
    """
    if scores.ndim == 4:
        return torch.stack([to_segments(frame, place) for frame in scores])
    whole = torch.full(place.size, OUTSIDE, dtype=torch.uint8, device=scores.device)
    size = (place.height, place.width)
    shown = whole[place.top : place.top + size[0], place.left : place.left + size[1]]
    if size == tuple(scores.shape[1:]):
        shown.copy_(scores.argmax(0))
        return whole
    best = torch.full(size, -torch.inf, device=scores.device)
    for slot, score in enumerate(scores.float()):  # one by one: pictures can be large
        enlarged = F.interpolate(score[None, None], size, mode="bilinear")[0, 0]
        better = enlarged > best
        shown[better] = slot
        best = torch.where(better, enlarged, best)
    return whole


def in_windows(frames: Iterable[Frame], size: int) -> Iterator[List[Frame]]:
    """Frames in lists of `size`, the last of which may be shorter."""
    rest = iter(frames)
    while window := list(itertools.islice(rest, size)):
        yield window


def box_grid(number: int) -> torch.Tensor:
    """Boxes (number, 4) that cover the square in rows of nearly the same length: corners x, y, x, y in [0, 1]."""
    rows = max(round(number**0.5), 1)
    boxes = []
    for row in range(rows):
        columns = number * (row + 1) // rows - number * row // rows
        boxes += [(i / columns, row / rows, (i + 1) / columns, (row + 1) / rows) for i in range(columns)]
    return torch.tensor(boxes).reshape(-1, 4)
