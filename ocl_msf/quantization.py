"""Vector quantisation: the base classes of all quantisers, the plain and the grouped quantiser.

Feature maps are (b, d, h, w) in the public interface and channels-last (b, h, w, d) inside, where every operation is a
matrix product or a row look-up. With float32 weights all arithmetic is float32 under any autocast.
"""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from functools import reduce
from typing import Any, Dict, List, NamedTuple, Optional, Sequence, Tuple, cast

import torch
from einops import rearrange
from torch import nn
from torch.nn import functional as F

from ocl_msf._renamed import refuse_old_names
from ocl_msf.codebook import Codebook, Schedule
from ocl_msf.projection import InvertibleProjection
from ocl_msf.straight_through import quantization_losses, straight_through

__getattr__ = refuse_old_names(__name__)


@dataclass
class QuantizerOutput:
    """Output of every quantiser; tuples run over scales, the finest first.

    Attributes:
        quantized: continuous codes X_n (b, d, h_n, w_n), gradient straight through to the encoder.
        indices: (b, g, h_n, w_n), int64, the g codes of every super-pixel.
        codebook_loss: scalar, sum over scales of MSE(sg[U], code): moves codes to the encoder's outputs.
        commitment_loss: scalar, sum over scales of MSE(U, sg[code]): moves the encoder to its codes. Unweighted.
        diagnostics: further index maps (b, h_n, w_n), int64, of every scale, by name.
        utilization_loss: scalar, 0 unless a quantiser is asked for it and trains; see CodebookQuantizer. Unweighted.
    """

    quantized: Tuple[torch.Tensor, ...]
    indices: Tuple[torch.Tensor, ...]
    codebook_loss: torch.Tensor
    commitment_loss: torch.Tensor
    diagnostics: Dict[str, Tuple[torch.Tensor, ...]] = field(default_factory=dict)
    utilization_loss: torch.Tensor = field(default_factory=lambda: torch.zeros(()))


