"""Vector quantisation: invertible projection, straight-through gradients, plain and grouped quantisers.

Feature maps are (b, d, h, w) at the public doors and channels-last (b, h, w, d) inside, where every
operation is a matrix product or a row look-up. With float32 weights all of it runs in float32 under any autocast.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import Dict, List, NamedTuple, Optional, Sequence, Tuple

import torch
from einops import rearrange
from torch import nn
from torch.autograd.function import once_differentiable
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


class Part(NamedTuple):
    """One group of channels, channels-last and of every scale, after matching.

    Attributes:
        features: U_n (b, h, w, c), what was matched.
        codes: (b, h, w, c), what it was matched with.
        indices: (b, h, w), int64, the codes' numbers.
        candidates: maps (b, h, w, c) of encoder vectors to replace dead codes by; by default the features.
    """

    features: Sequence[torch.Tensor]
    codes: Sequence[torch.Tensor]
    indices: Sequence[torch.Tensor]
    candidates: Optional[Sequence[torch.Tensor]] = None


class InvertibleProjection(nn.Module):
    """Project up by pinv(W), project down by W (Eq. 3 and 5): W (groups * dim, dim) has full column rank, no bias.

    pinv(W) = (W^T W)^-1 W^T, so up followed by down is the identity. W starts with orthonormal columns.

    Attributes:
        weight: W, (groups * dim, dim); for Multi-Scale Fusion (2c, c).
    """

    def __init__(self, dim: int, groups: int):
        super().__init__()
        self.groups = groups
        self.weight = nn.Parameter(nn.init.orthogonal_(torch.empty(groups * dim, dim)))

    def pinv(self) -> torch.Tensor:
        """Return pinv(W), (dim, groups * dim), by one float32 Cholesky factorisation; differentiable.

        The check of the rank waits for numbers, so torch.compile leaves it out in evaluation mode, to keep one graph.

        Raises:
            ValueError: W has all but lost its full column rank, or holds NaN.
        """
        w = self.weight if self.weight.dtype == torch.float64 else self.weight.float()
        factor, info = torch.linalg.cholesky_ex(w.T @ w)
        pivots = factor.diagonal()
        checked = self.training or not _is_compiling()
        if checked and (info.item() or not pivots.min() > 4 * torch.finfo(w.dtype).eps ** 0.5 * pivots.max()):
            raise ValueError(
                f"The projection matrix W ({w.shape[0]} x {w.shape[1]}) has all but lost its full column rank, or "
                "holds NaN: it cannot be inverted. Train with a lower learning rate or stronger gradient clipping."
            )
        return torch.cholesky_solve(w.T, factor)

    def up(self, maps: Sequence[torch.Tensor]) -> List[List[torch.Tensor]]:
        """Z . pinv(W), group by group: N maps (..., dim) -> for every group N maps (..., dim)."""
        return [[m @ part for m in maps] for part in self.pinv().chunk(self.groups, 1)]

    def rows(self, group: int) -> torch.Tensor:
        """W_g (dim, dim), the rows of W that bring a group down: X . W = sum over groups of X_g . W_g."""
        return self.weight.chunk(self.groups)[group]


def _is_compiling() -> bool:
    compiler = getattr(torch, "compiler", None)  # from torch 2.1 on
    return hasattr(compiler, "is_compiling") and compiler.is_compiling()


class _StraightThrough(torch.autograd.Function):
    """`value` forward; backward, besides, as if it were features . weight."""

    @staticmethod
    def forward(ctx, features, value, weight):
        ctx.save_for_backward(weight)
        return value.view_as(value)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        (weight,) = ctx.saved_tensors
        grad = grad.contiguous()  # one copy instead of one for every product
        return (grad if weight is None else F.linear(grad, weight)), grad, None


def straight_through(
    features: torch.Tensor, codes: torch.Tensor, indices: torch.Tensor, residual: float, weight: Optional[torch.Tensor]
) -> torch.Tensor:
    """Project matched vectors down with the gradient of the features: (a . features + (1 - a) . codes) . W_g.

    The gradient with respect to the features is that of features . W_g, the codes get none, and W_g its own. As many
    vectors share a code, codes are projected before they are selected.

    Args:
        features: (..., c), a = `residual` of which is passed on.
        codes: (m, c), the codebook.
        indices: (...), which code each vector was matched with.
        residual: a, 0 to 1.
        weight: W_g (c, c); None is the identity.
    """

    def down(x):
        return x.detach() if weight is None else x.detach() @ weight

    value = F.embedding(indices, down(codes))
    if residual:
        value = torch.lerp(value, down(features), residual)
    return _StraightThrough.apply(features, value, weight if weight is None else weight.detach())


class _QuantizationLosses(torch.autograd.Function):
    """MSE(sg[features], codes) and MSE(features, sg[codes]): one number, one difference, two gradients."""

    @staticmethod
    def forward(ctx, features, codes):
        difference = features - codes
        ctx.save_for_backward(difference)
        loss = torch.linalg.vector_norm(difference).square() / difference.numel()
        return loss, loss.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx, to_codes, to_features):
        (difference,) = ctx.saved_tensors
        scale = 2 / difference.numel()
        return difference * (scale * to_features), difference * (-scale * to_codes)


def quantization_losses(features: torch.Tensor, codes: torch.Tensor) -> Tuple[torch.Tensor, torch.Tensor]:
    """Return (codebook loss MSE(sg[features], codes), commitment loss MSE(features, sg[codes]))."""
    return _QuantizationLosses.apply(features, codes)


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
            ValueError: channels (or, for fusion, grids) do not fit, or in training: the batch is empty, or a map
                holds NaN or infinity.
        """
        full = [m if m.dtype == torch.float64 else m.float() for m in maps]
        self._check(full)
        with torch.autocast(maps[0].device.type, enabled=False):
            parts, readouts = self.quantize([rearrange(m, "b d h w -> b h w d").contiguous() for m in full])
            quantized = [self._pass_on(parts, scale) for scale in range(len(maps))]
            losses = [quantization_losses(f, c) for part in parts for f, c in zip(part.features, part.codes)]
            if self.training:
                self._replace_dead_codes(parts)
            return QuantizerOutput(
                quantized=tuple(rearrange(x, "b h w d -> b d h w") for x in quantized),
                indices=tuple(torch.stack(groups, 1) for groups in zip(*(part.indices for part in parts))),
                codebook_loss=sum(loss for loss, _ in losses) / len(parts),
                commitment_loss=sum(loss for _, loss in losses) / len(parts),
                readouts={name: tuple(maps) for name, maps in readouts.items()},
            )

    def _pass_on(self, parts: Sequence[Part], scale: int) -> torch.Tensor:
        residual = float(self.residual) if self.training else 0.0
        maps = []
        for group, part in enumerate(parts):
            codes = self.codebook_of(scale, group).weight.detach().clone()  # dead ones are replaced before backward
            features, indices = part.features[scale], part.indices[scale]
            maps.append(straight_through(features, codes, indices, residual, self.rows(group)))
        return sum(maps)

    @torch.no_grad()
    def _replace_dead_codes(self, parts: Sequence[Part]) -> None:
        used: Dict[Codebook, List[Tuple[torch.Tensor, torch.Tensor]]] = {}
        for group, part in enumerate(parts):
            for scale, (features, indices) in enumerate(zip(part.candidates or part.features, part.indices)):
                pair = features.flatten(1, 2), indices.flatten(1)
                used.setdefault(self.codebook_of(scale, group), []).append(pair)
        for book, pairs in used.items():
            features, indices = (torch.cat(x, 1).flatten(0, 1) for x in zip(*pairs))
            book.replace_dead_codes(features, indices)

    def lookup(self, indices: Sequence[torch.Tensor]) -> Tuple[torch.Tensor, ...]:
        """Turn indices, N tensors (b, g, h_n, w_n), back into X_n, N tensors (b, d, h_n, w_n)."""
        return tuple(self.lookup_scale(i, scale) for scale, i in enumerate(indices))

    def lookup_scale(self, indices: torch.Tensor, scale: int) -> torch.Tensor:
        """Turn the indices (b, g, h, w) of one scale, counted from 0, back into X (b, d, h, w)."""
        with torch.autocast(indices.device.type, enabled=False):
            parts = []
            for group, numbers in enumerate(indices.unbind(1)):
                codes, weight = self.codebook_of(scale, group).weight, self.rows(group)
                parts.append(F.embedding(numbers, codes if weight is None else codes @ weight))
            return rearrange(sum(parts), "b h w d -> b d h w")

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
    def quantize(self, maps: List[torch.Tensor]) -> Tuple[List[Part], Dict[str, Sequence[torch.Tensor]]]:
        """Match maps (b, h, w, d) with codes; return groups of channels, and readouts."""

    @abstractmethod
    def codebook_of(self, scale: int, group: int) -> Codebook:
        """Return the codebook that channel `group` of the indices of `scale` refers to, both counted from 0."""

    def rows(self, group: int) -> Optional[torch.Tensor]:
        """Return W_g (c, d), which brings the codes of a group to the encoder's channels; None is the identity."""
        return None

    def _check(self, maps: Sequence[torch.Tensor]) -> None:
        for scale, features in enumerate(maps, 1):
            if features.ndim != 4 or features.shape[1] != self.dim:
                raise ValueError(
                    f"Scale {scale} must be a map (b, {self.dim}, h, w), got shape {tuple(features.shape)}."
                )
            if self.training and not len(features):
                raise ValueError("An empty batch teaches nothing: the quantiser got no image.")
            if self.training and not torch.isfinite(features.detach().sum()):
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
        """See Quantizer."""
        return [Part(maps, *self.codebook.quantize(maps))], {}

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
        self.project = InvertibleProjection(dim, groups)
        self.codebooks = nn.ModuleList(Codebook(codebook_size, dim, **codebook) for _ in range(groups))

    def quantize(self, maps):
        """See Quantizer."""
        groups = self.project.up(maps)
        return [Part(group, *book.quantize(group)) for book, group in zip(self.codebooks, groups)], {}

    def codebook_of(self, scale, group):
        """See Quantizer."""
        return self.codebooks[group]

    def rows(self, group):
        """See Quantizer."""
        return self.project.rows(group)
