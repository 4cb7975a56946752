"""Exported models: a folder with weights, their description, a card and a picture, for others and for the hub."""

import shutil
from pathlib import Path
from typing import List, Optional, Union

from safetensors.torch import save

from ocl_msf.experiments.honest_rows import INSTRUMENTS, text_table, verdict
from ocl_msf.experiments.runs import Run, defined, step_of
from ocl_msf.files import DataError, encode_json
from ocl_msf.inference.description import Description
from ocl_msf.inference.loading import CARD, CONFIG, WEIGHTS, find, read

PICTURE = "scenes.png"
CITATION = """@inproceedings{zhao2025msf,
  title     = {Multi-Scale Fusion for Object Representation},
  author    = {Zhao, Rongzhen and Wang, Vivienne and Kannala, Juho and Pajarinen, Joni},
  booktitle = {International Conference on Learning Representations},
  year      = {2025},
  url       = {https://openreview.net/forum?id=nmc9ujrZ5R}
}"""


def export(source: Union[str, Path], folder: Path, license: Optional[str] = None) -> Path:
    """Write a trained model into a folder that `ocl_msf.load` opens anywhere, without the run or its data.

    It holds `model.safetensors`, `config.json`, a model card `README.md` and, if the run was evaluated, `scenes.png`.
    It appears when it is complete, and replaces an earlier export of the same name.

    Args:
        source: a model, see `ocl_msf.load`.
        folder: a new one, an empty one, or that of an earlier export.
        license: of the weights, such as "apache-2.0", for the card.

    Returns:
        The folder.

    Raises:
        DataError: there is no such model, or the folder holds something else or cannot be written.
    """
    if folder.exists() and not (folder.is_dir() and ((folder / CONFIG).is_file() or not any(folder.iterdir()))):
        raise DataError(f"{folder} holds something else. Choose a new folder.")
    path = find(source)
    description, weights, checkpoint = read(path)
    run = None if (path / CONFIG).is_file() else Run.open(path)
    partial = folder.with_name(f"{folder.name}.partial")
    try:
        shutil.rmtree(partial, ignore_errors=True)  # of an export that was interrupted
        partial.mkdir(parents=True)
        (partial / WEIGHTS).write_bytes(save({name: x.contiguous() for name, x in weights.items()}))
        (partial / CONFIG).write_bytes(encode_json(description.to_json(), indent=1))
        picture = (run.folder if run else path) / PICTURE
        if picture.is_file():
            shutil.copyfile(picture, partial / PICTURE)
        card = write_card(description, run, Path(checkpoint), picture.is_file(), license) if run else None
        (partial / CARD).write_text(card or (path / CARD).read_text(encoding="utf-8"), encoding="utf-8")
        shutil.rmtree(folder, ignore_errors=True)
        partial.replace(folder)
    except OSError as error:
        raise DataError(f"{folder} was not written: {error.strerror}. Correct that and run again.") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return folder


def write_card(
    description: Description, run: Run, checkpoint: Path, has_picture: bool, license: Optional[str] = None
) -> str:
    """The model card of a run: what it is, its scores beside those of what knows nothing of objects, how to use it."""
    title = f"{description.model} on {description.data}"
    variant = f", guided by a VAE of variant `{description.variant}`" if description.variant else ""
    made = f"trained for {step_of(checkpoint) or '?'} steps, seed {run.seed}, with {_versions(run)}"
    kind, side = "videos" if description.video else "pictures", description.image_size
    lines = [
        "---",
        *([f"license: {license}"] if license else []),
        "library_name: ocl_msf",
        "tags: [object-centric-learning, slot-attention, unsupervised-segmentation]",
        "---",
        "",
        f"# {title}",
        "",
        f"Slots of {kind} of {side}x{side} pixels{variant}; {made}.",
        "",
        *([f"![scenes, true masks, predicted masks, reconstructions]({PICTURE})", ""] if has_picture else []),
        "## Use",
        "",
        "```python",
        "import ocl_msf",
        "",
        'model = ocl_msf.load("PATH")  # this folder, or hf://owner/name',
        "result = model(images)",
        "result.slots, result.masks, result.reconstruct()",
        "```",
        "",
        "## Scores",
        "",
        *_scores(description, run, checkpoint),
        "",
        "## Data and licence",
        "",
        f"Trained on `{description.data}`, whose licence applies to what is made of it. "
        f"Licence of the weights: {license or 'not stated'}.",
        "",
        "## Citation",
        "",
        "```bibtex",
        CITATION,
        "```",
        "",
    ]
    return "\n".join(lines)


def _versions(run: Run) -> str:
    versions = {name: run.environment[name] for name in ("ocl-msf", "torch") if name in run.environment}
    return ", ".join(f"{name} {version}" for name, version in versions.items()) or "versions that were not recorded"


def _scores(description: Description, run: Run, checkpoint: Path) -> List[str]:
    """The scores of the run's evaluation, if it is of this checkpoint."""
    report = run.read_json("metrics.json")
    scored = Path(str(report.get("checkpoint_path", ""))).name
    if scored != checkpoint.name:
        return ["This checkpoint has not been scored."]
    scores = defined(report.get("metrics", {}).get("val", {}))
    table = text_table("validation set, %", {description.model: scores})
    instruments = [f"{label} {scores[name]:.3f}" for name, label in INSTRUMENTS.items() if name in scores]
    judgement = verdict(scores) or "What a blind grid and colour clustering reach was not measured"
    return [
        *("```", *table, "```", ""),
        "; ".join([judgement, *instruments]) + ".",
        "",
        "*Image gain* is what a score loses with the masks of another sample, *blind grid* never sees the image, and",
        "*colour clustering* is k-means on the colours of each sample. By `ocl_eval +evaluation=msf/scores`.",
    ]
