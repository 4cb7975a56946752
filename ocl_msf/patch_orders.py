"""The orders in which an autoregressive decoder can write the tokens of an image (SPOT, Kakogeorgiou et al., 2024)."""

import torch

NUM_ORDERS = 9


def patch_orders(height: int, width: int) -> torch.Tensor:
    """The nine orders of SPOT (patch-order permutation): (9, h * w), int64, each the raster numbers of the tokens.

    The first is raster order. The next seven begin in any corner and go by rows or by columns, and the last winds from
    the middle outwards.
    """
    grid = torch.arange(height * width).view(height, width)
    corners = [grid, grid.flip(1), grid.flip(0, 1), grid.flip(0)]
    rings, rest = [], grid.rot90()
    while rest.numel():
        rings.append(rest[0])
        rest = rest[1:].rot90()
    orders = [*(x.flatten() for x in corners), *(x.t().flatten() for x in corners), torch.cat(rings).flip(0)]
    return torch.stack(orders)
