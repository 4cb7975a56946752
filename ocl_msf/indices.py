"""Several code numbers of a super-pixel as one, and back: numpy's ravel_multi_index and unravel_index over axis 1."""

from typing import List, Sequence

import torch


def ravel_codes(codes: torch.Tensor, sizes: Sequence[int]) -> torch.Tensor:
    """Number the combinations of g codes, row-major: the last codebook varies fastest.

    Args:
        codes: (b, g, ...), int64; channel i in [0, sizes[i]).
        sizes: g numbers of codes.

    Returns:
        (b, ...), int64, in [0, prod(sizes)).
    """
    joint = torch.zeros_like(codes[:, 0])
    for number, size in zip(codes.unbind(1), sizes):
        joint = joint * size + number
    return joint


def unravel_codes(joint: torch.Tensor, sizes: Sequence[int]) -> torch.Tensor:
    """Split joint numbers (b, ...) into code numbers (b, g, ...), the inverse of `ravel_codes`."""
    codes: List[torch.Tensor] = []
    for size in reversed(sizes):
        codes.insert(0, joint % size)
        joint = joint // size
    return torch.stack(codes, 1)
