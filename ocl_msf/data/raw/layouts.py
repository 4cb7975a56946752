"""The data sets' folders and shards as the dataset configs of OCLF name them."""

from typing import Dict, NamedTuple, Tuple


class Layout(NamedTuple):
    """Where the shards of a data set are.

    Attributes:
        folder: Below the folder of all data sets.
        splits: Folder below it and number of shards, of the splits for which these are fixed.
    """

    folder: str
    splits: Dict[str, Tuple[str, int]] = {}


# By our name. OCLF has no MOVi-D: it is cut like MOVi-E, whose videos are as many and as large.
LAYOUTS = {
    "coco_panoptic": Layout("coco2017", {"train": ("train", 413), "val": ("val", 18)}),  # dataset=coco
    "voc_trainaug": Layout("voc2012", {"train": ("trainaug", 41), "val": ("val", 12)}),  # voc2012_trainaug
    "movi_c": Layout("movi_c", {"train": ("train", 299), "val": ("val", 8)}),
    "movi_d": Layout("movi_d", {"train": ("train", 680), "val": ("val", 18)}),
    "movi_e": Layout("movi_e", {"train": ("train", 680), "val": ("val", 18)}),
}
