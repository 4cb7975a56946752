"""Decode, crop and resize the images and masks of a raw download."""

import io
import warnings
from typing import Optional, Sequence, Tuple

import numpy as np
from PIL import Image, UnidentifiedImageError

from ocl_msf.data.pictures import is_turned, to_rgb
from ocl_msf.data.raw._sources import AnySource
from ocl_msf.data.shards import encode_png
from ocl_msf.data.workers import Rejected

Box = Tuple[int, int, int, int]  # left, top, right, bottom; the last two exclusive


def read_image(
    sample: str,
    what: str,
    source: Optional[AnySource],
    size: Optional[Tuple[int, int]] = None,
    rgb: bool = False,
    formats: Tuple[str, ...] = ("JPEG", "PNG"),
) -> Image.Image:
    """Decode an image file.

    One that EXIF data turn is rejected, because its annotations may be of the pixels as stored or as shown.

    Args:
        sample: name of the sample, for messages.
        what: what the file is in it, such as "image", for messages.
        source: the file; None if it is missing.
        size: width and height that the image must have; None takes any.
        rgb: convert to RGB of 8 bits; otherwise the mode is that of the file.
        formats: that the file may have.

    Raises:
        Rejected: the file is missing, damaged, of another size, or turned.
    """
    if source is None:
        raise Rejected(f"missing {what}", sample)
    try:
        image = decode_image(source.read(), formats, size)
        turned = is_turned(image)
        image = to_rgb(image) if rgb and size in (None, image.size) else image
    except UnidentifiedImageError as error:
        raise Rejected(f"damaged {what}", sample, f"{source}: no {' or '.join(formats)} file") from error
    except Exception as error:  # Pillow has no common class for what a damaged file can cause
        raise Rejected(f"damaged {what}", sample, f"{source}: {str(error) or repr(error)}") from error
    if turned:
        raise Rejected(f"{what} turned by EXIF data", sample, f"{source}: store it upright, and its annotations alike")
    if size not in (None, image.size):
        raise Rejected(f"{what} of another size", sample, f"{image.size}, not {size}")
    return image


def decode_image(content: bytes, formats: Sequence[str], size: Optional[Tuple[int, int]] = None) -> Image.Image:
    """Decode an image; one of another `size` is returned with its pixels undecoded.

    Raises:
        Exception: the content is damaged; Pillow has no common class for that.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        image = Image.open(io.BytesIO(content), formats=formats)
        if size in (None, image.size):
            image.load()
    return image


def central_square(width: int, height: int, share: float = 1.0) -> Box:
    """The central square; its side is a share of the height, and at most the width."""
    side = min(max(round(height * share), 1), width)
    left, top = (width - side) // 2, (height - side) // 2
    return left, top, left + side, top + side


def crop_image(image: Image.Image, box: Box, size: int) -> bytes:
    """Crop and resize an image bilinearly (antialiased) to `size` pixels; returns a PNG file."""
    return encode_png(image.crop(box).resize((size, size), Image.Resampling.BILINEAR))


def crop_mask(mask: np.ndarray, box: Box, size: int) -> np.ndarray:
    """Crop and resize a mask (H, W) to (size, size), as `resize_mask` does."""
    left, top, right, bottom = box
    return resize_mask(mask[top:bottom, left:right], size, size)


def resize_mask(mask: np.ndarray, width: int, height: int) -> np.ndarray:
    """Resize a mask (H, W) by nearest exact: pixel i takes the one at floor((i + 0.5) * old side / new side)."""
    rows, columns = ((2 * np.arange(new) + 1) * old // (2 * new) for new, old in zip((height, width), mask.shape))
    return mask[rows[:, None], columns]


def renumber(numbers: np.ndarray, kept: np.ndarray) -> np.ndarray:
    """Number the objects that are kept without gaps; the others become 0.

    Args:
        numbers: (H, W) uint8: 0, or i + 1 for object i.
        kept: (N,) bool.
    """
    table = np.concatenate([[0], np.where(kept, np.cumsum(kept), 0)]).astype(np.uint8)
    return table[numbers]


def bounding_box(mask: np.ndarray) -> Tuple[int, int, int, int]:
    """Left, top, width and height of the true pixels of a mask (H, W); zeros if there are none."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    if not len(rows):
        return 0, 0, 0, 0
    return int(columns[0]), int(rows[0]), int(columns[-1] - columns[0] + 1), int(rows[-1] - rows[0] + 1)


def box_area(mask: np.ndarray) -> int:
    """Area of the bounding box of a mask (H, W), in pixels."""
    _, _, width, height = bounding_box(mask)
    return width * height
