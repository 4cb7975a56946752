"""Pretrained parts of a model: the VAE that guides and the ViT of the encoder, which never learn, and others."""

import hashlib
from pathlib import Path
from typing import Any, Dict, Tuple

import torch
from torch import nn


def read_state_dict(path: Path, what: str) -> Dict[str, torch.Tensor]:
    """Read a state dict that torch or safetensors saved; nothing is unpickled.

    Args:
        path: the file.
        what: of what, for messages: "a ViT".

    Raises:
        FileNotFoundError: no such file.
        ValueError: it is damaged, or holds pickled objects.
    """
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}.")
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(str(path))
        weights: Any = torch.load(path, map_location="cpu", weights_only=True)
        for wrapper in ("teacher", "state_dict"):
            weights = weights.get(wrapper, weights)
        return {name[7 * name.startswith("module.") :]: x for name, x in weights.items()}
    except Exception as error:  # damage and pickles are reported in many types; all mean: not a file to trust
        raise ValueError(f"{path} cannot be read as weights of {what} ({type(error).__name__}: {error})") from error


class Pretrained(nn.Module):
    """Starts from pretrained weights, and refuses to run until it has them; checkpoints hold them, too.

    Args:
        loaded: whether it has its weights already.
    """

    loaded: torch.Tensor

    def __init__(self, loaded: bool = False):
        super().__init__()
        self.register_buffer("loaded", torch.tensor(int(loaded), dtype=torch.uint8))  # gloo of torch 2.0 sends no bool

    def require_weights(self) -> None:
        """Raise RuntimeError if there are no weights yet: training with a random network would look like training."""
        if not self.loaded:
            raise RuntimeError(self.missing("nothing has loaded them."))

    def missing(self, reason: str) -> str:
        """Say that the weights are missing, why, and where to get them."""
        raise NotImplementedError


class Frozen(Pretrained):
    """A pretrained network that a model uses and never trains.

    Its parameters have no gradient, it stays in evaluation mode, and until it has weights it refuses to run. Weights
    come from `load` at the start of a training (`ocl_msf.training.callbacks`); the checkpoints of the model around it
    hold them too, so that a run resumes and is evaluated without their source.

    Args:
        network: the network.
        name: its attribute in this module, and so the prefix of its weights in checkpoints.
        loaded: whether it has its weights already.
    """

    def __init__(self, network: nn.Module, name: str = "network", loaded: bool = False):
        super().__init__(loaded)
        self.network_name = name
        self.add_module(name, network.requires_grad_(False))
        self.train(False)

    def train(self, mode: bool = True) -> "Frozen":
        """Stay in evaluation mode, whatever the model around does."""
        return super().train(False)

    def load(self, weights: Dict[str, Any]) -> None:
        """Take pretrained weights, a state dict of the network.

        Raises:
            RuntimeError, ValueError: they are those of another network.
        """
        self.get_submodule(self.network_name).load_state_dict(weights)
        self.loaded.fill_(1)

    def compact(self, image: torch.Tensor) -> Tuple[torch.Tensor, str]:
        """What a cache keeps of images (b, 3, h, w): a tensor (b, ...), and NumPy's type for it.

        Given to `forward`, it replaces the work of the network.
        """
        raise NotImplementedError

    def fingerprint(self) -> str:
        """A digest of the network and its weights: what it makes of an image changes only with this."""
        digest = hashlib.sha256(repr(self).encode())
        for name, value in sorted(self.state_dict().items()):
            digest.update(name.encode())
            is_tensor = isinstance(value, torch.Tensor)
            digest.update(value.detach().cpu().contiguous().numpy().tobytes() if is_tensor else repr(value).encode())
        return digest.hexdigest()
