"""Perceptual grouping that the host lacks: a temporal predictor, slot attention for videos, and block slots."""

from typing import Any, Optional, Tuple

import torch
from torch import nn

from ocl_msf._host import require_host
from ocl_msf.frames import split_frames
from ocl_msf.iterations import iterate, iterations_of

with require_host():
    from ocl.perceptual_grouping import SlotAttentionGrouping
    from ocl.typing import FeatureExtractorOutput, PerceptualGroupingOutput


class TemporalPredictor(nn.Module):
    """Predict the slots of the next frame from those of this one: one pre-norm transformer encoder block (STEVE).

    Args:
        object_dim: channels of a slot.
        num_heads: of its self-attention.
        hidden_dim: of its MLP, 4 * object_dim by default.
        dropout: on attention weights and residual branches.
        frames: slots have frames (see `ocl_msf.frames`), which stay as they are: objects hardly move between frames.
        normalize: normalise the slots before the block and behind it, as STEVE does (Singh et al., 2022); otherwise
            they grow from frame to frame. The block then starts near the identity, with outputs of its two branches a
            tenth of the usual: they are nearly the same for all slots, and in full would make slots of normalised size
            alike within a few frames.

    Raises:
        ValueError: object_dim cannot be split into so many heads.
    """

    def __init__(
        self,
        object_dim: int,
        num_heads: int = 4,
        hidden_dim: int = 0,
        dropout: float = 0.0,
        normalize: bool = False,
        frames: bool = False,
    ):
        super().__init__()
        if object_dim % num_heads:
            raise ValueError(f"{object_dim} channels cannot be split into {num_heads} heads.")
        self.frames = frames
        self.block = nn.TransformerEncoderLayer(
            object_dim, num_heads, hidden_dim or 4 * object_dim, dropout, norm_first=True, batch_first=True
        )
        self.norm_input = nn.LayerNorm(object_dim, elementwise_affine=False) if normalize else nn.Identity()
        self.norm_output = nn.LayerNorm(object_dim) if normalize else nn.Identity()
        if normalize:
            with torch.no_grad():
                for output in (self.block.self_attn.out_proj, self.block.linear2):
                    output.weight.mul_(0.1)
                    output.bias.mul_(0.1)

    def forward(self, slots: torch.Tensor, slot_mask: Optional[torch.Tensor] = None) -> torch.Tensor:
        """Predict the slots (b, k, d) of the next frame.

        Args:
            slots: (b, k, d), or with frames (b, k, d + 3).
            slot_mask: (b, k), bool, True where a slot is off and no other slot attends to it; one at least is on.
        """
        if self.frames:
            vectors, frames = split_frames(slots)
            return torch.cat([self._predict(vectors, slot_mask), frames], -1)  # b k d+3
        return self._predict(slots, slot_mask)

    def _predict(self, slots: torch.Tensor, slot_mask: Optional[torch.Tensor]) -> torch.Tensor:
        return self.norm_output(self.block(self.norm_input(slots), src_key_padding_mask=slot_mask))  # b k d


