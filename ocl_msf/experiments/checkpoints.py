"""Reading checkpoints without unpickling anything."""

from pathlib import Path
from typing import Dict

import torch


def read_weights(path: Path, module: str) -> Dict[str, torch.Tensor]:
    """Read the weights of one module of a Lightning checkpoint.

    Args:
        path: the .ckpt file.
        module: dotted path of the module in the training model, such as `models.vqvae`.

    Returns:
        Its state dict.

    Raises:
        FileNotFoundError: no such file.
        ValueError: the file is damaged, holds pickled objects, or has no such module.
    """
    if not path.is_file():
        raise FileNotFoundError(f"There is no checkpoint {path}.")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)["state_dict"]
    except Exception as error:  # torch reports damage and pickles in many types; all mean: not a checkpoint to trust
        raise ValueError(
            f"{path} cannot be read as a checkpoint: it is damaged, is none, or holds pickled objects, which are never "
            f"loaded. Choose another checkpoint or train it again. ({type(error).__name__}: {error})"
        ) from error
    prefix = module + "."
    weights = {name[len(prefix) :]: value for name, value in state.items() if name.startswith(prefix)}
    if not weights:
        parts = sorted({".".join(name.split(".")[:2]) for name in state})
        raise ValueError(f"{path} holds no module '{module}' (it holds {', '.join(parts)}): is it of stage 1?")
    return weights
