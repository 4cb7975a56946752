"""Images from slots alone."""

from dataclasses import dataclass
from typing import Any, Dict, Optional

import torch
from torch import nn

from ocl_msf.decoding import CodeDecoder


@dataclass(frozen=True)
class Sampling:
    """How a decoder of codes chooses the code of a token. Diffusion always samples, and takes the seed alone.

    Attributes:
        temperature: 0 for the most probable code of every token, whose average look has little texture; otherwise codes
            are drawn from softmax(logits / temperature), and 1 is the model's own distribution.
        top_k: draw from the k most probable codes only; None: from all.
        seed: of what is drawn.
    """

    temperature: float = 0.0
    top_k: Optional[int] = None
    seed: int = 0

    def options(self, decoder: nn.Module, device: torch.device) -> Dict[str, Any]:
        """The arguments of this decoder's `generate` that say so."""
        if not isinstance(decoder, CodeDecoder):
            return {"seed": self.seed} if self.seed else {}
        generator = torch.Generator(device).manual_seed(self.seed) if self.temperature else None
        return {"temperature": self.temperature, "top_k": self.top_k, "generator": generator}

    def describe(self, decoder: nn.Module) -> str:
        """The same in words, for captions."""
        if not isinstance(decoder, CodeDecoder):
            return f"diffusion, seed {self.seed}"
        if not self.temperature:
            return "most probable codes"
        limit = f", top {self.top_k}" if self.top_k else ""
        return f"sampled codes, temperature {self.temperature:g}{limit}, seed {self.seed}"


def reconstruct(
    slots: torch.Tensor,
    decoder: Any,
    guidance: Any,
    slot_mask: Optional[torch.Tensor] = None,
    sampling: Optional[Sampling] = None,
    **per_slot: torch.Tensor,
) -> torch.Tensor:
    """Decode images from slots alone.

    Args:
        slots: (b, k, d).
        decoder: an `ocl_msf.decoding.Decoder`.
        guidance: the FrozenGuidance whose features it generates.
        slot_mask: (b, k), bool, True where a slot is off.
        sampling: how; by default what the decoder does by itself, the most probable codes.
        per_slot: what else this decoder takes of every slot, (b, k, ...) each.

    Returns:
        (b, 3, h, w) in [-1, 1].
    """
    options = sampling.options(decoder, slots.device) if sampling else {}
    was_training = decoder.training
    decoder.eval()
    features = decoder.generate(slots, slot_mask=slot_mask, **per_slot, **options)  # b d h w
    decoder.train(was_training)
    return guidance.decode(features).clamp(-1, 1)