class Quantizer(nn.Module, ABC):
    """Shared by all quantisers, with or without codebooks: input layout and checks, float32 arithmetic, statistics.

    Args:
        dim: d, channels of the encoder's maps.
    """

    def __init__(self, dim: int):
        super().__init__()
        self.dim = dim

    def forward(self, maps: Sequence[torch.Tensor]) -> QuantizerOutput:
        """Quantise the feature maps of all scales.

        Args:
            maps: N tensors (b, d, h_n, w_n), the finest first, each half the height and width of the one before.

        Returns:
            A QuantizerOutput with tuples of length N.

        Raises:
            ValueError: channels (or, for fusion, grids) do not fit; in training also: the batch is empty, or a map
                holds NaN or infinity.
        """
        maps = [m if m.dtype == torch.float64 else m.float() for m in maps]  # N x (b, d, h_n, w_n)
        self._check(maps)
        with torch.autocast(maps[0].device.type, enabled=False):
            return self.quantize([rearrange(m, "b d h w -> b h w d").contiguous() for m in maps])

    def lookup(self, indices: Sequence[torch.Tensor]) -> Tuple[torch.Tensor, ...]:
        """Turn indices, N tensors (b, g, h_n, w_n), back into X_n, N tensors (b, d, h_n, w_n)."""
        return tuple(self.lookup_scale(i, scale) for scale, i in enumerate(indices))

    def lookup_scale(self, indices: torch.Tensor, scale: int) -> torch.Tensor:
        """Turn the indices (b, g, h, w) of one scale, counted from 0, back into X (b, d, h, w)."""
        with torch.autocast(indices.device.type, enabled=False):
            return rearrange(self.select(indices, scale), "b h w d -> b d h w")

    def list_codebooks(self) -> List[Codebook]:
        """Return all codebooks, each once."""
        return [module for module in self.modules() if isinstance(module, Codebook)]

    @torch.no_grad()
    def statistics(self, output: QuantizerOutput) -> Dict[str, torch.Tensor]:
        """Summarise how an output uses the codebooks, as scalars by name.

        Returns:
            For every codebook, over all scales that use it, `<name>.perplexity` (1 to m: the number of equally used
            codes that would be as hard to predict) and `<name>.dead` (the number of codes that are not used).
        """
        used: Dict[Tuple[str, int], List[torch.Tensor]] = {}
        for scale, indices in enumerate(output.indices):
            for group, codes in enumerate(indices.unbind(1)):
                used.setdefault(self.describe_codebook(scale, group), []).append(codes.flatten())
        statistics = {}
        for (name, size), uses in used.items():
            codes = torch.cat(uses)
            share = torch.bincount(codes, minlength=size) / len(codes)
            statistics[f"{name}.perplexity"] = torch.special.entr(share).sum().exp()
            statistics[f"{name}.dead"] = (share == 0).sum().to(share)
        return statistics

    @abstractmethod
    def quantize(self, maps: List[torch.Tensor]) -> QuantizerOutput:
        """Quantise maps that are checked and channels-last, N tensors (b, h_n, w_n, d); see `forward`."""

    @abstractmethod
    def select(self, indices: torch.Tensor, scale: int) -> torch.Tensor:
        """Turn the indices (b, g, h, w) of one scale, counted from 0, into channels-last X (b, h, w, d)."""

    @abstractmethod
    def describe_codebook(self, scale: int, group: int) -> Tuple[str, int]:
        """Return name and number of codes of what channel `group` of the indices of `scale` refers to, from 0."""

    def _check(self, maps: Sequence[torch.Tensor]) -> None:
        for scale, features in enumerate(maps, 1):
            if features.ndim != 4 or features.shape[1] != self.dim:
                raise ValueError(
                    f"Scale {scale} must be a map (b, {self.dim}, h, w), got shape {tuple(features.shape)}."
                )
            if self.training and not len(features):
                raise ValueError("The batch is empty: the quantiser cannot train on it.")
            if self.training and not torch.isfinite(features.detach().sum()):
                raise ValueError(
                    f"The encoder's map Z_{scale} {tuple(features.shape)} holds NaN or infinity: training has "
                    "diverged. Lower the learning rate, or check the input images."
                )


Diagnostics = Dict[str, Sequence[torch.Tensor]]  # as in QuantizerOutput


class MatchedGroup(NamedTuple):
    """One group of channels of all scales, channels-last, matched with codes.

    Attributes:
        features: U_n (b, h_n, w_n, c), what is matched.
        codes: (b, h_n, w_n, c), the codes it is matched with.
        indices: (b, h_n, w_n), int64, the indices of these codes.
        candidates: maps (b, h, w, c) of encoder vectors that may replace unused codes; by default the features.
    """

    features: Sequence[torch.Tensor]
    codes: Sequence[torch.Tensor]
    indices: Sequence[torch.Tensor]
    candidates: Optional[Sequence[torch.Tensor]] = None


