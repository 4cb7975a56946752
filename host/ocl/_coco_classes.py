"""The classes of COCO and COCO-Stuff (Caesar et al., 2018), 1 to 183; masks of them are what the ids say."""

from typing import Any

import numpy as np

from ocl._annotations import expand_dense_mask
from ocl._loader.pipe import get_field

LAST_THING, STUFF_OF_THINGS, CROWD = 91, 183, 255

# Superclass 1, 2, ... 28, and its classes.
SUPERCLASSES = {
    "person": (1,),
    "vehicle": (2, 3, 4, 5, 6, 7, 8, 9),
    "outdoor": (10, 11, 13, 14, 15),
    "animal": (16, 17, 18, 19, 20, 21, 22, 23, 24, 25),
    "accessory": (27, 28, 31, 32, 33),
    "sports": (34, 35, 36, 37, 38, 39, 40, 41, 42, 43),
    "kitchen": (44, 46, 47, 48, 49, 50, 51),
    "food": (52, 53, 54, 55, 56, 57, 58, 59, 60, 61),
    "furniture": (62, 63, 64, 65, 67, 70),
    "electronic": (72, 73, 74, 75, 76, 77),
    "appliance": (78, 79, 80, 81, 82),
    "indoor": (84, 85, 86, 87, 88, 89, 90),
    "textile": (92, 93, 104, 105, 109, 131, 137, 141, 152, 167, 168),
    "plant": (94, 97, 119, 124, 129, 134, 142, 163, 169),
    "building": (95, 96, 128, 151, 158, 166),
    "furniture-stuff": (98, 107, 108, 110, 112, 123, 130, 133, 156, 161, 165),
    "structural": (99, 113, 138, 146, 164),
    "raw-material": (100, 132, 139, 143),
    "floor": (101, 114, 115, 116, 117, 118),
    "ceiling": (102, 103),
    "sky": (106, 157),
    "ground": (111, 125, 126, 136, 140, 144, 145, 147, 149, 154, 159),
    "water": (120, 148, 155, 178, 179),
    "food-stuff": (121, 122, 153, 170),
    "wall": (171, 172, 173, 174, 175, 176, 177),
    "window": (180, 181),
    "solid": (127, 135, 150, 160, 162, 182),
    "other": (183,),
}


class ConvertToCocoSuperclasses:
    """Replace the 183 classes of COCO-Stuff by their 28 superclasses."""

    def __init__(self) -> None:
        self.superclass_of = np.zeros(256, np.uint8)
        for superclass, classes in enumerate(SUPERCLASSES.values(), start=1):
            self.superclass_of[list(classes)] = superclass

    def __call__(self, mask: np.ndarray) -> np.ndarray:
        """Map masks of class ids (k, h, w, 1) to masks of superclass ids (m, h, w, 1); the highest id wins a pixel."""
        return expand_dense_mask(self.superclass_of[mask].max(axis=0, keepdims=True))


class MergeCocoThingsAndStuff:
    """Make one set of masks of things and of stuff, where pixels of things are class 183 in those of stuff.

    Args:
        output_key: field to add, class ids (m, h, w, 1).
        things_key: field of class ids of things (i, h, w, 1); may be missing.
        stuff_key: field of class ids of stuff (k, h, w, 1).
        include_crowd: pixels of crowds, which are class 0 in those of stuff, have their class, instead of none.
    """

    def __init__(
        self,
        output_key: str,
        things_key: str = "instance_mask",
        stuff_key: str = "stuff_mask",
        include_crowd: bool = False,
    ):
        self.output_key, self.things_key, self.stuff_key = output_key, things_key, stuff_key
        self.include_crowd = include_crowd

    def __call__(self, data: dict[str, Any]) -> dict[str, Any]:
        """Return the sample with the new field."""
        stuff = get_field(data, self.stuff_key).max(axis=0, keepdims=True)
        things = data[self.things_key].max(axis=0, keepdims=True) if self.things_key in data else np.zeros_like(stuff)
        is_thing = (stuff == STUFF_OF_THINGS) | (self.include_crowd & (stuff == 0))
        return {**data, self.output_key: expand_dense_mask(np.where(is_thing, things, stuff))}


class ConvertCocoStuff164kMasks:
    """Convert a picture of COCO-Stuff 164k, whose values are class ids from 0 and 255 for crowds.

    Args:
        output_key: field to add, class ids from 1 (k, h, w, 1).
        stuffthings_key: field of the picture (h, w, 3).
        ignore_key: field to add, the pixels of crowds (1, h, w, 1), bool.
        drop_stuff: keep the classes of things only.
    """

    def __init__(
        self,
        output_key: str,
        stuffthings_key: str = "stuffthings_mask",
        ignore_key: str = "ignore_mask",
        drop_stuff: bool = False,
    ):
        self.output_key, self.stuffthings_key, self.ignore_key = output_key, stuffthings_key, ignore_key
        self.drop_stuff = drop_stuff

    def __call__(self, data: dict[str, Any]) -> dict[str, Any]:
        """Return the sample with both new fields.

        Raises:
            ValueError: if the picture has other axes.
        """
        picture = get_field(data, self.stuffthings_key)
        if picture.ndim != 3 or picture.shape[-1] != 3:
            raise ValueError(f"Expected a picture (h, w, 3) in `{self.stuffthings_key}`, got {tuple(picture.shape)}.")
        ids = picture[None, :, :, :1]
        is_crowd = ids == CROWD
        dropped = is_crowd | (self.drop_stuff & (ids >= LAST_THING))
        classes = np.where(dropped, 0, ids.astype(np.uint8) + np.uint8(1)).astype(np.uint8)
        return {**data, self.ignore_key: is_crowd, self.output_key: expand_dense_mask(classes)}
