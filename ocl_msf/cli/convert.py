"""`ocl-msf convert`, with a command for each data set."""

import functools
import inspect
from pathlib import Path
from typing import Any, Callable, Dict, List, Optional

import typer
from typer import Argument, Option
from typing_extensions import Annotated, Literal

from ocl_msf.cli._app import command, new_group

Workers = Annotated[int, Option(help="Processes.")]
Size = Annotated[int, Option(min=1, help="Side of the output in pixels.")]
ClevrTexVariant = Literal["full", "outd", "camo", "pbg", "vbg", "grassbg"]
MOViVariant = Literal["c", "d", "e"]
Measure = Annotated[
    Literal["resized", "original"],
    Option(help="Where the filter counts and measures: in the sample, or by what is in the original image."),
]


def _splits(help: str, *names: str) -> Any:
    """An option for some of the splits."""

    def check(chosen: Optional[List[str]]) -> Optional[List[str]]:
        for name in chosen or []:
            if name not in names:
                raise typer.BadParameter(f"{name} is not one of {', '.join(names)}.")
        return chosen

    return Option(metavar=f"[{'|'.join(names)}]...", help=help, callback=check)


def _convert(
    dataset: str,
    options: Dict[str, Any],
    raw: Annotated[Path, Argument(help="Folder of the raw data.", show_default=False)],
    out: Annotated[Path, Argument(help="Folder of all data sets, DATASET_PREFIX.", show_default=False)],
    samples_per_shard: Annotated[
        Optional[int], Option(min=1, help="At most; by default 1000, or by OCLF's layout where that holds.")
    ] = None,
    oclf_layout: Annotated[
        bool,
        Option(
            "--oclf-layout",
            help="Name folders and cut shards as the configs of OCLF expect, dataset=coco or voc2012_trainaug; "
            "MOVi-C and E are so anyway. They count on all samples: --no-filter.",
        ),
    ] = False,
    format: Annotated[
        Literal["webdataset", "lmdb"],
        Option(help="Shards, or one LMDB file per split."),
    ] = "webdataset",
    name: Annotated[Optional[str], Option(help="Folder below OUT; by default the name of the data set.")] = None,
    workers: Workers = 2,
    strict: Annotated[bool, Option("--strict", help="Stop at the first sample that is damaged.")] = False,
    overwrite: Annotated[bool, Option("--overwrite", help="Replace an earlier conversion.")] = False,
    verify: Annotated[bool, Option("--verify", help="Only compare the shards with their checksums.")] = False,
) -> None:
    from ocl_msf.data.convert import convert
    from ocl_msf.data.summary import describe

    folder, summary = convert(
        dataset, raw, out, samples_per_shard, oclf_layout, format, name, workers, strict, overwrite, verify, **options
    )
    print(f"{folder}: {describe(summary)}{', all checksums right' if verify else ''}")


def _filter(
    max_objects: Annotated[int, Option(min=1, help="Leave out images with more; the default is the paper's.")] = 10,
    min_box_area: Annotated[
        float,
        Option(help="Objects with a smaller bounding box, in square pixels, are small; the default is the paper's."),
    ] = 16.0,
    small: Annotated[
        Literal["image", "object"], Option(help="What to leave out for a small object: the image, or that object.")
    ] = "image",
    no_filter: Annotated[bool, Option("--no-filter", help="Keep all images and objects.")] = False,
) -> Any:
    from ocl_msf.data.raw.filter import ObjectFilter

    return None if no_filter else ObjectFilter(max_objects, min_box_area, small)


converters = new_group(
    "convert",
    "Convert a raw download to shards or LMDB. Repeat the command to continue an interrupted conversion.",
    "ocl-msf convert clevrtex PATH/TO/clevrtex_full $DATASET_PREFIX",
)


