"""Losses of pairs: images with their captions, and predicted with true masks."""

from typing import Any, Optional

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ocl.matching import CPUHungarianMatcher
from ocl.typing import PooledFeatures


def _has_ranks(model: Any) -> bool:
    """Tell whether a LightningModule is trained by several processes."""
    trainer = getattr(model, "_trainer", None)
    return trainer is not None and trainer.world_size > 1


class CLIPLoss(nn.Module):
    """Contrastive loss of pairs (Radford et al., 2021, figure 3), over the batches of all ranks.

    Args:
        normalize_inputs: compare directions only.
        learn_scale: learn the logarithm of the factor of the logits, from 0 on; otherwise the factor is 1.
        max_temperature: largest factor.
    """

    logit_scale: Tensor

    def __init__(
        self, normalize_inputs: bool = True, learn_scale: bool = True, max_temperature: Optional[float] = None
    ):
        super().__init__()
        self.normalize_inputs, self.max_temperature = normalize_inputs, max_temperature
        if learn_scale:
            self.logit_scale = nn.Parameter(torch.zeros(()))
        else:
            self.register_buffer("logit_scale", torch.zeros(()))

    def forward(
        self, first: PooledFeatures, second: PooledFeatures, model: Optional[Any] = None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Compare two batches of the same length.

        Args:
            first: (b, d).
            second: (b, d), the row of the same number belongs to it.
            model: the LightningModule, which collects what other ranks have.

        Returns:
            The loss, and `similarities` (b, b) without the factor, and `temperature`, the factor.
        """
        if self.normalize_inputs:
            first, second = F.normalize(first, dim=-1), F.normalize(second, dim=-1)
        factor = self.logit_scale.exp()
        if self.max_temperature is not None:
            factor = factor.clamp(max=self.max_temperature)
        all_first, all_second, offset = first, second, 0
        if model is not None and _has_ranks(model):
            all_first, all_second = (model.all_gather(part, sync_grads=True).flatten(0, 1) for part in (first, second))
            offset = len(first) * model.global_rank
        labels = torch.arange(len(first), device=first.device) + offset
        loss = F.cross_entropy(factor * first @ all_second.t(), labels)
        loss = (loss + F.cross_entropy(factor * second @ all_first.t(), labels)) / 2
        return loss, {"similarities": first @ second.t(), "temperature": factor}


def _mask_costs(predicted: Tensor, true: Tensor) -> Tensor:
    """Compute the mean binary cross entropy (n, m) of all pairs of masks (n, h, w) in [0, 1] and (m, h, w) bool."""
    predicted, true = predicted.flatten(1), true.flatten(1).to(predicted)
    inside, outside = predicted.log().clamp(min=-100), torch.log1p(-predicted).clamp(min=-100)
    return -(inside @ true.t() + outside @ (1 - true).t()) / predicted.shape[1]


class DETRSegLoss(nn.Module):
    """Cross entropy of true masks with the predictions that fit them best (Carion et al., 2020).

    Args:
        loss_weight: factor.
        ignore_background: leave out the first true mask.
        foreground_weight: factor of the loss of `foreground_logits`.
        foreground_matching_weight: how much these logits count in the matching.
        global_loss: mean over the samples of all ranks, of which some may have no labels.
    """

    def __init__(
        self,
        loss_weight: float = 1.0,
        ignore_background: bool = True,
        foreground_weight: float = 1.0,
        foreground_matching_weight: float = 1.0,
        global_loss: bool = True,
    ):
        super().__init__()
        self.loss_weight, self.ignore_background, self.global_loss = loss_weight, ignore_background, global_loss
        self.foreground_weight, self.foreground_matching_weight = foreground_weight, foreground_matching_weight
        self.matcher = CPUHungarianMatcher()

    def forward(
        self,
        input_mask: Tensor,
        target_mask: Tensor,
        foreground_logits: Optional[Tensor] = None,
        model: Optional[Any] = None,
    ) -> Tensor:
        """Compare masks of images, or of the frames of videos, (b, t, ...).

        Args:
            input_mask: (b, n, h, w) in [0, 1].
            target_mask: (b, k, h, w), positive inside; samples with a mask of NaN have no labels and do not count.
            foreground_logits: (b, n, 1), whether a prediction is an object.
            model: the LightningModule, which collects what other ranks have.

        Returns:
            The mean over samples; 0 if none has labels.
        """
        labeled = ~target_mask.isnan().all(dim=-1).all(dim=-1).any(dim=-1)
        targets = target_mask.detach()[labeled][:, int(self.ignore_background) :] > 0
        logits = [None] * len(targets) if foreground_logits is None else foreground_logits[labeled].squeeze(-1)
        losses = [self._loss(*sample) for sample in zip(input_mask[labeled], targets, logits)]
        total = torch.stack(losses).sum() if losses else input_mask.sum() * 0
        count = torch.tensor(float(len(losses)), device=total.device)
        if model is not None and self.global_loss and _has_ranks(model):
            total, count = model.all_gather(total, sync_grads=True).sum(), model.all_gather(count).sum()
        return self.loss_weight * total / count.clamp(min=1)

    def _loss(self, predicted: Tensor, true: Tensor, logits: Optional[Tensor]) -> Tensor:
        costs = _mask_costs(predicted, true[true.flatten(1).any(dim=1)])
        matching_costs = costs
        if logits is not None:
            matching_costs = costs + self.foreground_matching_weight * F.softplus(-logits.detach()).unsqueeze(-1)
        matched = self.matcher(matching_costs.unsqueeze(0))[0].squeeze(0)
        loss = (costs * matched).sum() / matched.sum().clamp(min=1)
        if logits is None:
            return loss
        is_object = matched.any(dim=1).to(logits)
        return loss + self.foreground_weight * F.binary_cross_entropy_with_logits(logits, is_object)


class EM_rec_loss(nn.Module):  # noqa: N801  the name is OCLF's
    """Agreement of objects in memory with the slots that belong to them, weighted by how much they do.

    Args:
        loss_weight: factor.
    """

    def __init__(self, loss_weight: float = 20):
        super().__init__()
        self.loss_weight = loss_weight

    def forward(
        self,
        segmentations: Tensor,
        masks: Tensor,
        reconstructions: Tensor,
        rec_tgt: Tensor,
        masks_vis: Tensor,
        attn_index: Tensor,
    ) -> Tensor:
        """Compare n objects in memory with k slots, of videos.

        Args:
            segmentations: masks of the objects (b, t, n, h, w) in [0, 1].
            masks: those of the slots (b, t, k, h, w), which count where they are above 0.5.
            reconstructions: images of the objects (b, t, n, 3, h, w).
            rec_tgt: the video (b, t, 3, h, w).
            masks_vis: visible masks of the slots (b, t, k, h, w); images are compared where they are above 0.5.
            attn_index: weight of each pair (b, t, k, n).
        """
        size = masks.shape[-2:].numel()
        inside = (masks > 0.5).to(segmentations).flatten(-2)  # b t k hw
        logs = (values.flatten(-2).clamp(min=-100) for values in (segmentations.log(), torch.log1p(-segmentations)))
        yes, no = (values.transpose(-1, -2) for values in logs)
        entropies = -(inside @ yes + (1 - inside) @ no) / size  # b t k n
        errors = (reconstructions - rec_tgt.unsqueeze(2)).square().sum(dim=3).flatten(-2)  # b t n hw
        visible = (masks_vis > 0.5).to(errors).flatten(-2)
        loss = entropies + 0.1 * visible @ errors.transpose(-1, -2)
        return self.loss_weight * (attn_index * loss).mean()
