"""The straight-through estimator and the two quantisation losses, as autograd functions that save memory and time."""

from typing import Any, Optional, Tuple

import torch
from torch.autograd.function import once_differentiable
from torch.nn import functional as F


def straight_through(
    features: torch.Tensor, codes: torch.Tensor, indices: torch.Tensor, residual: float, weight: Optional[torch.Tensor]
) -> torch.Tensor:
    """Select codes and project them down, with the gradient of the features: (a . features + (1 - a) . codes) . W_g.

    The features get the gradient of features . W_g, W_g that of the value, and the codes none. Since many vectors share
    a code, codes are projected before they are selected.

    Args:
        features: (..., c), of which the share a = `residual` is passed on.
        codes: (m, c), the codebook.
        indices: (...), int64, the code that each vector is matched with.
        residual: a, in [0, 1].
        weight: W_g (c, d); None is the identity.

    Returns:
        (..., d).
    """

    def down(x: torch.Tensor) -> torch.Tensor:
        return x.detach() if weight is None else x.detach() @ weight

    value = F.embedding(indices, down(codes))  # (..., d)
    if residual:
        value = torch.lerp(value, down(features), residual)  # (..., d)
    return _StraightThrough.apply(features, value, weight if weight is None else weight.detach())


class _StraightThrough(torch.autograd.Function):
    """Forward: `value`. Backward: the gradient of `value`, and to the features that of features . weight."""

    @staticmethod
    def forward(ctx: Any, features: torch.Tensor, value: torch.Tensor, weight: Optional[torch.Tensor]) -> torch.Tensor:
        ctx.save_for_backward(weight)
        return value.view_as(value)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> Tuple[torch.Tensor, torch.Tensor, None]:  # type: ignore[override]
        (weight,) = ctx.saved_tensors
        grad = grad.contiguous()  # one copy instead of one for every product
        return (grad if weight is None else F.linear(grad, weight)), grad, None


def quantization_losses(features: torch.Tensor, codes: torch.Tensor) -> Tuple[torch.Tensor, torch.Tensor]:
    """Return (codebook loss MSE(sg[features], codes), commitment loss MSE(features, sg[codes])), two scalars."""
    return _QuantizationLosses.apply(features, codes)


class _QuantizationLosses(torch.autograd.Function):
    """Both losses from one difference: equal values, separate gradients."""

    @staticmethod
    def forward(ctx: Any, features: torch.Tensor, codes: torch.Tensor) -> Tuple[torch.Tensor, torch.Tensor]:
        difference = features - codes
        ctx.save_for_backward(difference)
        loss = torch.linalg.vector_norm(difference).square() / difference.numel()
        return loss, loss.clone()

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any,
        to_codes: torch.Tensor,
        to_features: torch.Tensor,  # type: ignore[override]
    ) -> Tuple[torch.Tensor, torch.Tensor]:
        (difference,) = ctx.saved_tensors
        scale = 2 / difference.numel()
        return difference * (scale * to_features), difference * (-scale * to_codes)