class TruncatedSlotAttentionGrouping(SlotAttentionGrouping):
    """The host's slot attention, with a choice of the iterations through which gradients flow.

    Args:
        feature_dim: channels of the features, after the positional embedding.
        object_dim: channels of a slot.
        iters: number of iterations.
        ff_mlp: applied to slots at the end of an iteration.
        positional_embedding: applied to features.
        gradients: "all", "last" or "straight_through", see `iterate`.
        later_iters: iterations for frames of a video behind the first, whose queries have seen the video already; by
            default `iters`. SmoothSA (Zhao et al., 2026) takes one.
    """

    def __init__(
        self,
        feature_dim: int,
        object_dim: int,
        iters: int = 3,
        ff_mlp: Optional[nn.Module] = None,
        positional_embedding: Optional[nn.Module] = None,
        gradients: str = "all",
        later_iters: Optional[int] = None,
    ):
        steps = iters if gradients == "all" and later_iters is None else 1  # of one call of the host's
        super().__init__(feature_dim, object_dim, iters=steps, ff_mlp=ff_mlp, positional_embedding=positional_embedding)
        self.gradients, self.iters, self.later_iters = gradients, iters, later_iters

    def forward(
        self,
        feature: FeatureExtractorOutput,
        conditioning: torch.Tensor,
        slot_mask: Optional[torch.Tensor] = None,
        previous_slots: Optional[torch.Tensor] = None,
    ) -> PerceptualGroupingOutput:
        """Group features; arguments and output as of `SlotCompetition.forward`.

        Raises:
            ValueError: gradients is none of the three.
        """
        if self.gradients == "all" and self.later_iters is None:
            return super().forward(feature, conditioning, slot_mask)
        features = feature.features
        if self.positional_embedding is not None:
            features = self.positional_embedding(features, feature.positions)  # b n d

        def step(slots: torch.Tensor) -> Tuple[torch.Tensor, torch.Tensor]:
            return self.slot_attention(features, slots, slot_mask)  # b k d, b k n

        iters = iterations_of(self, previous_slots)
        slots, attention = iterate(step, conditioning, iters, self.gradients)
        return PerceptualGroupingOutput(slots, is_empty=slot_mask, feature_attributions=attention)


class VideoSlotAttentionGrouping(TruncatedSlotAttentionGrouping):
    """The host's slot attention, with a GRU initialised to keep the slots over a video.

    At the start of training attention is nearly uniform, so that all slots get nearly the same update, and a GRU with
    the usual initialisation halves their differences in each iteration: after a few frames of 3 iterations all slots
    are equal, whatever they started from, and the model learns nothing. A bias on the update gate prevents it, as one
    on the forget gate does for LSTMs (Jozefowicz et al., 2015). It is learnt like any other weight.

    Args:
        feature_dim: channels of the features, after the positional embedding.
        object_dim: channels of a slot.
        iters: iterations for each frame.
        ff_mlp: applied to slots at the end of an iteration.
        positional_embedding: applied to features.
        keep_bias: initial value added to the update gate's bias: 2 keeps 88 % of a slot in each iteration.
        gradients: "all", "last" or "straight_through", see `iterate`.
        later_iters: see `TruncatedSlotAttentionGrouping`.
    """

    def __init__(
        self,
        feature_dim: int,
        object_dim: int,
        iters: int = 3,
        ff_mlp: Optional[nn.Module] = None,
        positional_embedding: Optional[nn.Module] = None,
        keep_bias: float = 2.0,
        gradients: str = "all",
        later_iters: Optional[int] = None,
    ):
        super().__init__(feature_dim, object_dim, iters, ff_mlp, positional_embedding, gradients, later_iters)
        with torch.no_grad():  # gates are in the order reset, update, new
            self.slot_attention.gru.bias_ih[object_dim : 2 * object_dim] += keep_bias


class FactorMemory(nn.Module):
    """Bottleneck of a factor: a block becomes a weighted mean of learned prototypes.

    Args:
        dim: channels of a block.
        num_prototypes: number of prototypes.
        normalize: as in SysBinder (Singh et al., 2023), the prototypes go through an MLP of four layers, memory and
            query are normalised without weights, and the query is the block itself. Otherwise the MLP has two layers,
            the memory is not normalised, and the query is a learned map of the normalised block.
    """

    def __init__(self, dim: int, num_prototypes: int, normalize: bool = False):
        super().__init__()
        self.prototypes = nn.Parameter(torch.randn(num_prototypes, dim))
        widths = [dim, *[4 * dim] * (3 if normalize else 1), dim]
        layers = [part for pair in zip(widths, widths[1:]) for part in (nn.Linear(*pair), nn.ReLU())]
        self.refine = nn.Sequential(*layers[:-1])
        self.norm = nn.LayerNorm(dim, elementwise_affine=not normalize)
        self.norm_memory = nn.LayerNorm(dim, elementwise_affine=False) if normalize else nn.Identity()
        self.to_query = nn.Identity() if normalize else nn.Linear(dim, dim, bias=False)
        if normalize:
            self._start_as_sysbinder()

    def forward(self, block: torch.Tensor) -> torch.Tensor:
        """(..., d) -> (..., d), in the convex hull of the memory."""
        memory = self.memory()  # p d
        logits = self.to_query(self.norm(block)) @ memory.t() * memory.shape[1] ** -0.5  # ... p
        return logits.softmax(-1) @ memory  # ... d

    def memory(self) -> torch.Tensor:
        """What is read, (num_prototypes, d): the prototypes behind their MLP."""
        return self.norm_memory(self.refine(self.prototypes))

    def _start_as_sysbinder(self) -> None:
        """With zero biases prototypes stay apart behind four layers."""
        nn.init.trunc_normal_(self.prototypes)
        layers: Any = self.refine[::2]
        for layer in layers:
            nn.init.xavier_uniform_(layer.weight)
            nn.init.zeros_(layer.bias)


