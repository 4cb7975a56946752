"""Images and masks of a raw download: decode, crop to the central square, resize."""

import io
import warnings
from typing import Optional, Tuple

import numpy as np
from PIL import Image, UnidentifiedImageError

from ocl_msf.data.raw._sources import AnySource
from ocl_msf.data.workers import Rejected

Box = Tuple[int, int, int, int]  # left, top, right, bottom; the last two exclusive


def read_image(
    sample: str,
    what: str,
    source: Optional[AnySource],
    size: Optional[Tuple[int, int]] = None,
    mode: Optional[str] = None,
    formats: Tuple[str, ...] = ("JPEG", "PNG"),
) -> Image.Image:
    """Decode an image file.

    Args:
        sample: Name of the sample, for messages.
        what: The file's part in it, such as "image", for messages.
        source: Where the file is; None where it is missing.
        size: Width and height that it must have, any where None.
        mode: Convert to this one, such as "RGB", from whatever the file has; None keeps the file's.
        formats: What the file may be.

    Raises:
        Rejected: The file is missing, damaged or of another size.
    """
    if source is None:
        raise Rejected(f"missing {what}", sample)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            image = Image.open(io.BytesIO(source.read()), formats=formats)
            if size in (None, image.size):
                image.load()
                image = image.convert(mode) if mode else image
    except UnidentifiedImageError as error:
        raise Rejected(f"damaged {what}", sample, f"{source}: no {' or '.join(formats)} file") from error
    except Exception as error:  # Pillow has no common class for what a damaged file can cause
        raise Rejected(f"damaged {what}", sample, f"{source}: {str(error) or repr(error)}") from error
    if size not in (None, image.size):
        raise Rejected(f"{what} of another size", sample, f"{image.size}, not {size}")
    return image


def central_square(width: int, height: int, share: float = 1.0) -> Box:
    """The central square, its side a share of the height, at most the width."""
    side = min(max(round(height * share), 1), width)
    left, top = (width - side) // 2, (height - side) // 2
    return left, top, left + side, top + side


def crop_image(image: Image.Image, box: Box, size: int) -> bytes:
    """Crop and resize an image bilinearly (antialiased) to `size` pixels; returns a PNG file."""
    buffer = io.BytesIO()
    image.crop(box).resize((size, size), Image.BILINEAR).save(buffer, "png")
    return buffer.getvalue()


def crop_mask(mask: np.ndarray, box: Box, size: int) -> np.ndarray:
    """Crop and resize a mask (H, W) by nearest exact: pixel i shows floor((i + 0.5) * side / size)."""
    left, top, right, bottom = box
    places = 2 * np.arange(size) + 1
    rows, columns = (places * side // (2 * size) for side in (bottom - top, right - left))
    return mask[top + rows[:, None], left + columns]


def bounding_box(mask: np.ndarray) -> Tuple[int, int, int, int]:
    """Left, top, width and height of what is seen in a mask (H, W), zeros where nothing is."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    if not len(rows):
        return 0, 0, 0, 0
    return int(columns[0]), int(rows[0]), int(columns[-1] - columns[0] + 1), int(rows[-1] - rows[0] + 1)


def box_area(mask: np.ndarray) -> int:
    """Pixels of the bounding box of what is seen in a mask (H, W)."""
    _, _, width, height = bounding_box(mask)
    return width * height