def converter(*example: str, filtered: bool = False) -> Callable[[Callable[..., None]], None]:
    """Add the command of a data set, named like the function: its parameters are the options of this data set alone.

    Args:
        example: options after RAW OUT in the example of the help.
        filtered: whether it also has the filter of objects.
    """

    def add(function: Callable[..., None]) -> None:
        dataset, own = function.__name__.replace("_", "-"), inspect.signature(function).parameters
        choice = inspect.signature(_filter).parameters if filtered else {}
        _, _, raw, out, *shared = inspect.signature(_convert).parameters.values()

        @functools.wraps(function)
        def run(**chosen: Any) -> None:
            options = {name: chosen.pop(name) for name in own}
            options = {name: value for name, value in options.items() if value not in (None, [])}
            if filtered:
                options["object_filter"] = _filter(**{name: chosen.pop(name) for name in choice})
            _convert(dataset, options, **chosen)

        parameters = [raw, out, *own.values(), *choice.values(), *shared]
        run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        words = ["ocl-msf", "convert", dataset, "RAW", "$DATASET_PREFIX", *example]
        command(dataset, " ".join(words), group=converters)(run)

    return add


@converter("--splits val=0:200 train=200:")
def clevrtex(
    variant: ClevrTexVariant = "full",
    splits: Annotated[
        Optional[List[str]],
        Option(
            metavar="NAME=START:STOP...",
            help="Ranges of scenes by index, as in Python slices; by default the benchmark's for full (the first "
            "tenth is test, the second val, the rest train), test=: for the other variants.",
        ),
    ] = None,
    crop: Annotated[
        float, Option(help="Side of the central square, by the image height: 1, or the benchmark's 0.8.")
    ] = 1.0,
    size: Size = 128,
) -> None:
    """ClevrTex (https://www.robots.ox.ac.uk/~vgg/data/clevrtex/) and scenes in its layout."""


@converter("--size 128", filtered=True)
def coco(
    splits: Annotated[Optional[List[str]], _splits("By default those that are in RAW.", "train", "val")] = None,
    size: Size = 128,
    count: Annotated[
        Literal["all", "things"],
        Option(help="Objects of the filter: things and stuff, which 11 slots have to hold, or things only."),
    ] = "all",
    measure: Measure = "resized",
) -> None:
    """COCO 2017 (https://cocodataset.org): panoptic segments of things and stuff, and instances if RAW has them."""


@converter("--variant c")
def movi(
    variant: MOViVariant = "c",
    max_objects: Annotated[
        Optional[int],
        Option(
            min=1,
            help="Boxes kept, those of the objects that show most; masks keep every object. By default all that the "
            "variant can have, 10 for c, 23 for d and e.",
        ),
    ] = None,
    size: Size = 128,
) -> None:
    """MOVi-C, D and E (https://github.com/google-research/kubric) and videos in their layout."""


@converter("--ids SUBSET.txt", filtered=True)
def openimages(
    splits: Annotated[
        Optional[List[str]], _splits("By default those whose masks' CSV is in RAW.", "train", "val", "test")
    ] = None,
    ids: Annotated[
        Optional[Path],
        Option(
            help="Text file with an image id in each line, as `id` or `split/id`: the subset to convert; by default "
            "all images with masks."
        ),
    ] = None,
    size: Annotated[
        int,
        Option(min=1, help="Side of the output; the paper trains at 256 and 128, which experiments make of it."),
    ] = 256,
    measure: Measure = "resized",
) -> None:
    """OpenImages (https://storage.googleapis.com/openimages/web): images with object masks, and their boxes."""


@converter("--variant trainaug", filtered=True)
def voc(
    variant: Annotated[
        Literal["train", "trainaug"],
        Option(help="Images of the train split: VOC's, or also those of SBD that are not in VOC's val."),
    ] = "train",
    splits: Annotated[Optional[List[str]], _splits("By default all.", "train", "val")] = None,
    size: Size = 128,
    count: Annotated[
        Literal["classes", "objects"],
        Option(
            help="What the filter takes for an object: all pixels of a class, as the paper's semantic masks do, or an "
            "object."
        ),
    ] = "classes",
    measure: Measure = "resized",
) -> None:
    """PASCAL VOC 2012 segmentation (http://host.robots.ox.ac.uk/pascal/VOC/voc2012/): classes and objects."""


@converter("--variant coco_panoptic")
def authors_lmdb(
    variant: Annotated[
        Literal["clevrtex", "coco_panoptic", "voc", "movi_c", "movi_d", "movi_e"], Option(help="Which data set it is.")
    ] = "clevrtex",
    size: Size = 128,
) -> None:
    """LMDB files of MSF's authors (https://github.com/Genera1Z/VQ-VFM-OCL): train.lmdb, val.lmdb, or their folder."""
