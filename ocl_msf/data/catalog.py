"""The converted data sets by name: the command that makes each, and the layout that OCLF's dataset configs expect."""

from typing import Dict, NamedTuple, Tuple

# Converter and variant by name of the data set. A table, because messages need it and converters take long to import.
ARGUMENTS = {
    "clevrtex": "clevrtex",
    **{f"clevrtex_{variant}": f"clevrtex --variant {variant}" for variant in ("outd", "camo", "pbg", "vbg", "grassbg")},
    "coco_panoptic": "coco",
    **{f"movi_{variant}": f"movi --variant {variant}" for variant in "cde"},
    "openimages": "openimages",
    "voc": "voc",
    "voc_trainaug": "voc --variant trainaug",
}


class Layout(NamedTuple):
    """Where the shards of a data set are.

    Attributes:
        folder: below the folder of all data sets.
        splits: subfolder and number of shards of the splits for which these are prescribed.
    """

    folder: str
    splits: Dict[str, Tuple[str, int]] = {}


# OCLF has no config for MOVi-D: it is divided like MOVi-E, which has as many videos of the same size.
OCLF_LAYOUTS = {
    "coco_panoptic": Layout("coco2017", {"train": ("train", 413), "val": ("val", 18)}),  # dataset=coco
    "voc_trainaug": Layout("voc2012", {"train": ("trainaug", 41), "val": ("val", 12)}),  # dataset=voc2012_trainaug
    "movi_c": Layout("movi_c", {"train": ("train", 299), "val": ("val", 8)}),
    "movi_d": Layout("movi_d", {"train": ("train", 680), "val": ("val", 18)}),
    "movi_e": Layout("movi_e", {"train": ("train", 680), "val": ("val", 18)}),
}


def conversion_command(name: str, out: str = "OUT") -> str:
    """The command that makes the data set `name` in the folder of all data sets, `out`."""
    arguments, options = ARGUMENTS.get(name), ""
    for ours, layout in OCLF_LAYOUTS.items():
        if arguments is None and name == layout.folder:
            arguments, options = ARGUMENTS[ours], " --oclf-layout"
    if arguments is None:
        arguments, options = "DATASET", f" --name {name}"
    dataset, *variant = arguments.split(" ", 1)
    return " ".join(["ocl-msf convert", dataset, "RAW", out, *variant]) + options
