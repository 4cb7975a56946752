"""Vector quantisation: codebooks, straight-through gradients, plain and grouped quantisers.

Feature maps are (b, d, h, w) at the public doors and channels-last (b, h, w, d) inside, where every
operation is a matrix product or a row look-up. All of it runs in float32 whatever the autocast dtype.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import List, NamedTuple, Sequence, Tuple, Union

import torch
import torch.distributed as dist
from einops import rearrange
from torch import nn
from torch.nn import functional as F

Schedule = Union[float, nn.Module]  # a number, or a hyper-parameter schedule of the host: float(schedule) is its value


@dataclass
class QuantizerOutput:
    """What every quantiser answers; tuples run over scales, the finest first.

    Attributes:
        quantized: continuous codes X_n (b, d, h_n, w_n), gradient straight through to the encoder.
        indices: code numbers (b, g, h_n, w_n), int64, one channel for each of g codebooks that a super-pixel names.
        codebook_loss: scalar, sum over scales of MSE(sg[U], code): moves codes to the encoder's outputs.
        commitment_loss: scalar, sum over scales of MSE(U, sg[code]): moves the encoder to its codes. Unweighted.
    """

    quantized: Tuple[torch.Tensor, ...]
    indices: Tuple[torch.Tensor, ...]
    codebook_loss: torch.Tensor
    commitment_loss: torch.Tensor


class Match(NamedTuple):
    """Matched code numbers (...) and the confidence (...) in (0, 1] of the best match (Eq. 1)."""

    indices: torch.Tensor
    confidence: torch.Tensor


class Codebook(nn.Module):
    """m template vectors, matched by Euclidean distance (Eq. 1), selected by number (Eq. 2).

    In training mode, matching can be sampled (Gumbel noise) and codes that fall out of use are replaced by
    encoder vectors of the current batch.

    Args:
        codebook_size: m, the number of codes.
        dim: d, channels of a code.
        temperature: in training, the code is drawn from softmax(-distance / temperature) instead of taking the
            nearest; 0 takes the nearest. A number or a schedule.
        replace_below: a code whose moving-average share of matches falls below this fraction of the uniform share
            1/m is replaced; 0 never replaces.
        usage_decay: decay of that moving average per training step.
    """

    def __init__(
        self,
        codebook_size: int,
        dim: int,
        temperature: Schedule = 0.0,
        replace_below: float = 0.0,
        usage_decay: float = 0.99,
    ):
        super().__init__()
        if codebook_size < 1 or dim < 1:
            raise ValueError(f"A codebook needs at least one code and one channel, got {codebook_size} x {dim}.")
        self.weight = nn.Parameter(torch.randn(codebook_size, dim))
        self.temperature = temperature
        self.replace_below = replace_below
        self.usage_decay = usage_decay
        self.register_buffer("usage", torch.full((codebook_size,), 1.0 / codebook_size))

    def forward(self, indices: torch.Tensor) -> torch.Tensor:
        """Select codes by number (Eq. 2): (...) int64 -> (..., d)."""
        return F.embedding(indices, self.weight)

    @torch.no_grad()
    def match(self, features: torch.Tensor) -> Match:
        """Match vectors with codes (Eq. 1): P = softmax_m(-||z - e||_2), I = argmax P, confidence = max P.

        max P = 1 / sum_m exp(d_min - d_m), so no softmax is stored. The confidence is that of the nearest code,
        also where the index was sampled.

        Args:
            features: (..., d).

        Returns:
            Indices (...) int64 and confidences (...). Equally near codes: the lower number.
        """
        distance = torch.cdist(features.flatten(0, -2), self.weight)
        nearest, indices = distance.min(-1)
        confidence = (nearest.unsqueeze(-1) - distance).exp_().sum(-1).reciprocal_()
        if self.training and float(self.temperature) > 0:
            noise = -torch.empty_like(distance).exponential_().log_()
            indices = (float(self.temperature) * noise - distance).argmax(-1)
        shape = features.shape[:-1]
        return Match(indices.view(shape), confidence.view(shape))

    def quantize(self, maps: List[torch.Tensor]) -> Tuple[List[torch.Tensor], List[torch.Tensor]]:
        """Replace vectors by their codes, all maps at once.

        N x (b, h, w, d) -> codes N x (b, h, w, d) and indices N x (b, h, w).
        """
        sizes = [m.shape[:-1] for m in maps]
        features = torch.cat([m.flatten(0, -2) for m in maps])
        indices = self.match(features).indices
        codes = self(indices)
        if self.training:
            self.replace_dead_codes(features, indices)
        counts = [size.numel() for size in sizes]
        return (
            [c.view(*size, -1) for c, size in zip(codes.split(counts), sizes)],
            [i.view(size) for i, size in zip(indices.split(counts), sizes)],
        )

    @torch.no_grad()
    def replace_dead_codes(self, features: torch.Tensor, indices: torch.Tensor) -> None:
        """Update the usage of codes and replace those out of use by random rows of `features`.

        Every rank of a distributed run sees the same usage and takes the same rows of the global batch.

        Args:
            features: (n, d), the vectors that were matched; the same n on every rank.
            indices: (l,), the codes that were passed on; the same l on every rank.
        """
        size = self.usage.numel()
        counts = torch.bincount(indices, minlength=size).to(self.usage)
        share = _sum_over_ranks(counts) / (len(indices) * _world_size())
        self.usage.lerp_(share, 1 - self.usage_decay)
        dead = self.usage < self.replace_below / size
        if dead.any():
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
    """Draw `count` rows of the global batch (ranks one after another), the same ones on every rank."""
    n = len(features)
    chosen = torch.randint(n * _world_size(), (count,), device=features.device)
    if _world_size() == 1:
        return features[chosen]
    dist.broadcast(chosen, src=0)
    mine = chosen // n == dist.get_rank()
    return _sum_over_ranks(features[chosen % n] * mine[:, None])


class InvertibleProjection(nn.Module):
    """Project up by pinv(W), project down by W (Eq. 3 and 5): W (inner, outer) has full column rank, no bias.

    pinv(W) = (W^T W)^-1 W^T, so up followed by down is the identity. W starts with orthonormal columns.

    Attributes:
        weight: W, (inner, outer); for Multi-Scale Fusion (2c, c).
    """

    def __init__(self, outer: int, inner: int):
        super().__init__()
        if inner < outer:
            raise ValueError(f"W ({inner} x {outer}) cannot have full column rank: inner must be at least outer.")
        self.weight = nn.Parameter(nn.init.orthogonal_(torch.empty(inner, outer)))

    def pinv(self) -> torch.Tensor:
        """Return pinv(W), (outer, inner), by one float32 Cholesky factorisation; differentiable.

        Raises:
            ValueError: W has lost its full column rank or holds NaN.
        """
        w = self.weight if self.weight.dtype == torch.float64 else self.weight.float()
        factor, info = torch.linalg.cholesky_ex(w.T @ w)
        pivots = factor.diagonal()
        if info.item() or pivots.min() <= 4 * torch.finfo(w.dtype).eps ** 0.5 * pivots.max():  # rounding leaves no less
            raise ValueError(
                f"The projection matrix W ({w.shape[0]} x {w.shape[1]}) has lost its full column rank (or holds NaN), "
                "so it cannot be inverted. Train with a lower learning rate or stronger gradient clipping."
            )
        return torch.cholesky_solve(w.T, factor)

    def up(self, maps: List[torch.Tensor]) -> List[torch.Tensor]:
        """Z . pinv(W): N tensors (..., outer) -> (..., inner)."""
        inverse = self.pinv()
        return [m @ inverse for m in maps]

    def down(self, maps: List[torch.Tensor]) -> List[torch.Tensor]:
        """X . W: N tensors (..., inner) -> (..., outer)."""
        return [m @ self.weight for m in maps]


def straight_through(features: torch.Tensor, codes: torch.Tensor, residual: float) -> torch.Tensor:
    """Pass residual * features + (1 - residual) * codes on, with the gradient of `features` alone."""
    value = torch.lerp(codes, features, residual) if residual else codes
    return features + (value - features).detach()


def quantization_losses(features: torch.Tensor, codes: torch.Tensor) -> Tuple[torch.Tensor, torch.Tensor]:
    """Return (codebook loss MSE(sg[features], codes), commitment loss MSE(features, sg[codes]))."""
    return F.mse_loss(codes, features.detach()), F.mse_loss(features, codes.detach())


class Quantizer(nn.Module, ABC):
    """What quantisers share: doors, float32, the annealed residual, the answer.

    Args:
        dim: d, channels of the encoder's maps.
        residual: share of the encoder's own features that is passed on in training beside the codes. A number or a
            schedule; in evaluation it is 0.
    """

    def __init__(self, dim: int, residual: Schedule = 0.0):
        super().__init__()
        self.dim = dim
        self.residual = residual

    def forward(self, maps: Sequence[torch.Tensor]) -> QuantizerOutput:
        """Quantise the feature maps of all scales.

        Args:
            maps: N tensors (b, d, h_n, w_n), the finest first, each half the height and width of the one before.

        Returns:
            A QuantizerOutput with tuples of length N.

        Raises:
            ValueError: channels or grids do not fit, or (in training) a map holds NaN or infinity.
        """
        self._check(maps)
        with torch.autocast(maps[0].device.type, enabled=False):
            full = [m if m.dtype == torch.float64 else m.float() for m in maps]
            features, codes, indices = self.quantize([rearrange(m, "b d h w -> b h w d") for m in full])
            residual = float(self.residual) if self.training else 0.0
            passed = [straight_through(f, c, residual) for f, c in zip(features, codes)]
            losses = [quantization_losses(f, c) for f, c in zip(features, codes)]
            return QuantizerOutput(
                quantized=tuple(rearrange(x, "b h w d -> b d h w") for x in self.combine(passed)),
                indices=tuple(rearrange(i, "b h w g -> b g h w") for i in indices),
                codebook_loss=sum(loss for loss, _ in losses),
                commitment_loss=sum(loss for _, loss in losses),
            )

    def lookup(self, indices: Sequence[torch.Tensor]) -> Tuple[torch.Tensor, ...]:
        """Turn indices, N tensors (b, g, h_n, w_n), back into X_n, N tensors (b, d, h_n, w_n)."""
        return tuple(self.lookup_scale(i, scale) for scale, i in enumerate(indices))

    def lookup_scale(self, indices: torch.Tensor, scale: int) -> torch.Tensor:
        """Turn the indices (b, g, h, w) of one scale, counted from 0, back into X (b, d, h, w)."""
        with torch.autocast(indices.device.type, enabled=False):
            codes = self.select(rearrange(indices, "b g h w -> b h w g"), scale)
            return rearrange(self.combine([codes])[0], "b h w d -> b d h w")

    @abstractmethod
    def quantize(self, maps: List[torch.Tensor]) -> Tuple[List[torch.Tensor], List[torch.Tensor], List[torch.Tensor]]:
        """Match maps (b, h, w, d): features U (b, h, w, u), their codes (b, h, w, u), indices (b, h, w, g)."""

    @abstractmethod
    def select(self, indices: torch.Tensor, scale: int) -> torch.Tensor:
        """Look up codes of one scale by number: (b, h, w, g) -> (b, h, w, u)."""

    def combine(self, codes: List[torch.Tensor]) -> List[torch.Tensor]:
        """Bring (b, h, w, u) of every scale back to the encoder's channels (b, h, w, d)."""
        return codes

    def _check(self, maps: Sequence[torch.Tensor]) -> None:
        for scale, features in enumerate(maps, 1):
            if features.ndim != 4 or features.shape[1] != self.dim:
                raise ValueError(
                    f"Scale {scale} must be a map (b, {self.dim}, h, w), got shape {tuple(features.shape)}."
                )
            if self.training and not torch.isfinite(features).all():
                raise ValueError(
                    f"The encoder's map Z_{scale} {tuple(features.shape)} holds NaN or infinity: training has "
                    "diverged. Lower the learning rate, or check the input images."
                )


