"""Block slots: slot attention whose slots are made of factors (SysBinder, Singh et al., 2023)."""

from typing import Optional, Tuple

import torch
from torch import nn

from ocl_msf._host import require_host

with require_host():
    from ocl.typing import FeatureExtractorOutput, PerceptualGroupingOutput


class FactorMemory(nn.Module):
    """Bottleneck of a factor: a block becomes a weighted mean of learned prototypes.

    Args:
        dim: channels of a block.
        num_prototypes: how many there are.
    """

    def __init__(self, dim: int, num_prototypes: int):
        super().__init__()
        self.prototypes = nn.Parameter(torch.randn(num_prototypes, dim))
        self.refine = nn.Sequential(nn.Linear(dim, 4 * dim), nn.ReLU(), nn.Linear(4 * dim, dim))
        self.norm = nn.LayerNorm(dim)
        self.to_query = nn.Linear(dim, dim, bias=False)

    def forward(self, block: torch.Tensor) -> torch.Tensor:
        """(..., d) -> (..., d), in the convex hull of the memory."""
        memory = self.memory()
        logits = self.to_query(self.norm(block)) @ memory.t() * memory.shape[1] ** -0.5
        return logits.softmax(-1) @ memory

    def memory(self) -> torch.Tensor:
        """The prototypes as they are read, (c, d)."""
        return self.refine(self.prototypes)


class Factor(nn.Module):
    """What is a factor's own: a recurrent unit, a residual MLP and a memory. Arguments as for FactorMemory."""

    def __init__(self, dim: int, num_prototypes: int):
        super().__init__()
        self.gru = nn.GRUCell(dim, dim)
        self.mlp = nn.Sequential(nn.LayerNorm(dim), nn.Linear(dim, 4 * dim), nn.ReLU(), nn.Linear(4 * dim, dim))
        self.memory = FactorMemory(dim, num_prototypes)

    def forward(self, update: torch.Tensor, block: torch.Tensor) -> torch.Tensor:
        """Update (b, k, d) and the block before it (b, k, d) -> the block (b, k, d)."""
        with torch.autocast(block.device.type, enabled=False):  # a recurrent state needs full precision
            block = self.gru(update.flatten(0, 1).float(), block.flatten(0, 1).float()).view_as(block)
        return self.memory(block + self.mlp(block))


class BlockSlotAttentionGrouping(nn.Module):
    """Group features into objects whose slots are `num_blocks` factors, with the interface of the host's grouping.

    Slots compete for features as in slot attention. What a slot reads is cut into blocks, and every block is updated
    by its factor alone. Competitor SysBinder@2 of the paper's tables has two factors.

    Args:
        feature_dim: channels of the features, behind the positional embedding.
        object_dim: channels of a slot, all blocks together.
        num_blocks: number of factors.
        num_prototypes: of the memory of each factor.
        iters: number of iterations.
        eps: added to the attention, such that no slot divides by zero.
        ff_mlp: applied to whole slots after every iteration; None keeps factors apart.
        positional_embedding: called with features and positions first.

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
    ):
        super().__init__()
        if object_dim % num_blocks:
            raise ValueError(f"Slots of {object_dim} channels cannot be cut into {num_blocks} equal blocks.")
        self.object_dim = object_dim
        self.iters = iters
        self.eps = eps
        self.positional_embedding = positional_embedding
        self.norm_features, self.norm_slots = nn.LayerNorm(feature_dim), nn.LayerNorm(object_dim)
        self.to_query = nn.Linear(object_dim, object_dim, bias=False)
        self.to_key = nn.Linear(feature_dim, object_dim, bias=False)
        self.to_value = nn.Linear(feature_dim, object_dim, bias=False)
        self.factors = nn.ModuleList(Factor(object_dim // num_blocks, num_prototypes) for _ in range(num_blocks))
        self.ff_mlp = ff_mlp

    def forward(
        self, feature: FeatureExtractorOutput, conditioning: torch.Tensor, slot_mask: Optional[torch.Tensor] = None
    ) -> PerceptualGroupingOutput:
        """Group features.

        Args:
            feature: features (b, n, feature_dim) with positions.
            conditioning: initial slots (b, k, object_dim).
            slot_mask: (b, k), bool, True where a slot is off and gets no feature.

        Returns:
            Objects (b, k, object_dim), `slot_mask`, and the attention (b, k, n) of the last iteration.
        """
        features = feature.features
        if self.positional_embedding is not None:
            features = self.positional_embedding(features, feature.positions)
        features = self.norm_features(features)
        keys, values = self.to_key(features), self.to_value(features)
        slots = conditioning
        for _ in range(self.iters):
            slots, attention = self._iterate(slots, keys, values, slot_mask)
        return PerceptualGroupingOutput(slots, is_empty=slot_mask, feature_attributions=attention)

    def _iterate(self, slots, keys, values, slot_mask) -> Tuple[torch.Tensor, torch.Tensor]:
        queries = self.to_query(self.norm_slots(slots)) * self.object_dim**-0.5
        logits = (queries @ keys.transpose(1, 2)).float()
        if slot_mask is not None:
            logits = logits.masked_fill(slot_mask[..., None], torch.finfo(logits.dtype).min)
        attention = logits.softmax(1)
        weights = attention + self.eps
        updates = (weights / weights.sum(-1, keepdim=True)).to(values.dtype) @ values
        count = len(self.factors)
        pairs = zip(self.factors, updates.chunk(count, -1), slots.chunk(count, -1))
        slots = torch.cat([factor(update, block) for factor, update, block in pairs], -1)
        return (slots if self.ff_mlp is None else self.ff_mlp(slots)), attention
