"""Losses."""

from typing import Callable, Union

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ocl._set_losses import CLIPLoss, DETRSegLoss, EM_rec_loss  # noqa: F401  configs look for them here
from ocl.scheduling import HPScheduler
from ocl.typing import PerceptualGroupingOutput

_DISTANCES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "mse": F.mse_loss,
    "mse_sum": lambda input, target: F.mse_loss(input, target, reduction="sum") / len(input),
    "l1": F.l1_loss,
    "cosine": lambda input, target: -F.cosine_similarity(input, target, dim=-1).mean(),
    "cross_entropy_sum": lambda input, target: -(target * F.log_softmax(input, dim=-1)).sum() / len(input),
}


class ReconstructionLoss(nn.Module):
    """Distance between a reconstruction and its target, through which no gradients flow.

    Args:
        loss_type: `mse` or `l1`, mean over all elements; `mse_sum`, sum divided by the batch size; `cosine`,
            negative mean cosine similarity of the last axis; `cross_entropy_sum`, cross entropy of logits
            with target probabilities along the last axis, sum divided by the batch size.
        weight: factor, possibly scheduled.
        normalize_target: give the target zero mean and unit variance along its last axis.

    Raises:
        ValueError: if the kind of loss is unknown.
    """

    def __init__(self, loss_type: str, weight: Union[float, HPScheduler] = 1.0, normalize_target: bool = False):
        super().__init__()
        if loss_type not in _DISTANCES:
            raise ValueError(f"Unknown loss_type {loss_type!r}: choose one of {', '.join(_DISTANCES)}.")
        self.loss_type, self.weight, self.normalize_target = loss_type, weight, normalize_target

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        """Return the weighted loss of two tensors of the same shape (b, ...)."""
        target = target.detach()
        if self.normalize_target:
            variance, mean = torch.var_mean(target, dim=-1, keepdim=True)
            target = (target - mean) / (variance + 1e-6).sqrt()
        return float(self.weight) * _DISTANCES[self.loss_type](input, target)


class LatentDupplicateSuppressionLoss(nn.Module):
    """Mean squared cosine similarity of all pairs of slots of an image.

    Args:
        weight: factor, possibly scheduled.
        eps: smallest norm of a slot and smallest weight of an image.
    """

    def __init__(self, weight: Union[float, HPScheduler], eps: float = 1e-8):
        super().__init__()
        self.weight, self.eps = weight, eps

    def forward(self, grouping: PerceptualGroupingOutput) -> Tensor:
        """Return the weighted loss of slots (b, k, d) or (b, t, k, d); empty ones do not count.

        Raises:
            ValueError: if the slots have another number of axes.
        """
        slots, is_empty = grouping.objects, grouping.is_empty
        if slots.dim() not in (3, 4):
            raise ValueError(f"Expected slots (b, k, d) or (b, t, k, d), got shape {tuple(slots.shape)}.")
        units = F.normalize(slots, dim=-1, eps=self.eps)
        first, second = torch.triu_indices(slots.shape[-2], slots.shape[-2], offset=1, device=slots.device)
        similarities = (units @ units.transpose(-1, -2))[..., first, second].square()
        present = similarities.new_ones(slots.shape[:-1])
        if is_empty is not None:
            present = present - is_empty.to(present)
        weights = present[..., first] * present[..., second]
        total = weights.sum(dim=-1).clamp(min=self.eps)
        return float(self.weight) * ((similarities * weights).sum(dim=-1) / total).mean()
