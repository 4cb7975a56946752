"""Figures of runs, from what they have saved in their folders; the command is `ocl-msf figures`.

Runs that differ in their seed alone become one curve. The same runs give the same bytes.
"""

from pathlib import Path
from typing import Dict, List, Sequence

from ocl_msf.experiments.runs import Run
from ocl_msf.files import DataError
from ocl_msf.results.figures.curves import CURVES, draw_codebooks, draw_curves
from ocl_msf.results.figures.guidance_maps import FILE as GUIDANCE
from ocl_msf.results.figures.guidance_maps import draw_maps, read_guidance
from ocl_msf.results.figures.segmentations import FILE as SCENES
from ocl_msf.results.figures.segmentations import draw_segmentations, read_scenes
from ocl_msf.results.rows import collect, name_rows


def curves(folders: Sequence[Path], out: Path, names: Sequence[str] = ()) -> None:
    """Draw logged scalars over the steps; by default the scores on the validation set."""
    runs = collect(folders)
    logged = {name for run in runs for name in run.log}
    names = names or [name for name in CURVES if name in logged] or CURVES[:1]
    draw_curves({name: [run.log for run in row] for name, row in _rows(runs).items()}, names, out)


def codebooks(folders: Sequence[Path], out: Path) -> None:
    """Draw how the codebooks are used over the steps."""
    draw_codebooks({name: [run.log for run in row] for name, row in _rows(collect(folders)).items()}, out)


def segmentations(folders: Sequence[Path], out: Path, scenes: int = 8) -> str:
    """Draw scenes with the masks of each model, from `scenes.npz`; returns which scenes these are."""
    models = {name: read_scenes(path) for name, path in _with(collect(folders), SCENES).items()}
    names = draw_segmentations(models, out, scenes)
    return f"scenes {', '.join(names)}, of {len(next(iter(models.values())).keys)}, best to worst"


def guidance(folders: Sequence[Path], out: Path, image: int = 1) -> None:
    """Draw the guidance maps of one image, counted from 1, from `guidance.npz`."""
    models = {name: read_guidance(path) for name, path in _with(collect(folders), GUIDANCE).items()}
    kept = list(next(iter(models.values())))
    if image > len(kept):
        raise DataError(f"There is no image {image}: {len(kept)} are kept.")
    key = kept[image - 1]
    draw_maps({name: images[key] for name, images in models.items() if key in images}, out)


def _rows(runs: Sequence[Run]) -> Dict[str, List[Run]]:
    """The runs by the name of their row, which starts with the experiment if there are several."""
    several = len({run.experiment for run in runs}) > 1
    return {f"{row[0].experiment}, {name}" if several else name: row for name, row in name_rows(runs)}


def _with(runs: Sequence[Run], file: str) -> Dict[str, Path]:
    """The file in the folder of the first run of each row that has it.

    Raises:
        DataError: no run has one.
    """
    having = [run for run in runs if (run.folder / file).is_file()]
    if not having:
        raise DataError(f"No run has {file}. Evaluate them first, see ocl-msf figures --help.")
    return {name: row[0].folder / file for name, row in _rows(having).items()}
