"""Draw a figure from what runs have saved in their folders; the same runs give the same bytes.

    python -m ocl_msf.results.figures curves RUNS... --names val/ari_fg val/miou --out curves.png
    python -m ocl_msf.results.figures codebooks RUNS... --out codebooks.png
    python -m ocl_msf.results.figures segmentations RUNS... --scenes 8 --out figure2.png
    python -m ocl_msf.results.figures guidance RUNS... --image 1 --out figure3.png

RUNS are folders of runs, or folders that hold some at any depth. Curves and codebooks are read from the logs of
training, and runs that differ in their seed alone become one curve. Segmentations need scenes.npz, guidance needs
guidance.npz in a run's folder; these evaluations write them:

    ocl_eval +evaluation=msf/scenes        train_config_path=RUN/config/config.yaml    (stage 2)
    ocl_eval +evaluation=msf/guidance_maps train_config_path=RUN/config/config.yaml    (stage 1)
"""

import argparse
from pathlib import Path
from typing import Dict, List, Optional, Sequence

from ocl_msf.experiments.runs import Run
from ocl_msf.files import DataError, command_line, positive
from ocl_msf.results.figures.curves import CURVES, draw_codebooks, draw_curves
from ocl_msf.results.figures.guidance_maps import FILE as GUIDANCE
from ocl_msf.results.figures.guidance_maps import draw_maps, read_guidance
from ocl_msf.results.figures.segmentations import FILE as SCENES
from ocl_msf.results.figures.segmentations import draw_segmentations, read_scenes
from ocl_msf.results.rows import collect, name_rows


def main(arguments: Optional[Sequence[str]] = None) -> None:
    """Draw one figure."""
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(prog="python -m ocl_msf.results.figures", description=__doc__, formatter_class=raw)
    parser.add_argument("figure", choices=sorted(DRAW))
    parser.add_argument("runs", type=Path, nargs="+", metavar="RUNS")
    parser.add_argument("--out", type=Path, help="the PNG file (default: FIGURE.png)")
    parser.add_argument("--names", nargs="+", help="of curves: scalars (default: scores on the validation set)")
    parser.add_argument("--scenes", type=positive, default=8, help="of segmentations: how many (default: 8)")
    parser.add_argument("--image", type=positive, default=1, help="of guidance: which of the kept images (default: 1)")
    options = parser.parse_args(arguments)
    options.out = options.out or Path(f"{options.figure}.png")
    with command_line():
        runs = collect(options.runs)
        DRAW[options.figure](runs, options)
        print(options.out)


def _rows(runs: Sequence[Run]) -> Dict[str, List[Run]]:
    """The runs by the name of their row, which starts with the experiment if there are several."""
    several = len({run.experiment for run in runs}) > 1
    return {f"{seeds[0].experiment}, {name}" if several else name: seeds for name, seeds in name_rows(runs)}


def _curves(runs: Sequence[Run], options: argparse.Namespace) -> None:
    logged = {name for run in runs for name in run.log}
    names = options.names or [name for name in CURVES if name in logged] or list(CURVES[:1])
    draw_curves({name: [run.log for run in seeds] for name, seeds in _rows(runs).items()}, names, options.out)


def _codebooks(runs: Sequence[Run], options: argparse.Namespace) -> None:
    draw_codebooks({name: [run.log for run in seeds] for name, seeds in _rows(runs).items()}, options.out)


def _with(runs: Sequence[Run], file: str) -> Dict[str, Path]:
    """The file in the folder of the first run of each row that has it.

    Raises:
        DataError: no run has one.
    """
    having = [run for run in runs if (run.folder / file).is_file()]
    if not having:
        raise DataError(f"No run has {file}. Evaluate them first, see python -m ocl_msf.results.figures --help.")
    return {name: seeds[0].folder / file for name, seeds in _rows(having).items()}


def _segmentations(runs: Sequence[Run], options: argparse.Namespace) -> None:
    models = {name: read_scenes(path) for name, path in _with(runs, SCENES).items()}
    names = draw_segmentations(models, options.out, options.scenes)
    print(f"scenes {', '.join(names)}, of {len(next(iter(models.values())).keys)}, best to worst")


def _guidance(runs: Sequence[Run], options: argparse.Namespace) -> None:
    models = {name: read_guidance(path) for name, path in _with(runs, GUIDANCE).items()}
    kept = list(next(iter(models.values())))
    if options.image > len(kept):
        raise DataError(f"There is no image {options.image}: {len(kept)} are kept.")
    image = kept[options.image - 1]
    draw_maps({name: images[image] for name, images in models.items() if image in images}, options.out)


DRAW = {"curves": _curves, "codebooks": _codebooks, "segmentations": _segmentations, "guidance": _guidance}


if __name__ == "__main__":
    main()
