"""A decoder of tokens in which slots compete: every token is a mixture of what each slot predicts there."""

import math
from typing import Any, Optional, Sequence, Tuple, Union, cast

import torch
from torch import nn

from ocl_msf.chunks import evaluate_in_chunks
from ocl_msf.decoding import CodeDecoder, TokenDecoderOutput, height_and_width, sample_codes
from ocl_msf.frames import RELATIVE_FEATURES, relative_features, split_frames


class MixtureDecoder(CodeDecoder):
    """Every slot predicts all tokens on its own and how likely it owns them: p(code) = sum_k alpha_k p_k(code).

    The MLP, shared by all slots and positions, is DINOSAUR's (Seitzer et al., 2023), the targets are SLATE's. What is
    mixed are probabilities, as in IODINE and MONet, not features: the log-likelihood of the mixture rewards one slot
    that explains a token well, so slots compete from the first step on, where averaged features let all slots share
    every token. There is no past to copy from: what slots do not say costs likelihood.

    Args:
        object_dim: channels of a slot.
        guidance_dim: channels of the guidance; unused, as tokens are not read.
        codebook_sizes: number of codes of each codebook that a token names.
        size: h and w of the guidance, or one number for both.
        dim: channels of the MLP.
        num_layers: its hidden layers.
        token_dropout: share of the tokens, drawn anew for every image, that training does not predict; the loss keeps
            its expectation, and a step costs less.
        joint: one head for all combinations of codes instead of one for each codebook.
        transformer: what only `TokenDecoder` has and here has no meaning, so that one config builds either.
    """

    def __init__(
        self,
        object_dim: int,
        guidance_dim: int,
        codebook_sizes: Sequence[int],
        size: Union[int, Sequence[int]],
        dim: int = 256,
        num_layers: int = 2,
        token_dropout: float = 0.0,
        joint: bool = False,
        **transformer: Any,
    ):
        super().__init__()
        self.size = height_and_width(size)
        self.token_dropout = token_dropout
        self.positions = nn.Parameter(torch.randn(math.prod(self.size), dim))
        self.project_slots = nn.Sequential(nn.LayerNorm(object_dim), nn.Linear(object_dim, dim))
        layers = [layer for _ in range(num_layers) for layer in (nn.ReLU(), nn.Linear(dim, dim))]
        self.mlp = nn.Sequential(*layers, nn.ReLU())
        self.alpha = nn.Linear(dim, 1)
        self.joint_sizes = tuple(codebook_sizes) if joint else None
        outputs = [math.prod(codebook_sizes)] if joint else codebook_sizes
        self.heads = nn.ModuleList(nn.Linear(dim, codes) for codes in outputs)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
                nn.init.zeros_(module.bias)
        for head in self.heads:
            nn.init.kaiming_normal_(cast(nn.Linear, head).weight, a=4.6)  # smaller, or the first would be too sure

    @evaluate_in_chunks
    def forward(
        self, slots: torch.Tensor, guidance: torch.Tensor, slot_mask: Optional[torch.Tensor] = None
    ) -> TokenDecoderOutput:
        """Predict the tokens from the slots alone.

        Arguments as for `Decoder.forward`; of the guidance only h and w matter.

        Raises:
            ValueError: the guidance has another number of tokens than the decoder.
        """
        self._check_size(*guidance.shape[2:])
        tokens = self._choose(len(slots), slots.device)  # b n
        logits = self._predict(slots, slot_mask, tokens)  # g times b n m
        indices = self._to_codes([p.argmax(-1) for p in logits])  # b g n
        if tokens is None:
            tokens = torch.arange(math.prod(self.size), device=slots.device).expand(len(slots), -1)
            indices = indices.unflatten(-1, guidance.shape[2:])
        return TokenDecoderOutput(logits, indices, tokens)

    @torch.no_grad()
    def generate_codes(
        self,
        slots: torch.Tensor,
        size: Optional[Tuple[int, int]] = None,
        slot_mask: Optional[torch.Tensor] = None,
        **sampling: Any,
    ) -> torch.Tensor:
        """See CodeDecoder; every token by itself."""
        height, width = size or self.size
        self._check_size(height, width)
        logits = self._predict(slots, slot_mask, None)
        sampled = [sample_codes(p.flatten(0, 1), **sampling).view(p.shape[:2]) for p in logits]  # g times b n
        return self._to_codes(sampled).unflatten(-1, (height, width))

    def _predict(
        self, slots: torch.Tensor, slot_mask: Optional[torch.Tensor], chosen: Optional[torch.Tensor]
    ) -> Tuple[torch.Tensor, ...]:
        """Log-probabilities, g times (b, n, m), of all tokens, or of those with the numbers `chosen` (b, n)."""
        hidden, prior = self._place(slots, chosen)  # b n k d, b n k
        x = self.mlp(hidden)
        owned = self.alpha(x).squeeze(-1) + prior  # b n k
        if slot_mask is not None:
            owned = owned.masked_fill(slot_mask.unsqueeze(1), torch.finfo(owned.dtype).min)
        alpha = owned.softmax(-1, dtype=torch.float32).unsqueeze(-2)  # b n 1 k
        mixed = [(alpha @ head(x).softmax(-1, dtype=torch.float32)).squeeze(-2) for head in self.heads]  # b n m
        return tuple(p.clamp(min=1e-6).log() for p in mixed)

    def _place(self, slots: torch.Tensor, chosen: Optional[torch.Tensor]) -> Tuple[torch.Tensor, torch.Tensor]:
        """Each slot at each position, (b, n, k, d), and what speaks for it before the MLP does, (b, n, k)."""
        positions = self.positions if chosen is None else self.positions[chosen]  # n d or b n d
        hidden = self.project_slots(slots).unsqueeze(1) + positions.unsqueeze(-2)  # b n k d
        return hidden, hidden.new_zeros(hidden.shape[:-1])

    def _choose(self, batch_size: int, device: torch.device) -> Optional[torch.Tensor]:
        """The numbers (b, n) of the tokens that are predicted in a training step; None: all."""
        if not (self.training and self.token_dropout):
            return None
        total = math.prod(self.size)
        count = max(1, round((1 - self.token_dropout) * total))
        return torch.rand(batch_size, total, device=device).argsort(1)[:, :count]