class CodebookQuantizer(Quantizer):
    """Shared by quantisers with codebooks: straight-through gradient, annealed residual, losses, code replacement.

    Args:
        dim: d, channels of the encoder's maps.
        residual: in training, the share of the encoder's own features in what is passed on; the rest are codes. A
            number or a schedule; 0 in evaluation.
        anneal_commitment: whether the commitment loss moves features to what is passed on, a * U + (1 - a) * code,
            instead of to codes: its weight becomes (1 - a)^2 with the residual a, so that it starts as a falls (GDR).
        utilization: whether to compute the utilization loss of GDR in training: the sum over codebooks of
            log m - H(mean P), the entropy that the mean of the matching probabilities (Eq. 1) over all super-pixels
            lacks of that of m equally used codes.
    """

    def __init__(self, dim: int, residual: Schedule = 0.0, anneal_commitment: bool = False, utilization: bool = False):
        super().__init__(dim)
        self.residual = residual
        self.anneal_commitment = anneal_commitment
        self.utilization = utilization

    @abstractmethod
    def match(self, maps: List[torch.Tensor]) -> Tuple[List[MatchedGroup], Diagnostics]:
        """Match channels-last maps, N tensors (b, h_n, w_n, d), with codes; return g groups of channels."""

    @abstractmethod
    def codebook_of(self, scale: int, group: int) -> Codebook:
        """Return the codebook of channel `group` of the indices of `scale`, both counted from 0."""

    def loss_pairs(self, groups: Sequence[MatchedGroup]) -> List[Tuple[torch.Tensor, torch.Tensor]]:
        """Return features and codes (b, h_n, w_n, c) that the two losses compare, of every scale as often."""
        return [pair for group in groups for pair in zip(group.features, group.codes)]

    def down_weight(self, group: int) -> Optional[torch.Tensor]:
        """Return W_g (c, d), which projects the codes of a group down to the encoder's channels; None: identity."""
        return None

    def quantize(self, maps: List[torch.Tensor]) -> QuantizerOutput:
        """See Quantizer."""
        groups, diagnostics = self.match(maps)  # g x N x (b, h_n, w_n, c)
        quantized = [self._straight_through_scale(groups, scale) for scale in range(len(maps))]  # N x (b, h_n, w_n, d)
        losses = [quantization_losses(features, codes) for features, codes in self.loss_pairs(groups)]
        commitment = (1 - self._passed_share()) ** 2 if self.anneal_commitment else 1.0
        count = len(losses) / len(maps)  # of losses for each scale
        output = QuantizerOutput(
            quantized=tuple(rearrange(x, "b h w d -> b d h w") for x in quantized),
            indices=tuple(torch.stack(indices, 1) for indices in zip(*(group.indices for group in groups))),
            codebook_loss=reduce(torch.add, [loss for loss, _ in losses]) / count,
            commitment_loss=reduce(torch.add, [loss for _, loss in losses]) * (commitment / count),
            diagnostics={name: tuple(index_maps) for name, index_maps in diagnostics.items()},
        )
        if self.training and self.utilization:
            output.utilization_loss = self._utilization_loss(groups)
        if self.training:
            self._replace_dead_codes(groups)
        return output

    def select(self, indices: torch.Tensor, scale: int) -> torch.Tensor:
        """See Quantizer; codes are projected down before they are selected (Eq. 2 and 5)."""
        selected = []
        for group, codes in enumerate(indices.unbind(1)):
            book, weight = self.codebook_of(scale, group).weight, self.down_weight(group)  # (m, c), (c, d)
            selected.append(F.embedding(codes, book if weight is None else book @ weight))  # (b, h, w, d)
        return reduce(torch.add, selected)

    def describe_codebook(self, scale: int, group: int) -> Tuple[str, int]:
        """See Quantizer; the name is that of the module."""
        book = self.codebook_of(scale, group)
        (name,) = [name for name, module in self.named_modules() if module is book]
        return name, len(book.weight)

    def _passed_share(self) -> float:
        return float(self.residual) if self.training else 0.0

    def _straight_through_scale(self, groups: Sequence[MatchedGroup], scale: int) -> torch.Tensor:
        """Project all groups of one scale down and add them up (Eq. 5): (b, h, w, d)."""
        residual = self._passed_share()
        projected = []
        for number, group in enumerate(groups):
            codes = self.codebook_of(scale, number).weight.detach().clone()  # dead ones are replaced before backward
            features, indices = group.features[scale], group.indices[scale]  # (b, h, w, c), (b, h, w)
            projected.append(straight_through(features, codes, indices, residual, self.down_weight(number)))
        return reduce(torch.add, projected)

    def _utilization_loss(self, groups: Sequence[MatchedGroup]) -> torch.Tensor:
        """See the argument `utilization`."""
        losses = []
        for book, pairs in self._uses(groups).items():
            features = torch.cat([f for f, _ in pairs], 1).flatten(0, 1)  # (l, c)
            share = book.probabilities(features).mean(0)  # (m,)
            losses.append(math.log(len(share)) - torch.special.entr(share).sum())
        return reduce(torch.add, losses)

    def _uses(self, groups: Sequence[MatchedGroup]) -> Dict[Codebook, List[Tuple[torch.Tensor, torch.Tensor]]]:
        """For every codebook the vectors (b, n, c) it is meant for and the indices (b, n) chosen, of every use."""
        uses: Dict[Codebook, List[Tuple[torch.Tensor, torch.Tensor]]] = {}
        for number, group in enumerate(groups):
            for scale, (features, indices) in enumerate(zip(group.candidates or group.features, group.indices)):
                pair = features.flatten(1, 2), indices.flatten(1)  # (b, n, c), (b, n)
                uses.setdefault(self.codebook_of(scale, number), []).append(pair)
        return uses

    @torch.no_grad()
    def _replace_dead_codes(self, groups: Sequence[MatchedGroup]) -> None:
        for book, pairs in self._uses(groups).items():
            all_features, all_indices = zip(*pairs)
            book.replace_dead_codes(torch.cat(all_features, 1).flatten(0, 1), torch.cat(all_indices, 1).flatten())


