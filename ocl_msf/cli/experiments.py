"""Commands that run experiments."""

from pathlib import Path
from typing import List, Optional

import typer
from typer import Argument, Option
from typing_extensions import Annotated, Literal

from ocl_msf.cli._app import command
from ocl_msf.experiments.paper import TABLES

Gpus = Annotated[str, Option(metavar="N", help="N at a time, one on each GPU; or their numbers, 0,3.")]


def _known_tables(incomplete: str) -> List[str]:
    return [name for name in sorted(TABLES) if name.startswith(incomplete)]


@command("demo", "ocl-msf demo --folder demo")
def demo(
    folder: Annotated[Path, Option(help="Where everything goes.")] = Path("demo"),
    scenes: Annotated[int, Option(min=201, help="Scenes to make, 200 of them held out.")] = 2000,
) -> None:
    """Train both stages on scenes made here.

    It trains a small configuration for two CPU cores, scores it before and after, and draws a picture. Repeat
    the command after an interruption to continue.
    """
    from ocl_msf.demo import run_demo

    run_demo(folder, scenes)


@command(
    "tables",
    "ocl-msf tables table4 --dataset clevrtex --seeds 0 1 --preset cpu --dry-run",
    "ocl-msf tables table1 --dataset coco --gpus 4",
)
def tables(
    table: Annotated[str, Argument(help=f"One of {', '.join(sorted(TABLES))}.", autocompletion=_known_tables)],
    part: Annotated[Optional[str], Option(help="Of the table, such as upper-left; by default all.")] = None,
    dataset: Annotated[str, Option(help="As in the names of experiments.")] = "clevrtex",
    seeds: Annotated[List[int], Option(help="Of the runs of each row.")] = [0, 1, 2],  # noqa: B006
    preset: Annotated[str, Option(help="An msf/preset, such as cpu.", show_default=False)] = "",
    settings: Annotated[
        Optional[List[str]],
        Option("--set", metavar="KEY=VALUE...", help="Overrides for both stages; other ones need another --out."),
    ] = None,
    out: Annotated[Path, Option(help="Where runs go.")] = Path("outputs/tables"),
    gpus: Gpus = "",
    slurm: Annotated[
        Optional[List[str]], Option(metavar="[KEY=VALUE]...", help="Through SLURM, with these overrides.")
    ] = None,
    dry_run: Annotated[bool, Option("--dry-run", help="Print commands and scores so far; run nothing.")] = False,
) -> None:
    """Make one of the paper's tables.

    It runs what is missing, and prints the table with the paper's numbers beside. Finished runs of the same command
    are reused, and unfinished ones continue from their last checkpoint: repeat the command after an interruption.
    --slurm needs hydra-submitit-launcher, and takes settings of that, such as hydra.launcher.partition=NAME.
    """
    if gpus and slurm:
        raise typer.BadParameter("choose --gpus or --slurm, not both")
    from ocl_msf.experiments.tables import make_tables

    launcher = [override for override in slurm if override] if slurm else None  # --slurm alone is [""]
    make_tables(table, part, dataset, seeds, preset, settings or [], out, gpus, launcher, dry_run)


@command("components", "ocl-msf components", "ocl-msf components decoder")
def components(
    group: Annotated[Optional[str], Argument(help="A group such as decoder; by default all.")] = None,
) -> None:
    """List the parts that any experiment can take by name.

    A choice such as msf/decoder=mixture, with + in front where the experiment has not chosen one, stands behind
    +experiment=... or in the defaults of a config. It puts the part at the place that is named, instead of what is
    there; what the part takes from other modules, and its numbers, are overrides of that place.
    """
    from ocl_msf.experiments.components import describe_components

    parts = describe_components(group)
    widths = [max(len(part[column]) for part in parts) for column in (0, 1)]
    for part in parts:
        print(f"{part.choice:{widths[0]}}  {part.place:{widths[1]}}  {part.line}")


@command("protocol", "ocl-msf protocol outputs/msf/slate_clevrtex/TIME --last 25")
def protocol(
    runs: Annotated[List[Path], Argument(metavar="RUN...", help="Folders of runs.", show_default=False)],
    split: Literal["train", "val", "test"] = "val",
    last: Annotated[int, Option(min=1, help="How many checkpoints.")] = 25,
    by: Annotated[
        Optional[str], Option(help="Score that decides which is the best; by default ari+ari_fg, in stage 1 inter.")
    ] = None,
    gpus: Gpus = "",
    settings: Annotated[
        Optional[List[str]], Option("--set", metavar="KEY=VALUE...", help="Overrides for every evaluation.")
    ] = None,
    dry_run: Annotated[bool, Option("--dry-run", help="Print the commands.")] = False,
) -> None:
    """Score the last checkpoints of runs.

    As in the paper (section A.5) it prints their mean and the best of them. Every checkpoint has a report of its
    own in RUN/protocol/SPLIT, so the same command again does what is missing.
    """
    from ocl_msf.experiments.protocol import score_checkpoints

    score_checkpoints(runs, split, last, by, gpus, settings or [], dry_run)


@command("upgrade", "ocl-msf upgrade outputs/msf/slate_clevrtex/TIME")
def upgrade(
    runs: Annotated[List[Path], Argument(metavar="RUN...", help="Folders of runs.", show_default=False)],
) -> None:
    """Convert runs of an earlier version.

    They are evaluated, resumed and reported like new ones then. The configuration of before stays in
    RUN/config/config.before-upgrade.yaml.
    """
    from ocl_msf.experiments.upgrade import upgrade_run

    for run in runs:
        print(f"{run}: {'converted' if upgrade_run(run) else 'up to date'}")
