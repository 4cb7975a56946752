"""Pictures as they are meant: of 8 bits, and upright."""

import numpy as np
from PIL import Image


def to_rgb(image: Image.Image) -> Image.Image:
    """Convert a picture to RGB of 8 bits; of grey values of 16 bits the upper 8, as Pillow does with colours.

    Raises:
        ValueError: its pixels have 32 bits.
    """
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format in ("PNG", "PPM")):
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    elif image.mode in ("I", "F"):
        raise ValueError(f"pixels have 32 bits (mode {image.mode}), not 8 or 16.")
    return image.convert("RGB")


def is_turned(image: Image.Image) -> bool:
    """Whether viewers show the picture turned or mirrored, because its EXIF data say so."""
    return image.getexif().get(0x0112) in range(2, 9)  # the tag of the orientation; 1 is upright