class VectorQuantizer(CodebookQuantizer):
    """Plain vector quantisation: one codebook, shared by all scales (section 3.1; with N > 1 section 3.2).

    Args:
        dim: c, channels of the maps and of the codes.
        codebook_size: m.
        residual, anneal_commitment, utilization: see CodebookQuantizer.
        **codebook: temperature, replace_below, usage_decay of Codebook.
    """

    def __init__(
        self,
        dim: int,
        codebook_size: int = 4096,
        residual: Schedule = 0.0,
        anneal_commitment: bool = False,
        utilization: bool = False,
        **codebook: Any,
    ):
        super().__init__(dim, residual, anneal_commitment, utilization)
        self.codebook = Codebook(codebook_size, dim, **codebook)

    def match(self, maps: List[torch.Tensor]) -> Tuple[List[MatchedGroup], Diagnostics]:
        """See CodebookQuantizer."""
        return [MatchedGroup(maps, *self.codebook.quantize(maps))], {}

    def codebook_of(self, scale: int, group: int) -> Codebook:
        """See CodebookQuantizer."""
        return self.codebook


class GroupedQuantizer(CodebookQuantizer):
    """Grouped quantisation (GDR): project up, match every group of channels with its own codebook, project down.

    Args:
        dim: c, channels of the maps and of the codes.
        codebook_size: m, codes of each group; together they name m^g combinations.
        groups: g, number of groups of c channels.
        residual, anneal_commitment, utilization: see CodebookQuantizer.
        **codebook: temperature, replace_below, usage_decay of Codebook.

    Attributes:
        project: W, `weight` (g * c, c).
    """

    def __init__(
        self,
        dim: int,
        codebook_size: int = 64,
        groups: int = 2,
        residual: Schedule = 0.0,
        anneal_commitment: bool = False,
        utilization: bool = False,
        **codebook: Any,
    ):
        super().__init__(dim, residual, anneal_commitment, utilization)
        self.project = InvertibleProjection(dim, groups)
        self.codebooks = nn.ModuleList(Codebook(codebook_size, dim, **codebook) for _ in range(groups))

    def match(self, maps: List[torch.Tensor]) -> Tuple[List[MatchedGroup], Diagnostics]:
        """See CodebookQuantizer."""
        groups = self.project.up(maps)  # g x N x (b, h_n, w_n, c)
        books = [self.codebook_of(0, number) for number in range(len(groups))]
        return [MatchedGroup(group, *book.quantize(group)) for book, group in zip(books, groups)], {}

    def codebook_of(self, scale: int, group: int) -> Codebook:
        """See CodebookQuantizer."""
        return cast(Codebook, self.codebooks[group])

    def down_weight(self, group: int) -> Optional[torch.Tensor]:
        """See CodebookQuantizer."""
        return self.project.down_weight(group)
