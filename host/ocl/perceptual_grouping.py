"""Modules that group features into objects."""

from collections.abc import Mapping
from typing import Any, Optional

import torch
from torch import Tensor, nn

from ocl._stick_breaking import StickBreakingGrouping  # noqa: F401  configs look for it here
from ocl.errors import require
from ocl.typing import ConditioningOutput, FeatureExtractorOutput, PerceptualGroupingOutput


class SlotAttention(nn.Module):
    """Slot attention (Locatello et al., 2020) with several heads that compete jointly.

    Keys and values of the n features are never formed: projecting the queries and the weighted means instead gives
    the same result for a fraction of the memory and of the multiplications.

    Args:
        dim: channels of the slots.
        feature_dim: channels of the features.
        kvq_dim: channels of all heads together, by default `dim`.
        n_heads: number of heads.
        iters: number of iterations.
        eps: added to the attention, such that no slot divides by zero.
        ff_mlp: applied to the slots at the end of every iteration.
        use_projection_bias: give queries, keys and values a bias.
        use_implicit_differentiation: iterate once more from detached slots, the only step with gradients.

    Raises:
        ValueError: if `kvq_dim` is not divisible by the number of heads.
    """

    def __init__(
        self,
        dim: int,
        feature_dim: int,
        kvq_dim: Optional[int] = None,
        n_heads: int = 1,
        iters: int = 3,
        eps: float = 1e-8,
        ff_mlp: Optional[nn.Module] = None,
        use_projection_bias: bool = False,
        use_implicit_differentiation: bool = False,
    ):
        super().__init__()
        kvq_dim = dim if kvq_dim is None else kvq_dim
        if kvq_dim % n_heads:
            raise ValueError(f"{kvq_dim} key channels cannot be divided among {n_heads} heads.")
        self.n_heads, self.iters, self.eps = n_heads, iters, eps
        self.scale = (kvq_dim // n_heads) ** -0.5
        self.use_implicit_differentiation = use_implicit_differentiation

        self.to_q = nn.Linear(dim, kvq_dim, bias=use_projection_bias)
        self.to_k = nn.Linear(feature_dim, kvq_dim, bias=use_projection_bias)
        self.to_v = nn.Linear(feature_dim, kvq_dim, bias=use_projection_bias)
        self.gru = nn.GRUCell(kvq_dim, dim)
        self.norm_input = nn.LayerNorm(feature_dim)
        self.norm_slots = nn.LayerNorm(dim)
        self.ff_mlp = ff_mlp

    def forward(
        self, inputs: Tensor, conditioning: ConditioningOutput, masks: Optional[Tensor] = None
    ) -> tuple[Tensor, Tensor]:
        """Let slots compete for features.

        Args:
            inputs: features (b, n, feature_dim).
            conditioning: initial slots (b, k, dim).
            masks: (b, k) bool, true where a slot must not take part.

        Returns:
            Slots (b, k, dim) and the attention (b, k, n) of the last iteration, averaged over heads.
        """
        features = _to_autocast_dtype(self.norm_input(inputs))
        if masks is not None:
            masks = masks.repeat_interleave(self.n_heads, dim=1).unsqueeze(-1)
        slots = conditioning
        for _ in range(self.iters):
            slots, attention = self._iterate(slots, features, masks)
        if self.use_implicit_differentiation:
            slots, attention = self._iterate(slots.detach(), features, masks)
        return slots, attention.unflatten(1, (-1, self.n_heads)).mean(dim=2)

    def _iterate(self, slots: Tensor, features: Tensor, masks: Optional[Tensor]) -> tuple[Tensor, Tensor]:
        attention = self._attend(slots, features, masks)  # b k*heads n
        updates = self._read(attention, features)  # b k d
        with torch.autocast(slots.device.type, enabled=False):  # a recurrent state needs full precision
            dtype = self.gru.weight_ih.dtype
            slots = self.gru(updates.flatten(0, 1).to(dtype), slots.flatten(0, 1).to(dtype)).view_as(slots)
        if self.ff_mlp is not None:
            slots = self.ff_mlp(slots)
        return slots, attention

    def _attend(self, slots: Tensor, features: Tensor, masks: Optional[Tensor]) -> Tensor:
        heads = (self.n_heads, -1)
        queries = (self.to_q(self.norm_slots(slots)) * self.scale).unflatten(-1, heads)
        weight = self.to_k.weight.unflatten(0, heads)
        folded = torch.einsum("bkhd,hdf->bkhf", queries, weight).flatten(1, 2)
        logits = folded @ features.transpose(1, 2)
        if self.to_k.bias is not None:
            offset = torch.einsum("bkhd,hd->bkh", queries, self.to_k.bias.unflatten(0, heads))
            logits = logits + offset.flatten(1).unsqueeze(-1)
        if masks is not None:
            # The lowest number instead of -inf: an image without any slot stays free of NaN.
            logits = logits.masked_fill(masks, torch.finfo(logits.dtype).min)
        return logits.softmax(dim=1, dtype=torch.promote_types(logits.dtype, torch.float32))

    def _read(self, attention: Tensor, features: Tensor) -> Tensor:
        weights = attention + self.eps
        weights = weights / weights.sum(dim=-1, keepdim=True)
        means = (weights.to(features.dtype) @ features).unflatten(1, (-1, self.n_heads))
        weight = self.to_v.weight.unflatten(0, (self.n_heads, -1))
        updates = torch.einsum("bkhf,hdf->bkhd", means, weight).flatten(2)
        return updates if self.to_v.bias is None else updates + self.to_v.bias


def _to_autocast_dtype(tensor: Tensor) -> Tensor:
    """Convert once what autocast would otherwise convert again for every matrix product."""
    device = tensor.device.type
    return tensor.to(torch.get_autocast_dtype(device)) if torch.is_autocast_enabled(device) else tensor


class SlotAttentionGrouping(nn.Module):
    """Group features into objects by slot attention.

    Args:
        feature_dim: channels of the features, behind the positional embedding.
        object_dim: channels of the objects.
        kvq_dim: see `SlotAttention`, like the following arguments.
        n_heads: number of heads.
        iters: number of iterations.
        eps: added to the attention.
        ff_mlp: applied to the slots at the end of every iteration.
        positional_embedding: called with features and positions first.
        use_projection_bias: give queries, keys and values a bias.
        use_implicit_differentiation: let gradients flow through one further iteration only.
        use_empty_slot_for_masked_slots: replace masked slots by the learned vector `empty_slot`.
    """

    def __init__(
        self,
        feature_dim: int,
        object_dim: int,
        kvq_dim: Optional[int] = None,
        n_heads: int = 1,
        iters: int = 3,
        eps: float = 1e-8,
        ff_mlp: Optional[nn.Module] = None,
        positional_embedding: Optional[nn.Module] = None,
        use_projection_bias: bool = False,
        use_implicit_differentiation: bool = False,
        use_empty_slot_for_masked_slots: bool = False,
    ):
        super().__init__()
        self.object_dim = object_dim
        self.slot_attention = SlotAttention(
            object_dim,
            feature_dim,
            kvq_dim,
            n_heads,
            iters,
            eps,
            ff_mlp,
            use_projection_bias,
            use_implicit_differentiation,
        )
        self.positional_embedding = positional_embedding
        self.empty_slot = nn.Parameter(torch.randn(object_dim)) if use_empty_slot_for_masked_slots else None

    def forward(
        self, feature: FeatureExtractorOutput, conditioning: ConditioningOutput, slot_mask: Optional[Tensor] = None
    ) -> PerceptualGroupingOutput:
        """Group features.

        Args:
            feature: features (b, n, feature_dim) with positions.
            conditioning: initial slots (b, k, object_dim).
            slot_mask: (b, k) bool, true where a slot must stay empty.

        Returns:
            Objects (b, k, object_dim), `slot_mask` and the attention (b, k, n).
        """
        features = feature.features
        if self.positional_embedding is not None:
            features = self.positional_embedding(features, feature.positions)
        slots, attention = self.slot_attention(features, conditioning, slot_mask)
        if slot_mask is not None and self.empty_slot is not None:
            slots = torch.where(slot_mask.unsqueeze(-1), self.empty_slot, slots)
        return PerceptualGroupingOutput(slots, is_empty=slot_mask, feature_attributions=attention)


class KMeansGrouping(nn.Module):
    """Group the features of each image by k-means of scikit-learn; nothing is learned.

    Args:
        n_slots: number of objects k.
        use_l2_normalization: cluster features of unit length.
        clustering_kwargs: further arguments of `sklearn.cluster.KMeans`.

    Raises:
        ImportError: if scikit-learn is not installed.
    """

    def __init__(
        self,
        n_slots: int,
        use_l2_normalization: bool = True,
        clustering_kwargs: Optional[Mapping[str, Any]] = None,
    ):
        super().__init__()
        require("sklearn", "clustering")
        self.n_slots, self.use_l2_normalization = n_slots, use_l2_normalization
        self.clustering_kwargs = dict(clustering_kwargs or {})
        self.object_dim: Optional[int] = None  # known from the first features on

    def forward(self, feature: FeatureExtractorOutput) -> PerceptualGroupingOutput:
        """Group features (b, n, d); objects are the centres (b, k, d), attributions one-hot (b, k, n)."""
        from sklearn.cluster import KMeans

        features = feature.features.detach()
        features = nn.functional.normalize(features, dim=-1) if self.use_l2_normalization else features
        self.object_dim = features.shape[-1]
        clusterings = [
            KMeans(self.n_slots, **self.clustering_kwargs).fit(vectors) for vectors in features.float().cpu().numpy()
        ]
        centres = torch.stack([torch.from_numpy(clustering.cluster_centers_) for clustering in clusterings])
        ids = torch.stack([torch.from_numpy(clustering.labels_).long() for clustering in clusterings])
        attributions = nn.functional.one_hot(ids, self.n_slots).transpose(1, 2)
        return PerceptualGroupingOutput(centres.to(features), feature_attributions=attributions.to(features))
