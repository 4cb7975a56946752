"""Loading trained models from wherever they are."""

from pathlib import Path
from typing import Any, Dict, Optional, Sequence, Tuple, Union

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from ocl_msf.experiments.checkpoints import read_weights
from ocl_msf.experiments.runs import Run, config_path
from ocl_msf.files import DataError, decode_json
from ocl_msf.inference.description import Description
from ocl_msf.inference.model import Model

CONFIG, WEIGHTS, CARD = "config.json", "model.safetensors", "README.md"  # of an exported model
PRETRAINED = Path(__file__).parent.parent / "pretrained"
PRECISIONS = ("32-true", "16-mixed", "bf16-mixed")
FORMS = (
    "Give the folder of a run of stage 2, one of its checkpoints, an exported model (of `ocl-msf export`), "
    "hf://owner/name, or pretrained:name."
)


def load(
    source: Union[str, Path], device: Any = "cpu", precision: Optional[str] = None, trust: Sequence[str] = ()
) -> Model:
    """Load a trained model, to find slots and masks in pictures or videos.

    Example:
        ```python
        model = ocl_msf.load("outputs/msf/slate_clevrtex/TIME")
        result = model(["cat.jpg", "dog.jpg"])
        result.slots, result.masks, result.scores, result.reconstruct()
        ```

    Args:
        source: folder of a run of stage 2, a checkpoint in it, the folder of an exported model, `hf://owner/name` or
            `hf://owner/name@revision` on the Hugging Face hub, or `pretrained:name` for one that comes with ocl_msf.
        device: where it computes.
        precision: "32-true", "16-mixed" or "bf16-mixed"; by default that in which the run is evaluated.
        trust: further modules whose classes an exported model may build; see `Description.of_others`.

    Returns:
        The model, in evaluation mode; see `ocl_msf.inference.model.Model`.

    Raises:
        DataError: there is no model, it is of another version, or the hub cannot be reached.
        FileNotFoundError, ValueError: its files are damaged.
    """
    if precision not in (None, *PRECISIONS):
        raise ValueError(f"precision must be one of {', '.join(PRECISIONS)}, got {precision!r}.")
    description, weights, path = read(source, trust)
    try:
        model = Model(description)
        differing = model.models.load_state_dict(weights, strict=False)  # without the state of schedules
        names = [*differing.unexpected_keys, *(x for x in differing.missing_keys if not x.endswith("_extra_state"))]
        if names:
            raise RuntimeError(f"{len(names)} weights differ, such as {names[0]}")
    except (KeyError, RuntimeError, TypeError) as error:
        reason = str(error).split("\n")[0]
        raise DataError(
            f"{path} does not fit this version of ocl_msf; it was made by another one. ({reason})"
        ) from error
    model.precision = precision or model.precision
    return model.to(device)


def read(
    source: Union[str, Path], trust: Sequence[str] = ()
) -> Tuple[Description, Dict[str, torch.Tensor], Union[str, Path]]:
    """Description and weights of a model, and where they are; arguments and errors as of `load`."""
    folder = find(source)
    if (folder / CONFIG).is_file():
        return (*read_exported(folder, trust), source)
    run = Run.open(folder)
    checkpoint = folder if folder.suffix == ".ckpt" else run.checkpoint
    description = Description.of_run(run)
    if checkpoint is None:
        raise DataError(f"{folder} has no checkpoint yet. {FORMS}")
    weights = {name: x for name, x in read_weights(checkpoint, "models").items() if isinstance(x, torch.Tensor)}
    return description, weights, checkpoint


def find(source: Union[str, Path]) -> Path:
    """The local folder or checkpoint of a model, downloaded if it is on the hub.

    Raises:
        DataError: there is none.
    """
    kind, _, name = str(source).partition(":")
    if kind == "pretrained":
        return find_pretrained(name)
    if kind == "hf":
        from ocl_msf.inference.hub import download

        return download(name.lstrip("/"))
    path = Path(source)
    if not path.exists():
        raise DataError(f"There is no {path}. {FORMS}")
    if path.name in (CONFIG, WEIGHTS) and (path.parent / CONFIG).is_file():
        return path.parent
    if path.suffix != ".ckpt" and not any(file.is_file() for file in (path / CONFIG, config_path(path))):
        raise DataError(f"{path} holds no model. {FORMS}")
    return path


def find_pretrained(name: str) -> Path:
    """The folder of a model that comes with the package.

    Raises:
        DataError: there is none of that name; the message lists those that there are.
    """
    available = sorted(path.parent.name for path in PRETRAINED.glob(f"*/{CONFIG}"))
    if name in available:
        return PRETRAINED / name
    listed = f"There are: {', '.join(f'pretrained:{known}' for known in available)}." if available else "There is none."
    raise DataError(f"There is no model pretrained:{name} in this version of ocl_msf. {listed}")


def read_exported(folder: Path, trust: Sequence[str] = ()) -> Tuple[Description, Dict[str, torch.Tensor]]:
    """Description and weights in the folder of an exported model; nothing in it is unpickled.

    Raises:
        DataError: a file is missing or damaged, or see `Description.of_others`.
    """
    path = folder / CONFIG
    try:
        content = decode_json(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{path} is damaged ({error}). Export or download the model again.") from error
    description = Description.of_others(content, str(path), trust)
    try:
        return description, load_file(str(folder / WEIGHTS))
    except (OSError, SafetensorError) as error:
        reason = f"{folder / WEIGHTS} is missing or damaged ({error})."
        raise DataError(f"{reason} Export or download the model again.") from error
