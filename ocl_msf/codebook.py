"""Codebooks: matching vectors with codes (Eq. 1), selecting codes (Eq. 2), replacing unused codes."""

from typing import List, NamedTuple, Sequence, SupportsFloat, Tuple

import torch
import torch.distributed as dist
from torch import nn
from torch.nn import functional as F

Schedule = SupportsFloat  # a number, or a hyper-parameter schedule of the host: float(schedule) is its current value


class Match(NamedTuple):
    """Indices of the matched codes (...), int64, and confidences (...) of the matches, in (0, 1] (Eq. 1)."""

    indices: torch.Tensor
    confidence: torch.Tensor


class Codebook(nn.Module):
    """m template vectors (codes), matched by Euclidean distance (Eq. 1), selected by index (Eq. 2).

    In training mode, codes can be sampled instead of taking the nearest (Gumbel noise), and unused codes can be
    replaced by encoder vectors of the current batch.

    Args:
        codebook_size: m, the number of codes.
        dim: d, channels of a code.
        temperature: in training, codes are sampled from softmax(-distance / temperature); 0 takes the nearest. A
            number or a schedule.
        replace_below: a code is replaced when the moving average of its share of matches falls below this fraction of
            the uniform share 1/m; 0 never replaces.
        usage_decay: decay of that moving average per training step.
        relative_confidence: whether distances are divided by their mean over codes before the softmax of Eq. 1, where
            confidences are asked for. Equation 1 as it stands compares absolute differences of distances, and these are
            largest for vectors far from all codes, so that extreme vectors are the most confident ones. Divided,
            confidence falls with the distance to the nearest code, whatever the scale of vectors and codes is, and the
            nearest code remains the nearest.
        spread: the unit of distances in the softmax of Eq. 1 and where codes are sampled.

    Attributes:
        weight: (m, d), the codes.
        usage: (m,), moving average of each code's share of matches.

    Raises:
        ValueError: codebook_size or dim is below 1.
    """

    usage: torch.Tensor

    def __init__(
        self,
        codebook_size: int,
        dim: int,
        temperature: Schedule = 0.0,
        replace_below: float = 0.0,
        usage_decay: float = 0.9,
        relative_confidence: bool = False,
        spread: float = 1.0,
    ):
        super().__init__()
        if codebook_size < 1 or dim < 1:
            raise ValueError(f"A codebook needs at least one code and one channel, got {codebook_size} x {dim}.")
        self.weight = nn.Parameter(torch.randn(codebook_size, dim))
        self.temperature = temperature
        self.replace_below = replace_below
        self.usage_decay = usage_decay
        self.relative_confidence = relative_confidence
        self.spread = spread
        self.register_buffer("usage", torch.full((codebook_size,), 1.0 / codebook_size))

    def forward(self, indices: torch.Tensor) -> torch.Tensor:
        """Select codes by index (Eq. 2): (...), int64 -> (..., d)."""
        return F.embedding(indices, self.weight)  # (..., d)

    @torch.no_grad()
    def match(self, features: torch.Tensor) -> Match:
        """Match vectors with codes (Eq. 1): P = softmax_m(-||z - e||_2), I = argmax P, confidence = max P.

        max P = 1 / sum_m exp(d_min - d_m), so no softmax is stored. The confidence is that of the nearest code,
        even where the index is sampled; with `relative_confidence`, d_m is divided by the mean distance before.

        Args:
            features: (..., d).

        Returns:
            Indices (...), int64, and confidences (...). Ties go to the lower index.
        """
        distance = self._distance(features.flatten(0, -2))  # (l, m)
        nearest, indices = distance.min(-1)  # (l,), both
        behind = nearest.unsqueeze(-1) - distance  # (l, m), at most 0
        if self.relative_confidence:
            behind /= distance.mean(-1, keepdim=True).clamp_min(torch.finfo(distance.dtype).tiny)
        confidence = behind.exp_().sum(-1).reciprocal_()  # (l,)
        if self._is_sampling():
            indices = self._draw(distance)  # (l,)
        shape = features.shape[:-1]
        return Match(indices.view(shape), confidence.view(shape))

    def probabilities(self, features: torch.Tensor) -> torch.Tensor:
        """Matching probabilities (Eq. 1), with gradients: (l, d) -> (l, m)."""
        codes = self.weight.clone()  # dead ones are replaced before backward
        return (-torch.cdist(features, codes)).softmax(-1)

    @torch.no_grad()
    def nearest(self, features: torch.Tensor) -> torch.Tensor:
        """Match without computing confidences: (..., d) -> indices (...), int64.

        ||z - e||^2 = ||z||^2 - 2 z.e + ||e||^2, where ||z|| is the same for every code.
        """
        rows = features.flatten(0, -2)  # (l, d)
        if self._is_sampling():
            indices = self._draw(self._distance(rows))  # (l,)
        else:
            codes = self.weight  # (m, d)
            indices = torch.addmm(codes.square().sum(-1), rows, codes.T, alpha=-2).argmin(-1)  # (l,)
        return indices.view(features.shape[:-1])

    def _distance(self, rows: torch.Tensor) -> torch.Tensor:
        """(l, d) -> (l, m), in units of `spread`."""
        distance = torch.cdist(rows, self.weight)
        return distance if self.spread == 1.0 else distance / self.spread

    def _is_sampling(self) -> bool:
        return self.training and float(self.temperature) > 0

    def _draw(self, distance: torch.Tensor) -> torch.Tensor:
        """Sample from softmax_m(-distance / temperature), as adding Gumbel noise would: (l, m) -> (l,).

        Inverting the cumulative distribution takes one random number per row instead of m.
        """
        odds = (distance.amin(-1, keepdim=True) - distance).div_(float(self.temperature)).exp_()
        cumulative = odds.cumsum_(-1)
        drawn = torch.rand_like(cumulative[:, :1]) * cumulative[:, -1:]
        return torch.searchsorted(cumulative, drawn).squeeze(-1).clamp_(max=distance.shape[-1] - 1)

    def quantize(self, maps: Sequence[torch.Tensor]) -> Tuple[List[torch.Tensor], List[torch.Tensor]]:
        """Replace vectors by their nearest codes: N maps (..., d) -> N maps of codes (..., d), N of indices (...)."""
        indices = [self.nearest(m) for m in maps]
        return [self(i) for i in indices], indices

    @torch.no_grad()
    def replace_dead_codes(self, features: torch.Tensor, indices: torch.Tensor) -> None:
        """Update the usage of codes, and replace unused codes by random rows of `features`.

        Every rank of a distributed run computes the same usage and takes the same rows of the global batch.

        Args:
            features: (n, d), encoder vectors to take replacements from, image after image; the same n on every rank.
            indices: (l,), int64, the codes that were selected.
        """
        size = self.usage.numel()
        counts = _sum_over_ranks(torch.bincount(indices, minlength=size).to(self.usage))
        self.usage.lerp_(counts / counts.sum(), 1 - self.usage_decay)
        if self.replace_below:
            dead = self.usage < self.replace_below / size
            rows = _random_rows(features, size).to(self.weight)
            self.weight.copy_(torch.where(dead[:, None], rows, self.weight))
            self.usage.masked_fill_(dead, 1.0 / size)


def _world_size() -> int:
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def _sum_over_ranks(tensor: torch.Tensor) -> torch.Tensor:
    if _world_size() > 1:
        dist.all_reduce(tensor)
    return tensor


def _random_rows(features: torch.Tensor, count: int) -> torch.Tensor:
    """Draw `count` rows of the global batch (ranks one after another), the same ones on every rank.

    No row is drawn twice before every row is drawn once: equal codes would be useless.
    """
    n = len(features)
    chosen = torch.randperm(n * _world_size(), device=features.device)
    chosen = chosen[torch.arange(count, device=features.device) % len(chosen)]
    if _world_size() == 1:
        return features[chosen]
    dist.broadcast(chosen, src=0)
    mine = chosen // n == dist.get_rank()
    return _sum_over_ranks(features[chosen % n] * mine[:, None])
