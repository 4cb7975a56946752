"""The paper's choice of images by their objects (section A.5)."""

from typing import NamedTuple

import numpy as np

from ocl_msf.data.workers import Filtered


class ObjectFilter(NamedTuple):
    """Leaves out images with many or with small objects; the defaults are the paper's.

    Attributes:
        max_objects: An image with more is left out.
        min_box_area: Of bounding boxes, in pixels; an object with less is small.
        small: "image" leaves out an image with a small object, "object" only that object, before counting.
    """

    max_objects: int = 10
    min_box_area: float = 16.0
    small: str = "image"

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


PAPER = ObjectFilter()
