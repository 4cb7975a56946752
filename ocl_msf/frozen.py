"""Pretrained parts of a model that never learn: the VAE that guides, and the ViT of the encoder."""

import hashlib
from typing import Any, Dict, Tuple

import torch
from torch import nn


class Frozen(nn.Module):
    """A pretrained network that a model uses and never trains.

    Its parameters have no gradient, it stays in evaluation mode, and until it has weights it refuses to run. Weights
    come from `load` at the start of a training (`ocl_msf.training.callbacks`); the checkpoints of the model around it
    hold them too, so that a run resumes and is evaluated without their source.

    Args:
        network: the network.
        name: its attribute in this module, and so the prefix of its weights in checkpoints.
        loaded: whether it has its weights already.
    """

    loaded: torch.Tensor

    def __init__(self, network: nn.Module, name: str = "network", loaded: bool = False):
        super().__init__()
        self.network_name = name
        self.add_module(name, network.requires_grad_(False))
        self.register_buffer("loaded", torch.tensor(int(loaded), dtype=torch.uint8))  # gloo of torch 2.0 sends no bool
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

    def require_weights(self) -> None:
        """Raise RuntimeError if there are no weights yet: training with a random network would look like training."""
        if not self.loaded:
            raise RuntimeError(self.missing("nothing has loaded them."))

    def missing(self, reason: str) -> str:
        """Say that the weights are missing, why, and where to get them."""
        raise NotImplementedError

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
