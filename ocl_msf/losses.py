"""Losses the host lacks."""

from functools import reduce
from typing import Any, Dict, Optional, Sequence, Tuple, Union

import torch
from torch import nn
from torch.nn import functional as F

from ocl_msf._renamed import refuse_old_names
from ocl_msf.indices import ravel_codes

__getattr__ = refuse_old_names(__name__)


class PyramidLoss(nn.Module):
    """Sum over scales of the mean squared error between images and their reconstructions (section 3.2)."""

    def forward(self, reconstructions: Sequence[torch.Tensor], pyramid: Sequence[torch.Tensor]) -> torch.Tensor:
        """N reconstructions (b, c, h_n, w_n) and N images, resized to them (bicubic) if they are larger -> scalar."""
        return reduce(torch.add, [F.mse_loss(made, _fit(image, made)) for made, image in zip(reconstructions, pyramid)])


def _fit(image: torch.Tensor, made: torch.Tensor) -> torch.Tensor:
    size = made.shape[2:]
    return image if image.shape[2:] == size else F.interpolate(image, size, mode="bicubic", align_corners=False)


class WeightedLoss(nn.Module):
    """A loss that a model has computed, for all images or for each, multiplied by `weight`."""

    def __init__(self, weight: float = 1.0):
        super().__init__()
        self.weight = weight

    def forward(self, loss: torch.Tensor) -> torch.Tensor:
        """Weight the mean of a loss, scalar or (...) -> scalar."""
        return loss.mean() * self.weight


class NormLoss(nn.Module):
    """Pulls encodings towards their group-normalised selves, so that training does not shrink or stretch them (GDR).

    Sum over scales of MSE(Z_n, sg[norm(Z_n)]), where norm subtracts the mean over h, w and c of every sample and
    divides by the standard deviation.

    Args:
        weight: of this loss.
    """

    def __init__(self, weight: float = 0.1):
        super().__init__()
        self.weight = weight

    def forward(self, encodings: Sequence[torch.Tensor]) -> torch.Tensor:
        """N encodings Z_n (b, c, h_n, w_n) -> scalar."""
        losses = [F.mse_loss(z, F.layer_norm(z.detach(), z.shape[1:])) for z in encodings]
        return self.weight * reduce(torch.add, losses)


class SlotSparsity(nn.Module):
    """Keeps slots from sharing out what one of them could have: sum_k (share of the image that slot k owns)^1/2.

    It is 1 if one slot owns everything and k^1/2 if all own as much. Splitting a background costs a mixture of slots
    nothing, so without this it ends in as many pieces as there are slots to spare. One piece instead of five saves
    eight times as much as leaving out an object on a fiftieth of the image.

    Args:
        weight: of this loss, a number or a schedule of the host, which evaluation takes as 1. It should rise once
            slots are worth something: from the first step on it leaves one slot for everything.
    """

    def __init__(self, weight: Union[float, nn.Module] = 1.0):
        super().__init__()
        self.weight: Any = weight

    def forward(self, attention: torch.Tensor) -> torch.Tensor:
        """Shares (b, k, n) of the slots in each super-pixel, of sum 1 over k -> scalar."""
        owned = attention.float().mean(-1)  # b k
        scheduled = isinstance(self.weight, nn.Module) and not self.training  # then a schedule may have no value yet
        return (1 if scheduled else float(self.weight)) * (owned + 1e-4).sqrt().sum(
            -1
        ).mean()  # 1e-4: empty slots have finite gradients


class GroupedCrossEntropy(nn.Module):
    """Cross entropy of the indices of a super-pixel, summed over codebooks, in nats per token.

    Args:
        joint_sizes: numbers of codes of the codebooks, if one joint head predicts all combinations of codes.
    """

    def __init__(self, joint_sizes: Optional[Sequence[int]] = None):
        super().__init__()
        self.joint_sizes = joint_sizes

    def forward(
        self, logits: Sequence[torch.Tensor], indices: torch.Tensor, tokens: Optional[torch.Tensor] = None
    ) -> Tuple[torch.Tensor, Dict[str, torch.Tensor]]:
        """Compare predictions with codes.

        Args:
            logits: g tensors (b, n, m_g), one for each codebook; of a joint head one tensor (b, n, m_1 * ... * m_g).
            indices: (b, g, h, w), int64, with h * w = n unless there are `tokens`.
            tokens: (b, n), int64, which of the h * w tokens are predicted; None: all.

        Returns:
            The sum, a scalar, and the mean of each codebook by name: codebook_0, codebook_1, ...

        Raises:
            ValueError: the numbers of logits and of indices differ: joint_sizes and the decoder's `joint` go together.
        """
        if self.joint_sizes:
            indices = ravel_codes(indices, self.joint_sizes).unsqueeze(1)  # (b, 1, h, w)
        if len(logits) != indices.shape[1]:
            raise ValueError(
                f"{len(logits)} heads cannot predict {indices.shape[1]} indices. A decoder with joint=true needs the "
                "loss's joint_sizes, and no other does; msf/heads=joint sets both."
            )
        indices = indices.flatten(2)  # b g h*w
        if tokens is not None:
            indices = indices.gather(2, tokens.unsqueeze(1).expand(-1, indices.shape[1], -1))  # b g n
        targets = indices.unbind(1)  # g x (b, n)
        losses = [F.cross_entropy(x.flatten(0, 1), y.flatten()) for x, y in zip(logits, targets)]
        return reduce(torch.add, losses), {f"codebook_{g}": loss.detach() for g, loss in enumerate(losses)}