class Factor(nn.Module):
    """Parameters of one factor: a GRU, a residual MLP and a memory. Arguments as for FactorMemory."""

    def __init__(self, dim: int, num_prototypes: int, normalize: bool = False):
        super().__init__()
        self.gru = nn.GRUCell(dim, dim)
        self.mlp = nn.Sequential(nn.LayerNorm(dim), nn.Linear(dim, 4 * dim), nn.ReLU(), nn.Linear(4 * dim, dim))
        self.memory = FactorMemory(dim, num_prototypes, normalize)

    def forward(self, update: torch.Tensor, block: torch.Tensor) -> torch.Tensor:
        """Update (b, k, d) and the block before it (b, k, d) -> the block (b, k, d)."""
        with torch.autocast(block.device.type, enabled=False):  # a recurrent state needs full precision
            block = self.gru(update.flatten(0, 1).float(), block.flatten(0, 1).float()).view_as(block)  # b k d
        return self.memory(block + self.mlp(block))  # b k d


class SlotCompetition(nn.Module):
    """Slots that compete for features, with the interface of the host's grouping; subclasses say how they change.

    Args:
        feature_dim: channels of the features, behind the positional embedding.
        object_dim: channels of a slot.
        iters: number of iterations.
        eps: keeps the weights of a slot that gets nothing from being divided by zero.
        positional_embedding: applied to features and positions first.
        gradients: "all", "last" or "straight_through", see `iterate`.
        later_iters: see `TruncatedSlotAttentionGrouping`.
    """

    def __init__(
        self,
        feature_dim: int,
        object_dim: int,
        iters: int,
        eps: float,
        positional_embedding: Optional[nn.Module],
        gradients: str,
        later_iters: Optional[int],
    ):
        super().__init__()
        self.object_dim, self.eps = object_dim, eps
        self.iters, self.gradients, self.later_iters = iters, gradients, later_iters
        self.positional_embedding = positional_embedding
        self.norm_features, self.norm_slots = nn.LayerNorm(feature_dim), nn.LayerNorm(object_dim)
        self.to_query = nn.Linear(object_dim, object_dim, bias=False)
        self.to_key = nn.Linear(feature_dim, object_dim, bias=False)
        self.to_value = nn.Linear(feature_dim, object_dim, bias=False)

    def weigh(self, attention: torch.Tensor) -> torch.Tensor:
        """Attention (b, k, n), whose sum over slots is 1 -> weights of the features of each slot (b, k, n)."""
        weights = attention + self.eps  # b k n
        return weights / weights.sum(-1, keepdim=True)

    def update(self, slots: torch.Tensor, updates: torch.Tensor) -> torch.Tensor:
        """Slots (b, k, d) and the mean values of their features (b, k, d) -> the slots of the next iteration."""
        raise NotImplementedError

    def forward(
        self,
        feature: FeatureExtractorOutput,
        conditioning: torch.Tensor,
        slot_mask: Optional[torch.Tensor] = None,
        previous_slots: Optional[torch.Tensor] = None,
    ) -> PerceptualGroupingOutput:
        """Group features.

        Args:
            feature: features (b, n, feature_dim) with positions.
            conditioning: initial slots (b, k, object_dim).
            slot_mask: (b, k), bool, True where a slot is off and gets no feature.
            previous_slots: those of the frame before, if there is one; only whether there is counts.

        Returns:
            Objects (b, k, object_dim), `slot_mask`, and the attention (b, k, n) of the last iteration.
        """
        features = feature.features  # b n d
        if self.positional_embedding is not None:
            features = self.positional_embedding(features, feature.positions)  # b n d
        features = self.norm_features(features)  # b n d
        keys, values = self.to_key(features), self.to_value(features)  # b n d

        def step(slots: torch.Tensor) -> Tuple[torch.Tensor, torch.Tensor]:
            return self._iterate(slots, keys, values, slot_mask)  # b k d, b k n

        iters = iterations_of(self, previous_slots)
        slots, attention = iterate(step, conditioning, iters, self.gradients)
        return PerceptualGroupingOutput(slots, is_empty=slot_mask, feature_attributions=attention)

    def _iterate(
        self, slots: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, slot_mask: Optional[torch.Tensor]
    ) -> Tuple[torch.Tensor, torch.Tensor]:
        queries = self.to_query(self.norm_slots(slots)) * self.object_dim**-0.5  # b k d
        logits = (queries @ keys.transpose(1, 2)).float()  # b k n
        if slot_mask is not None:
            logits = logits.masked_fill(slot_mask[..., None], torch.finfo(logits.dtype).min)
        attention = logits.softmax(1)  # b k n
        updates = self.weigh(attention).to(values.dtype) @ values  # b k d
        return self.update(slots, updates), attention