class FramedMixtureDecoder(MixtureDecoder):
    """The same for slots with frames: a slot draws relative to its position and scale, and more likely near them.

    The MLP gets seven functions of the relative position instead of an embedding of the absolute one, so a slot with a
    moved frame draws the same thing elsewhere (Biza et al., 2023, section 3.3).

    Args:
        object_dim: channels of a slot without its frame.
        focus: how fast the logit of owning a token falls with the squared distance in units of the slot's scale.
        others: as for `MixtureDecoder`.
    """

    points: torch.Tensor

    def __init__(self, *args: Any, focus: float = 0.1, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.focus = focus
        dim = self.positions.shape[1]
        del self.positions
        axes = [torch.linspace(-1, 1, side) for side in self.size]
        self.register_buffer("points", torch.cartesian_prod(*axes), persistent=False)  # n 2
        self.project_relative = nn.Linear(RELATIVE_FEATURES, dim)
        nn.init.kaiming_normal_(self.project_relative.weight, nonlinearity="relu")
        nn.init.zeros_(self.project_relative.bias)

    def _place(self, slots: torch.Tensor, chosen: Optional[torch.Tensor]) -> Tuple[torch.Tensor, torch.Tensor]:
        vectors, frames = split_frames(slots)
        points = self.points if chosen is None else self.points[chosen]  # n 2 or b n 2
        relative = relative_features(frames.unsqueeze(1), points.unsqueeze(-2))  # b n k 7
        hidden = self.project_slots(vectors).unsqueeze(1) + self.project_relative(relative)  # b n k d
        return hidden, -self.focus * relative[..., 2]
