"""Slot attention in which every slot has a frame of reference of its own (Biza et al., 2023)."""

from typing import Any, Optional, Tuple

import torch
from torch import nn

from ocl_msf._host import require_host
from ocl_msf.frames import RELATIVE_FEATURES, fit_frames, relative_features, split_frames, unlimited_frames
from ocl_msf.iterations import iterate, iterations_of

with require_host():
    from ocl.typing import FeatureExtractorOutput, PerceptualGroupingOutput


class InvariantSlotAttentionGrouping(nn.Module):
    """Slots that look for their object around the place where they found it before, and take its looks from there.

    After each iteration a slot's frame is the mean and the deviation of the positions that it attends to. In the next
    one it sees positions relative to its frame alone, so a moved object gives the same slot with a moved frame
    (translation and scaling of Invariant Slot Attention, Biza et al., 2023, section 3). Slots that start without a
    frame go by looks alone in the first iteration; slots of a video start with that of the frame before. A slot that
    may stand for one compact thing finds objects much sooner than one that may stand for many places.

    Invariant Slot Attention passes the relative positions of all pairs of slots and features through an MLP. Here the
    positional part of a key is linear in seven functions of the relative position (`frames.relative_features`), so
    that its product with the query is seven coefficients of a slot times these functions: a fiftieth of the work.

    Args:
        feature_dim: channels of the features, behind the positional embedding.
        object_dim: channels d of a slot without its frame.
        iters: number of iterations.
        ff_mlp: applied to the vectors of slots at the end of an iteration.
        positional_embedding: applied to features and positions; it sees the same position everywhere, as features must
            not know where they are.
        min_scale: the smallest scale of a frame, in halves of an image.
        focus: how fast the attention of an untrained slot falls with the squared distance in units of its scale.
        eps: added to the attention, so that the weights of no slot sum to zero.
        gradients: "all", "last" or "straight_through", see `iterations.iterate`.
        later_iters: see `perceptual_grouping.TruncatedSlotAttentionGrouping`.
    """

    def __init__(
        self,
        feature_dim: int,
        object_dim: int,
        iters: int = 3,
        ff_mlp: Optional[nn.Module] = None,
        positional_embedding: Optional[nn.Module] = None,
        min_scale: float = 0.1,
        focus: float = 0.1,
        eps: float = 1e-6,
        gradients: str = "all",
        later_iters: Optional[int] = None,
    ):
        super().__init__()
        self.object_dim = object_dim
        self.iters, self.gradients, self.later_iters = iters, gradients, later_iters
        self.min_scale, self.eps = min_scale, eps
        self.positional_embedding, self.ff_mlp = positional_embedding, ff_mlp
        self.norm_features, self.norm_slots = nn.LayerNorm(feature_dim), nn.LayerNorm(object_dim)
        self.to_query = nn.Linear(object_dim, object_dim, bias=False)
        self.to_key = nn.Linear(feature_dim, object_dim, bias=False)
        self.to_value = nn.Linear(feature_dim, object_dim, bias=False)
        self.to_coefficients = nn.Linear(object_dim, RELATIVE_FEATURES)
        self.relative_to_value = nn.Linear(RELATIVE_FEATURES, object_dim, bias=False)
        self.gru = nn.GRUCell(object_dim, object_dim)
        with torch.no_grad():
            self.to_coefficients.weight.mul_(0.1)
            self.to_coefficients.bias.zero_()
            self.to_coefficients.bias[2] = -focus  # of r^2

    def forward(
        self,
        feature: FeatureExtractorOutput,
        conditioning: torch.Tensor,
        slot_mask: Optional[torch.Tensor] = None,
        previous_slots: Optional[torch.Tensor] = None,
    ) -> PerceptualGroupingOutput:
        """Group features.

        Args:
            feature: features (b, n, feature_dim) with positions (n, 2) in [0, 1].
            conditioning: initial slots (b, k, object_dim), or with frames (b, k, object_dim + 3).
            slot_mask: (b, k), bool, True where a slot is off and gets no feature.
            previous_slots: those of the frame before, if there is one; only whether there is counts.

        Returns:
            Slots with their frames (b, k, object_dim + 3), `slot_mask`, and the attention (b, k, n) of the last
            iteration.

        Raises:
            ValueError: the features have no positions, or gradients is none of the three.
        """
        features, positions = feature.features, feature.positions  # b n d, n 2
        if positions is None:
            raise ValueError("InvariantSlotAttentionGrouping needs features with positions.")
        points = 2 * positions - 1  # n 2
        if self.positional_embedding is not None:
            features = self.positional_embedding(features, torch.full_like(positions, 0.5))
        features = self.norm_features(features)
        keys, values = self.to_key(features), self.to_value(features)  # b n d

        def step(slots: torch.Tensor) -> Tuple[torch.Tensor, torch.Tensor]:
            return self._iterate(slots, keys, values, points, slot_mask)  # b k d+3, b k n

        if conditioning.shape[-1] == self.object_dim:
            conditioning = torch.cat([conditioning, unlimited_frames(conditioning)], -1)  # b k d+3
        slots, attention = iterate(step, conditioning, iterations_of(self, previous_slots), self.gradients)
        return PerceptualGroupingOutput(slots, is_empty=slot_mask, feature_attributions=attention)

    def _iterate(
        self,
        slots: torch.Tensor,
        keys: torch.Tensor,
        values: torch.Tensor,
        points: torch.Tensor,
        slot_mask: Optional[torch.Tensor],
    ) -> Tuple[torch.Tensor, torch.Tensor]:
        vectors, frames = split_frames(slots)
        relative = relative_features(frames.unsqueeze(-2), points)  # b k n 7
        normed = self.norm_slots(vectors)
        looks = self.to_query(normed) * self.object_dim**-0.5 @ keys.transpose(1, 2)  # b k n
        places = (relative @ self.to_coefficients(normed).unsqueeze(-1)).squeeze(-1)  # b k n
        logits = (looks + places).float()
        if slot_mask is not None:
            logits = logits.masked_fill(slot_mask.unsqueeze(-1), torch.finfo(logits.dtype).min)
        attention = logits.softmax(1)  # b k n
        weights = attention + self.eps
        weights = weights / weights.sum(-1, keepdim=True)
        mean = (weights.unsqueeze(-2) @ relative.float()).squeeze(-2)  # b k 7
        updates = weights.to(values.dtype) @ values + self.relative_to_value(mean.to(values.dtype))  # b k d
        with torch.autocast(slots.device.type, enabled=False):  # a recurrent state needs full precision
            vectors = self.gru(updates.flatten(0, 1).float(), vectors.flatten(0, 1).float()).view_as(vectors)
            frames = fit_frames(weights, points.float(), self.min_scale)
        if self.ff_mlp is not None:
            vectors = self.ff_mlp(vectors)
        return torch.cat([vectors, frames], -1), attention


class VideoInvariantSlotAttentionGrouping(InvariantSlotAttentionGrouping):
    """The same for videos, with a GRU initialised to keep slots, as in `VideoSlotAttentionGrouping`.

    Args:
        keep_bias: initial value added to the update gate's bias.
        others: as for `InvariantSlotAttentionGrouping`.
    """

    def __init__(self, *args: Any, keep_bias: float = 2.0, **kwargs: Any):
        super().__init__(*args, **kwargs)
        with torch.no_grad():  # gates are in the order reset, update, new
            self.gru.bias_ih[self.object_dim : 2 * self.object_dim] += keep_bias