class VectorQuantizer(Quantizer):
    """Plain vector quantisation: one codebook, shared by all scales (section 3.1; with N > 1 section 3.2).

    Args:
        dim: c, channels of the maps and of the codes.
        codebook_size: m.
        residual: see Quantizer.
        **codebook: temperature, replace_below, usage_decay of Codebook.
    """

    def __init__(self, dim: int, codebook_size: int = 4096, residual: Schedule = 0.0, **codebook):
        super().__init__(dim, residual)
        self.codebook = Codebook(codebook_size, dim, **codebook)

    def quantize(self, maps):
        """See Quantizer: u = d, g = 1."""
        codes, indices = self.codebook.quantize(maps)
        return maps, codes, [i.unsqueeze(-1) for i in indices]

    def select(self, indices, scale):
        """See Quantizer."""
        return self.codebook(indices.squeeze(-1))


class GroupedQuantizer(Quantizer):
    """Grouped quantisation: project up, match every group of channels with a codebook of its own, project down (GDR).

    Args:
        dim: c, channels of the maps and of the codes.
        codebook_size: codes of each group; together they name codebook_size ** groups combinations.
        groups: g, number of groups of c channels.
        residual: see Quantizer.
        **codebook: temperature, replace_below, usage_decay of Codebook.

    Attributes:
        project: W, `weight` (g * c, c).
    """

    def __init__(self, dim: int, codebook_size: int = 64, groups: int = 2, residual: Schedule = 0.0, **codebook):
        super().__init__(dim, residual)
        self.project = InvertibleProjection(dim, groups * dim)
        self.codebooks = nn.ModuleList(Codebook(codebook_size, dim, **codebook) for _ in range(groups))

    def quantize(self, maps):
        """See Quantizer: u = g * d."""
        features = self.project.up(maps)
        groups = zip(*(u.chunk(len(self.codebooks), -1) for u in features))
        codes, indices = zip(*(book.quantize(list(group)) for book, group in zip(self.codebooks, groups)))
        return features, [torch.cat(c, -1) for c in zip(*codes)], [torch.stack(i, -1) for i in zip(*indices)]

    def select(self, indices, scale):
        """See Quantizer."""
        return torch.cat([book(i) for book, i in zip(self.codebooks, indices.unbind(-1))], -1)

    def combine(self, codes):
        """See Quantizer."""
        return self.project.down(codes)
