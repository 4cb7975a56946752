"""Commands that make and inspect data."""

from pathlib import Path
from typing import Optional, Tuple

import typer
from typer import Argument, Option
from typing_extensions import Annotated

from ocl_msf.cli._app import command
from ocl_msf.cli.convert import MOViVariant, Workers


def _width_and_height(text: str) -> Tuple[int, int]:
    width, _, height = text.partition("x")
    if not (width.isdigit() and height.isdigit() and min(int(width), int(height)) >= 32):
        message = f"{text} is not WIDTHxHEIGHT, such as 320x240; width and height are 32 or more"
        raise typer.BadParameter(message, param_hint="--size")
    return int(width), int(height)


@command("inspect", "ocl-msf inspect $DATASET_PREFIX/clevrtex --samples 8")
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


@command("scenes", "ocl-msf scenes RAW --count 2400 && ocl-msf convert clevrtex RAW $DATASET_PREFIX")
def scenes(
    out: Annotated[Path, Argument(help="Folder for the scenes.", show_default=False)],
    count: Annotated[int, Option(min=1, help="Number of scenes.")] = 2400,
    seed: int = 0,
    size: Annotated[str, Option(metavar="WIDTHxHEIGHT", help="In pixels.")] = "320x240",
    hard: Annotated[bool, Option("--hard", help="Coarse patterns in full contrast: version 1's scenes.")] = False,
    workers: Workers = 2,
) -> None:
    """Make scenes like ClevrTex's, without any download."""
    from ocl_msf.data.synthetic.scenes import make_scenes

    made = make_scenes(out, count, seed, _width_and_height(size), workers, hard)
    print(f"{count} scenes in {out / 'clevrtex_full'}, {made} of them new")


@command("videos", "ocl-msf videos RAW --videos 1000 && ocl-msf convert movi RAW $DATASET_PREFIX")
def videos(
    out: Annotated[Path, Argument(help="Folder for the videos.", show_default=False)],
    videos: Annotated[int, Option(min=1, help="For training.")] = 1000,
    validation: Annotated[Optional[int], Option(min=1, help="For validation; by default a tenth of --videos.")] = None,
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
