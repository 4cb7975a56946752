"""Iterations of slot attention: how many, and through which gradients flow."""

from typing import Any, Callable, Optional, Tuple

import torch


def iterate(
    step: Callable[[torch.Tensor], Tuple[torch.Tensor, torch.Tensor]], queries: torch.Tensor, iters: int, gradients: str
) -> Tuple[torch.Tensor, torch.Tensor]:
    """Refine slots by iterations, through which gradients flow or not. The values are the same.

    Args:
        step: slots (b, k, d) -> slots of the next iteration, and the attention (b, k, n) that led to them.
        queries: the slots to start from, (b, k, d).
        iters: number of iterations, 1 or more.
        gradients: "all": through all iterations (Locatello et al., 2020). "last": through the last one alone, and not
            to the queries (implicit slot attention, Chang et al., 2022). "straight_through": like "last", and the
            queries get the gradient of the slots that enter the last iteration (Jia et al., 2023).

    Returns:
        Slots (b, k, d) and the attention (b, k, n) of the last iteration.

    Raises:
        ValueError: gradients is none of the three.
    """
    if gradients not in ("all", "last", "straight_through"):
        raise ValueError(f"gradients must be all, last or straight_through, got {gradients!r}.")
    slots = queries if gradients == "all" else queries.detach()
    with torch.set_grad_enabled(torch.is_grad_enabled() and gradients == "all"):
        for _ in range(iters - 1):
            slots, _ = step(slots)
    if gradients == "straight_through":
        slots = slots + (queries - queries.detach())
    return step(slots)


def iterations_of(grouping: Any, previous_slots: Optional[torch.Tensor]) -> int:
    """Iterations of a grouping for a frame: `later_iters` if it is set and there are previous slots, else `iters`."""
    is_first = previous_slots is None or grouping.later_iters is None
    return grouping.iters if is_first else grouping.later_iters
