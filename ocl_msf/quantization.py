"""Vector quantisation: invertible projection, straight-through gradients, plain and grouped quantisers.

Feature maps are (b, d, h, w) at the public doors and channels-last (b, h, w, d) inside, where every
operation is a matrix product or a row look-up. All of it runs in float32 whatever the autocast dtype.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import Dict, List, NamedTuple, Sequence, Tuple

import torch
from einops import rearrange
from torch import nn
from torch.nn import functional as F

from ocl_msf.codebook import Codebook, Schedule


@dataclass
class QuantizerOutput:
    """What every quantiser answers; tuples run over scales, the finest first.

    Attributes:
        quantized: continuous codes X_n (b, d, h_n, w_n), gradient straight through to the encoder.
        indices: code numbers (b, g, h_n, w_n), int64, one channel for each of g codebooks that a super-pixel names.
        codebook_loss: scalar, sum over scales of MSE(sg[U], code): moves codes to the encoder's outputs.
        commitment_loss: scalar, sum over scales of MSE(U, sg[code]): moves the encoder to its codes. Unweighted.
        readouts: what else a quantiser can tell of what it did, by name: maps (b, h_n, w_n), int64, of every scale.
    """

    quantized: Tuple[torch.Tensor, ...]
    indices: Tuple[torch.Tensor, ...]
    codebook_loss: torch.Tensor
    commitment_loss: torch.Tensor
    readouts: Dict[str, Tuple[torch.Tensor, ...]] = field(default_factory=dict)


class Quantized(NamedTuple):
    """Maps between the doors, channels-last, of every scale.

    Attributes:
        features: U_n, (b, h, w, u), what was matched.
        codes: (b, h, w, u), what it was matched with.
        indices: (b, h, w, g), int64, the codes' numbers.
        readouts: see QuantizerOutput.
    """

    features: List[torch.Tensor]
    codes: List[torch.Tensor]
    indices: List[torch.Tensor]
    readouts: Dict[str, List[torch.Tensor]] = {}

    @classmethod
    def join(cls, groups: Sequence[Tuple], **readouts: List[torch.Tensor]) -> "Quantized":
        """Put groups of channels side by side: (features, codes (b, h, w, u_g), indices (b, h, w)) of every scale."""
        features, codes, indices = (list(zip(*part)) for part in zip(*groups))
        return cls(
            [torch.cat(f, -1) for f in features],
            [torch.cat(c, -1) for c in codes],
            [torch.stack(i, -1) for i in indices],
            readouts,
        )


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

        The check of the rank waits for numbers, so torch.compile leaves it out in evaluation mode, to keep one graph.

        Raises:
            ValueError: W has lost its full column rank or holds NaN.
        """
        w = self.weight if self.weight.dtype == torch.float64 else self.weight.float()
        factor, info = torch.linalg.cholesky_ex(w.T @ w)
        pivots = factor.diagonal()
        checked = self.training or not _is_compiling()
        if checked and (info.item() or pivots.min() <= 4 * torch.finfo(w.dtype).eps ** 0.5 * pivots.max()):
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


def _is_compiling() -> bool:
    compiler = getattr(torch, "compiler", None)  # from torch 2.1 on
    return hasattr(compiler, "is_compiling") and compiler.is_compiling()


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
            features, codes, indices, readouts = self.quantize([rearrange(m, "b d h w -> b h w d") for m in full])
            residual = float(self.residual) if self.training else 0.0
            passed = [straight_through(f, c, residual) for f, c in zip(features, codes)]
            losses = [quantization_losses(f, c) for f, c in zip(features, codes)]
            return QuantizerOutput(
                quantized=tuple(rearrange(x, "b h w d -> b d h w") for x in self.combine(passed)),
                indices=tuple(rearrange(i, "b h w g -> b g h w") for i in indices),
                codebook_loss=sum(loss for loss, _ in losses),
                commitment_loss=sum(loss for _, loss in losses),
                readouts={name: tuple(maps) for name, maps in readouts.items()},
            )

    def lookup(self, indices: Sequence[torch.Tensor]) -> Tuple[torch.Tensor, ...]:
        """Turn indices, N tensors (b, g, h_n, w_n), back into X_n, N tensors (b, d, h_n, w_n)."""
        return tuple(self.lookup_scale(i, scale) for scale, i in enumerate(indices))

    def lookup_scale(self, indices: torch.Tensor, scale: int) -> torch.Tensor:
        """Turn the indices (b, g, h, w) of one scale, counted from 0, back into X (b, d, h, w)."""
        with torch.autocast(indices.device.type, enabled=False):
            codes = [self.codebook_of(scale, group)(numbers) for group, numbers in enumerate(indices.unbind(1))]
            return rearrange(self.combine([torch.cat(codes, -1)])[0], "b h w d -> b d h w")

    @torch.no_grad()
    def statistics(self, output: QuantizerOutput) -> Dict[str, torch.Tensor]:
        """Summarise how an answer uses the codebooks, as scalars by name.

        Returns:
            For every codebook, over all scales that use it, `<name>.perplexity` (1 to m: so many codes, equally used,
            would be as hard to guess) and `<name>.dead` (codes that nothing was matched with).
        """
        names = {book: name for name, book in self.named_modules() if isinstance(book, Codebook)}
        used: Dict[Codebook, List[torch.Tensor]] = {book: [] for book in names}
        for scale, indices in enumerate(output.indices):
            for group, numbers in enumerate(indices.unbind(1)):
                used[self.codebook_of(scale, group)].append(numbers.flatten())
        answer = {}
        for book, numbers in used.items():
            share = torch.bincount(torch.cat(numbers), minlength=len(book.weight)) / sum(map(len, numbers))
            answer[f"{names[book]}.perplexity"] = torch.special.entr(share).sum().exp()
            answer[f"{names[book]}.dead"] = (share == 0).sum().to(share)
        return answer

    @abstractmethod
    def quantize(self, maps: List[torch.Tensor]) -> Quantized:
        """Match maps (b, h, w, d) with codes."""

    @abstractmethod
    def codebook_of(self, scale: int, group: int) -> Codebook:
        """Return the codebook that channel `group` of the indices of `scale` refers to, both counted from 0."""

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
        return Quantized.join([(maps, *self.codebook.quantize(maps))])

    def codebook_of(self, scale, group):
        """See Quantizer."""
        return self.codebook


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
        groups = zip(*(u.chunk(len(self.codebooks), -1) for u in self.project.up(maps)))
        return Quantized.join([(group, *book.quantize(group)) for book, group in zip(self.codebooks, groups)])

    def codebook_of(self, scale, group):
        """See Quantizer."""
        return self.codebooks[group]

    def combine(self, codes):
        """See Quantizer."""
        return self.project.down(codes)
