"""Grouping by stick breaking."""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ocl.typing import FeatureExtractorOutput, PerceptualGroupingOutput


class StickBreakingGrouping(nn.Module):
    """Take one object after the other from what is not yet explained (Engelcke et al., 2021, section 3.2).

    A random feature of what is left is the seed of the next object, whose mask is a Gaussian kernel of the squared
    distance between projections of unit length.

    Args:
        object_dim: channels of the objects.
        feature_dim: channels d of the features.
        n_slots: number of objects k.
        kernel_var: variance of the kernel.
        learn_kernel_var: make its logarithm a parameter.
        max_unexplained: an object is empty if less than this fraction is left when its turn comes,
        min_slot_mask: or if the mean of its mask is less than this,
        min_max_mask_value: or if the largest value of its mask is less than this.
        early_termination: all objects after the first empty one are empty.
        add_unexplained: the first empty object gets what is left; needs `early_termination`.
        eps: least value of a kernel.
        detach_features: let no gradients flow into the features.
        use_input_layernorm: normalize features before they are projected.

    Raises:
        ValueError: if the options do not go together, or a threshold is not in [0, 1).
    """

    kernel_logvar: Tensor

    def __init__(
        self,
        object_dim: int,
        feature_dim: int,
        n_slots: int,
        kernel_var: float = 1.0,
        learn_kernel_var: bool = False,
        max_unexplained: float = 0.0,
        min_slot_mask: float = 0.0,
        min_max_mask_value: float = 0.0,
        early_termination: bool = False,
        add_unexplained: bool = False,
        eps: float = 1e-8,
        detach_features: bool = False,
        use_input_layernorm: bool = False,
    ):
        super().__init__()
        if add_unexplained and not early_termination:
            raise ValueError("`add_unexplained` needs `early_termination`: the first empty object gets what is left.")
        if kernel_var <= 0 or not all(0 <= x < 1 for x in (max_unexplained, min_slot_mask, min_max_mask_value)):
            raise ValueError("`kernel_var` has to be positive, and the three thresholds in [0, 1).")
        self.object_dim, self.n_slots, self.eps, self.detach_features = object_dim, n_slots, eps, detach_features
        self.max_unexplained, self.min_slot_mask = max_unexplained, min_slot_mask
        self.min_max_mask_value = min_max_mask_value
        self.early_termination, self.add_unexplained = early_termination, add_unexplained
        logvar = torch.tensor(math.log(kernel_var))
        if learn_kernel_var:
            self.kernel_logvar = nn.Parameter(logvar)
        else:
            self.register_buffer("kernel_logvar", logvar)
        project = _linear(feature_dim, feature_dim)
        self.in_proj = nn.Sequential(nn.LayerNorm(feature_dim), project) if use_input_layernorm else project
        self.out_proj = _linear(feature_dim, object_dim)

    def forward(self, features: FeatureExtractorOutput) -> PerceptualGroupingOutput:
        """Group features (b, n, d); empty objects are zero."""
        values = features.features.detach() if self.detach_features else features.features
        masks, left = self._break(F.normalize(self.in_proj(values), dim=-1))
        is_empty = left.mean(dim=-1) < self.max_unexplained
        is_empty |= masks.mean(dim=-1) < self.min_slot_mask
        is_empty |= masks.amax(dim=-1) < self.min_max_mask_value
        if self.early_termination:
            is_empty = is_empty.int().cummax(dim=1).values.bool()
        if self.add_unexplained:
            first = is_empty & (is_empty.cumsum(dim=1) == 1)
            # Where no object is empty, the first one gets all: nothing was explained when its turn came.
            first[:, 0] |= ~is_empty.any(dim=1)
            masks, is_empty = left.where(first.unsqueeze(-1), masks), is_empty & ~first
        means = masks @ values / masks.sum(dim=-1, keepdim=True).clamp(min=self.eps)
        objects = self.out_proj(means).masked_fill(is_empty.unsqueeze(-1), 0)
        return PerceptualGroupingOutput(objects, is_empty=is_empty, feature_attributions=masks)

    def _break(self, points: Tensor) -> tuple[Tensor, Tensor]:
        """Return the masks (b, k, n), and what was left of each of n points (b, n, d) before its turn (b, k, n)."""
        log_left = torch.zeros_like(points[..., 0])
        log_noise = torch.rand_like(log_left).clamp(min=self.eps).log()
        log_masks, log_lefts = [], [log_left]
        for _ in range(self.n_slots - int(self.add_unexplained)):
            seeds = (log_left + log_noise).argmax(dim=1)
            distances = (points - points[torch.arange(len(points)), seeds].unsqueeze(1)).square().sum(dim=-1)
            log_kernel = (-distances / self.kernel_logvar.exp()).clamp(min=math.log(self.eps))
            log_masks.append(log_left + log_kernel)
            log_left = log_left + (1 - log_kernel.exp()).clamp(min=self.eps).log()
            log_lefts.append(log_left)
        if self.add_unexplained:
            log_masks.append(log_left)
        return torch.stack(log_masks, dim=1).exp(), torch.stack(log_lefts[: self.n_slots], dim=1).exp()


def _linear(in_dim: int, out_dim: int) -> nn.Linear:
    layer = nn.Linear(in_dim, out_dim)
    nn.init.xavier_uniform_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer
