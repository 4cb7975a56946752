"""Modules that create masks."""

from typing import Optional

import torch
from torch import Tensor, nn


class CreateSlotMask(nn.Module):
    """Masks of the slots beyond the number that a sample needs."""

    def __init__(self, max_slots: int):
        super().__init__()
        self.max_slots = max_slots

    def forward(self, n_slots: Tensor) -> Tensor:
        """Turn numbers of slots (b,) into bool (b, max_slots), true from that number on."""
        return torch.arange(self.max_slots, device=n_slots.device) >= n_slots.unsqueeze(-1)


class CreateRandomMaskPatterns(nn.Module):
    """Masks that ignore the image, to see what a metric gives for them.

    Args:
        pattern: `random` draws every pixel's shares, `blocks` tiles the image with rectangles.
        n_slots: number of rectangles, by default the number of masks.
        n_cols: number of columns the rectangles stand in; the last one takes the remainder.

    Raises:
        ValueError: if the pattern is unknown.
    """

    def __init__(self, pattern: str, n_slots: Optional[int] = None, n_cols: int = 2):
        super().__init__()
        if pattern not in ("random", "blocks"):
            raise ValueError(f"Unknown pattern {pattern!r}: choose random or blocks.")
        self.pattern, self.n_slots, self.n_cols = pattern, n_slots, n_cols

    def forward(self, masks: Tensor) -> Tensor:
        """Create masks in place of (..., k, h, w) that sum to 1 over k."""
        if self.pattern == "random":
            shares = torch.rand(masks.shape, device=masks.device)
            return shares / shares.sum(dim=-3, keepdim=True)
        *lead, n_masks, height, width = masks.shape
        blocks = self._tile(self.n_slots or n_masks, height, width).to(masks.device)
        return blocks.expand(*lead, -1, -1, -1).clone()

    def _tile(self, n_slots: int, height: int, width: int) -> Tensor:
        per_column = n_slots // self.n_cols
        column = (torch.arange(1, width + 1) * self.n_cols - 1) // width
        n_rows = torch.where(column < self.n_cols - 1, per_column, n_slots - per_column * (self.n_cols - 1))
        row = (torch.arange(1, height + 1).unsqueeze(-1) * n_rows - 1) // height
        return (column * per_column + row == torch.arange(n_slots).view(-1, 1, 1)).float()
