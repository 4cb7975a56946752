"""Commands that show the results of runs."""

import datetime
from pathlib import Path
from typing import List, Optional, Tuple

import typer
from typer import Argument, Option
from typing_extensions import Annotated

from ocl_msf.cli._app import command, new_group
from ocl_msf.cli.models import Model

Runs = Annotated[
    List[Path],
    Argument(metavar="RUNS...", help="Folders of runs, or folders that hold some at any depth.", show_default=False),
]
Picture = Annotated[Path, Option(help="The PNG.")]
Temperature = Annotated[float, Option(min=0, help="0: the most probable codes; 1: drawn as the model says.")]
TopK = Annotated[Optional[int], Option("--top-k", min=1, help="Draw from the K most probable codes only.")]
figures = new_group(
    "figures",
    "Draw a figure of some runs. Curves and codebooks are read from the logs of training; "
    "runs that differ in their seed alone become one curve.",
    "ocl-msf figures segmentations outputs --out figure2.png",
)


@command("curves", "ocl-msf figures curves outputs --names val/ari_fg val/miou --out curves.png", group=figures)
def curves(
    runs: Runs,
    out: Picture = Path("curves.png"),
    names: Annotated[
        Optional[List[str]], Option(metavar="NAME...", help="Scalars; by default the scores on the validation set.")
    ] = None,
) -> None:
    """Draw logged scalars over the steps of training."""
    from ocl_msf.results.figures import of_runs

    of_runs.curves(runs, out, names or [])
    print(out)


@command("codebooks", "ocl-msf figures codebooks outputs --out codebooks.png", group=figures)
def codebooks(runs: Runs, out: Picture = Path("codebooks.png")) -> None:
    """Draw how the codebooks are used over the steps of training."""
    from ocl_msf.results.figures import of_runs

    of_runs.codebooks(runs, out)
    print(out)


@command("segmentations", "ocl-msf figures segmentations outputs --scenes 8 --out figure2.png", group=figures)
def segmentations(
    runs: Runs,
    out: Picture = Path("segmentations.png"),
    scenes: Annotated[int, Option(min=1, help="How many.")] = 8,
) -> None:
    """Draw scenes with the masks of each model.

    It needs scenes.npz in a run's folder, which this makes (stage 2):
    ocl_eval +evaluation=msf/scenes train_config_path=RUN/config/config.yaml
    """
    from ocl_msf.results.figures import of_runs

    print(of_runs.segmentations(runs, out, scenes))
    print(out)


@command("guidance", "ocl-msf figures guidance outputs --image 1 --out figure3.png", group=figures)
def guidance(
    runs: Runs,
    out: Picture = Path("guidance.png"),
    image: Annotated[int, Option(min=1, help="Which of the kept images.")] = 1,
) -> None:
    """Draw the guidance maps of one image.

    It needs guidance.npz in a run's folder, which this makes (stage 1):
    ocl_eval +evaluation=msf/guidance_maps train_config_path=RUN/config/config.yaml
    """
    from ocl_msf.results.figures import of_runs

    of_runs.guidance(runs, out, image)
    print(out)


def _pair(text: str) -> Tuple[int, int]:
    first, _, second = text.partition(":")
    if not (first.isdigit() and second.isdigit()):
        raise typer.BadParameter(f"{text} is not of the form A:B, such as 2:3", param_hint="--swap")
    return int(first), int(second)


@command("report", "ocl-msf report outputs --out report")
def report(
    runs: Runs,
    out: Annotated[Path, Option(help="Where the report goes.")] = Path("report"),
    first: Annotated[bool, Option("--evaluate", help="First make what is missing of finished runs.")] = False,
    scenes: Annotated[
        int, Option(min=1, help="Scenes in a gallery, of the best, of the middle and of the worst each.")
    ] = 4,
    date: Annotated[Optional[str], Option(help="What to print as its date; by default today.")] = None,
) -> None:
    """Write a report of some runs.

    It is index.html, one page that needs no network, and scores.md with its tables. --evaluate needs their data
    (DATASET_PREFIX) and takes a while: scores, scenes of the gallery, guidance maps.
    """
    from ocl_msf.results.report.evaluations import evaluate
    from ocl_msf.results.report.page import write_report
    from ocl_msf.results.rows import collect

    found = collect(runs)
    if first and evaluate(found):
        found = collect(runs)
    for path in write_report(found, out, date or datetime.date.today().isoformat(), scenes):
        print(path)


@command(
    "edit",
    "ocl-msf edit RUN A.png B.png --out slots.png",
    "ocl-msf edit RUN A.png B.png --swap 2:3 --drop 1 --out edit.png",
)
def edit(
    run: Model,
    images: Annotated[Tuple[Path, Path], Argument(metavar="A B", help="Two pictures.", show_default=False)],
    swap: Annotated[
        Optional[List[str]], Option(metavar="A:B...", help="Exchange a slot of A and one of B, from 0.")
    ] = None,
    drop: Annotated[Optional[List[int]], Option(metavar="A...", help="Slots of A to leave out, from 0.")] = None,
    out: Picture = Path("edit.png"),
    temperature: Temperature = 0.0,
    top_k: TopK = None,
    seed: Annotated[int, Option(help="Of what is drawn.")] = 0,
) -> None:
    """Swap or drop slots of two images.

    It draws what the decoder makes of the rest. Without --swap and --drop the picture shows the slots of both images.
    """
    swaps = [_pair(text) for text in swap or []]
    from ocl_msf.inference.generation import Sampling
    from ocl_msf.results.editing import edit_pictures

    side = edit_pictures(run, images, swaps, drop or [], out, Sampling(temperature, top_k, seed))
    print(f"{out}: {side}x{side} pixels each, slots 0 and up in the second row")