class BlockSlotAttentionGrouping(SlotCompetition):
    """Block slots: slot attention whose slots are made of factors (SysBinder, Singh et al., 2023).

    It has the interface of the host's grouping. Slots compete for features as in slot attention. The update of a slot
    is split into blocks, and each block is updated by its factor alone. The competitor SysBinder@2 of the paper's
    tables has two factors.

    Args:
        feature_dim: channels of the features, behind the positional embedding.
        object_dim: channels of a slot, all blocks together.
        num_blocks: number of factors.
        num_prototypes: number of prototypes in the memory of each factor.
        iters: number of iterations.
        eps: added to the attention, so that the weights of no slot sum to zero.
        ff_mlp: applied to whole slots after every iteration; None keeps factors independent.
        positional_embedding: applied to features and positions first.
        normalize_memory: the memory of SysBinder, see FactorMemory.
        gradients: "all", "last" or "straight_through", see `iterate`.
        later_iters: see `TruncatedSlotAttentionGrouping`.

    Raises:
        ValueError: object_dim is not divisible by num_blocks.
    """

    def __init__(
        self,
        feature_dim: int,
        object_dim: int,
        num_blocks: int = 2,
        num_prototypes: int = 64,
        iters: int = 3,
        eps: float = 1e-8,
        ff_mlp: Optional[nn.Module] = None,
        positional_embedding: Optional[nn.Module] = None,
        normalize_memory: bool = False,
        gradients: str = "all",
        later_iters: Optional[int] = None,
    ):
        super().__init__(feature_dim, object_dim, iters, eps, positional_embedding, gradients, later_iters)
        if object_dim % num_blocks:
            raise ValueError(f"Slots of {object_dim} channels cannot be split into {num_blocks} equal blocks.")
        dim = object_dim // num_blocks
        self.factors = nn.ModuleList(Factor(dim, num_prototypes, normalize_memory) for _ in range(num_blocks))
        self.ff_mlp = ff_mlp

    def update(self, slots: torch.Tensor, updates: torch.Tensor) -> torch.Tensor:
        """See SlotCompetition: each block by its factor."""
        count = len(self.factors)
        pairs = zip(self.factors, updates.chunk(count, -1), slots.chunk(count, -1))  # blocks b k d/count
        slots = torch.cat([factor(update, block) for factor, update, block in pairs], -1)  # b k d
        return slots if self.ff_mlp is None else self.ff_mlp(slots)
