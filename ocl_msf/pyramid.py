"""The image pyramid, and resampling a map to the grid of another scale (section 3.2)."""

from typing import List, Sequence

import torch
from einops import rearrange, repeat
from torch import nn
from torch.nn import functional as F


def check_divisible(height: int, width: int, divisor: int, reason: str) -> None:
    """Raise ValueError unless both sides are multiples of `divisor`; `reason` ends the message."""
    if height % divisor or width % divisor:
        raise ValueError(
            f"An image of {height}x{width} pixels does not fit: both sides must be divisible by {divisor} "
            f"({reason}). Resize or crop the images, or use fewer scales."
        )


class ImagePyramid(nn.Module):
    """Bilinear image pyramid T_1, T_2 to T_N with T_n = T downsampled by 2^(n-1) (section 3.2).

    Args:
        num_scales: N.

    Raises:
        ValueError: num_scales is below 1.
    """

    def __init__(self, num_scales: int = 3):
        super().__init__()
        if num_scales < 1:
            raise ValueError(f"num_scales must be at least 1, got {num_scales}.")
        self.num_scales = num_scales

    def forward(self, image: torch.Tensor) -> List[torch.Tensor]:
        """Downsample an image.

        Args:
            image: (b, c, h, w), any value range.

        Returns:
            N images (b, c, h_n, w_n), h_n = h / 2^(n-1) and w_n = w / 2^(n-1), the given one first.

        Raises:
            ValueError: a side is not divisible by 2^(N-1).
        """
        height, width = image.shape[-2:]
        coarsest = 2 ** (self.num_scales - 1)
        check_divisible(height, width, coarsest, f"pyramid of {self.num_scales} scales")
        smaller = [
            F.interpolate(image, (height >> n, width >> n), mode="bilinear", align_corners=False)  # (b, c, h_n, w_n)
            for n in range(1, self.num_scales)
        ]
        return [image, *smaller]


def pool(features: torch.Tensor, factor: int) -> torch.Tensor:
    """Average blocks of f x f super-pixels, f = `factor`: (b, h*f, w*f, d) -> (b, h, w, d)."""
    return rearrange(F.avg_pool2d(rearrange(features, "b h w d -> b d h w"), factor), "b d h w -> b h w d")


def upsample(grid: torch.Tensor, factor: int) -> torch.Tensor:
    """Repeat every entry of a grid f x f times, f = `factor`: (b, h, w) -> (b, h*f, w*f)."""
    return repeat(grid, "b h w -> b (h f1) (w f2)", f1=factor, f2=factor)


def check_grids(maps: Sequence[torch.Tensor]) -> None:
    """Raise ValueError unless map n+1 has exactly half the height and width of map n, the finest first."""
    sizes = [tuple(m.shape[-2:]) for m in maps]
    for fine, coarse in zip(sizes, sizes[1:]):
        if fine != (2 * coarse[0], 2 * coarse[1]):
            raise ValueError(f"Feature maps must halve from scale to scale, the finest first; got {sizes}.")
