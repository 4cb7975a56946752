"""The paper's filter of images by their objects (section A.5)."""

from typing import Any, Dict, NamedTuple, Optional

import numpy as np

from ocl_msf.data.workers import Filtered


class ObjectFilter(NamedTuple):
    """Removes images with many or with small objects; the defaults are the paper's.

    Attributes:
        max_objects: images with more are removed.
        min_box_area: objects with a smaller bounding box, in square pixels, are small.
        small: "image" removes images with a small object; "object" removes only that object, before counting.
        count: what is an object; the data set says which readings there are.
        measure: where objects are counted and measured: "resized", in the sample, or "original", in the raw image.
    """

    max_objects: int = 10
    min_box_area: float = 16.0
    small: str = "image"
    count: Optional[str] = None  # type: ignore[assignment]  # not the method of tuples
    measure: str = "resized"

    def describe(self) -> Dict[str, Any]:
        """The options for the summary of a data set."""
        return {name: value for name, value in self._asdict().items() if value is not None}

    def __call__(self, sample: str, box_areas: np.ndarray) -> np.ndarray:
        """Choose among the objects of an image.

        Args:
            sample: name of the image, for messages.
            box_areas: (N,), in square pixels.

        Returns:
            Which objects to keep, (N,) bool.

        Raises:
            Filtered: the image is removed.
        """
        large = box_areas >= self.min_box_area
        if self.small == "image" and not large.all():
            reason = f"an object whose box is smaller than {self.min_box_area:g} pixels"
            raise Filtered(reason, sample, f"{box_areas.min():g} pixels")
        if large.sum() > self.max_objects:
            raise Filtered(f"more than {self.max_objects} objects", sample, f"{large.sum()} objects")
        return large


PAPER = ObjectFilter()
