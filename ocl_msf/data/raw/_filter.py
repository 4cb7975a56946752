"""The paper's choice of images by their objects (section A.5)."""

import argparse
from typing import NamedTuple

import numpy as np

from ocl_msf.data.workers import Filtered
from ocl_msf.files import positive


class ObjectFilter(NamedTuple):
    """Leaves out images with many or with small objects.

    Attributes:
        max_objects: An image with more is left out.
        min_box_area: Of bounding boxes, in pixels; an object with less is small.
        small: "image" leaves out an image with a small object, "object" only that object, before counting.
    """

    max_objects: int
    min_box_area: float
    small: str

    def __call__(self, sample: str, box_areas: np.ndarray) -> np.ndarray:
        """Choose among the objects of an image, given as the areas of their boxes (N,).

        Returns:
            Whether an object stays (N,) bool.

        Raises:
            Filtered: The image does not stay.
        """
        large = box_areas >= self.min_box_area
        if self.small == "image" and not large.all():
            reason = f"an object whose box is smaller than {self.min_box_area:g} pixels"
            raise Filtered(reason, sample, f"{box_areas.min():g} pixels")
        if large.sum() > self.max_objects:
            raise Filtered(f"more than {self.max_objects} objects", sample, f"{large.sum()} objects")
        return large


def add_filter_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the filter's options, the paper's reading by default."""
    parser.add_argument(
        "--max-objects",
        type=positive,
        default=10,
        help="leave out images with more (default: the paper's %(default)s)",
    )
    parser.add_argument(
        "--min-box-area",
        type=float,
        default=16.0,
        help="objects with a smaller bounding box, in square pixels, are small (default: the paper's %(default)s)",
    )
    parser.add_argument(
        "--small",
        choices=("image", "object"),
        default="image",
        help="what to leave out for a small object: the image, or that object (default: %(default)s)",
    )
    parser.add_argument("--no-filter", action="store_true", help="keep all images and objects")
