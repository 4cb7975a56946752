"""Commands that make, convert and look at data."""

import functools
import inspect
from pathlib import Path
from typing import Any, Callable, Dict, List, Optional, Tuple

import typer
from typer import Argument, Option
from typing_extensions import Annotated, Literal

from ocl_msf.cli._app import command, new_app

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


converters = new_app(
    "Convert a raw download to shards or LMDB. The same command again goes on with a conversion that was interrupted.",
    "ocl-msf convert clevrtex PATH/TO/clevrtex_full $DATASET_PREFIX",
)


def converter(*example: str, filtered: bool = False) -> Callable[[Callable[..., None]], None]:
    """Add the converter of a data set; a function declares the options that only it has.

    Args:
        example: Options after RAW OUT.
        filtered: Whether it has the filter of objects.
    """

    def add(own: Callable[..., None]) -> None:
        raw, out, *shared = list(inspect.signature(_convert).parameters.values())[2:]
        choice = list(inspect.signature(_filter).parameters.values()) if filtered else []

        @functools.wraps(own)
        def run(**chosen: Any) -> None:
            options = {name: chosen.pop(name) for name in inspect.signature(own).parameters}
            options = {name: value for name, value in options.items() if value not in (None, [])}
            if filtered:
                options["object_filter"] = _filter(
                    **{parameter.name: chosen.pop(parameter.name) for parameter in choice}
                )
            _convert(own.__name__, options, **chosen)

        parameters = [raw, out, *inspect.signature(own).parameters.values(), *choice, *shared]
        run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        command(converters, own.__name__, " ".join([f"ocl-msf convert {own.__name__} RAW $DATASET_PREFIX", *example]))(
            run
        )

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
    """COCO 2017 (https://cocodataset.org): panoptic segments, things and stuff, and instances where they are there."""


@converter("--variant c")
def movi(
    variant: MOViVariant = "c",
    max_objects: Annotated[
        Optional[int],
        Option(
            min=1,
            help="Boxes and mask numbers kept, those of the objects that show most; the others become background. By "
            "default all that the variant can have, 10 for c, 23 for d and e.",
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


def _width_and_height(text: str) -> Tuple[int, int]:
    width, _, height = text.partition("x")
    if not (width.isdigit() and height.isdigit() and min(int(width), int(height)) >= 32):
        message = f"{text} is not WIDTHxHEIGHT, such as 320x240; width and height are 32 or more"
        raise typer.BadParameter(message, param_hint="--size")
    return int(width), int(height)


def add_data_commands(app: typer.Typer) -> None:
    """Add them to the program."""
    app.add_typer(converters, name="convert")

    @command(app, "inspect", "ocl-msf inspect $DATASET_PREFIX/clevrtex --samples 8")
    def inspect_dataset(
        path: Annotated[Path, Argument(help="Folder of one converted data set.", show_default=False)],
        sheet: Annotated[Optional[Path], Option(help="The PNG; by default PATH/samples.png.")] = None,
        samples: Annotated[int, Option(min=1, help="Drawn of each split.")] = 16,
    ) -> None:
        """Count and draw what a data set holds.

        It prints histograms of the numbers and sizes of objects, and draws samples with their masks and boxes.
        """
        from ocl_msf.data.inspect import inspect

        print(inspect(path, sheet, samples))

    @command(app, "scenes", "ocl-msf scenes RAW --count 2400 && ocl-msf convert clevrtex RAW $DATASET_PREFIX")
    def scenes(
        out: Annotated[Path, Argument(help="Folder for the scenes.", show_default=False)],
        count: Annotated[int, Option(min=1, help="Number of scenes.")] = 2400,
        seed: int = 0,
        size: Annotated[str, Option(metavar="WIDTHxHEIGHT", help="In pixels.")] = "320x240",
        workers: Workers = 2,
    ) -> None:
        """Make scenes like ClevrTex's, without any download."""
        from ocl_msf.data.synthetic.scenes import make_scenes

        made = make_scenes(out, count, seed, _width_and_height(size), workers)
        print(f"{count} scenes in {out / 'clevrtex_full'}, {made} of them new")

    @command(app, "videos", "ocl-msf videos RAW --videos 1000 && ocl-msf convert movi RAW $DATASET_PREFIX")
    def videos(
        out: Annotated[Path, Argument(help="Folder for the videos.", show_default=False)],
        videos: Annotated[int, Option(min=1, help="For training.")] = 1000,
        validation: Annotated[
            Optional[int], Option(min=1, help="For validation; by default a tenth of --videos.")
        ] = None,
        variant: MOViVariant = "c",
        frames: Annotated[int, Option(min=1, help="Per video.")] = 24,
        size: Annotated[int, Option(min=1, help="Side in pixels.")] = 128,
        seed: int = 0,
        workers: Workers = 2,
    ) -> None:
        """Make videos like MOVi's, without any download."""
        from ocl_msf.data.synthetic.moving_scenes import make_moving_scenes

        held_out = validation or max(videos // 10, 1)
        folder = make_moving_scenes(out, videos, held_out, variant, frames, size, seed, workers)
        print(f"{folder}: {videos} videos for training, {held_out} for validation")
