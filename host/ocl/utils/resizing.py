"""Resizing of images, masks and patches."""

import math
from typing import Any, Optional, Union

from torch import Tensor, nn
from torch.nn import functional as F

RESIZE_MODES = ("nearest", "nearest-exact", "bilinear", "bicubic", "area")


def square_side(n_patches: int) -> int:
    """Return the side of a square of patches, or raise a `ValueError` if they do not form one."""
    side = math.isqrt(n_patches)
    if side * side != n_patches:
        raise ValueError(f"Expected the patches of a square image, but {n_patches} is not a square number.")
    return side


def _patches_to_grid(patches: Tensor) -> Tensor:
    """Arrange patches (..., n) as (..., sqrt(n), sqrt(n))."""
    side = square_side(patches.shape[-1])
    return patches.unflatten(-1, (side, side))


def _interpolate(images: Tensor, mode: str, **size: Any) -> Tensor:
    """Interpolate images (..., c, h, w) with any number of leading axes."""
    lead = images.shape[:-3]
    resized = F.interpolate(images.reshape(-1, *images.shape[-3:]), mode=mode, **size)
    return resized.reshape(*lead, *resized.shape[1:])


def resize_patches_to_image(
    patches: Tensor, size: Optional[int] = None, scale_factor: Optional[float] = None, resize_mode: str = "bilinear"
) -> Tensor:
    """Resize the patches of a square image.

    Args:
        patches: (..., c, n).
        size: side s of the result.
        scale_factor: ratio of the sides, instead of `size`.
        resize_mode: mode of `torch.nn.functional.interpolate`.

    Returns:
        (..., c, s, s).

    Raises:
        ValueError: if not exactly one of size and scale factor is given, or n is not a square number.
    """
    if (size is None) == (scale_factor is None):
        raise ValueError("Exactly one of size and scale_factor is needed.")
    return _interpolate(_patches_to_grid(patches), resize_mode, size=size, scale_factor=scale_factor)


class Resize(nn.Module):
    """Resize images, masks or patches to a fixed size or to that of another tensor.

    Args:
        size: side or (height, width) of the result; by default it is taken from a second input.
        resize_mode: mode of `torch.nn.functional.interpolate`.
        patch_mode: the inputs are the patches of square images.
        channels_last: the inputs have their channels at the end.

    Raises:
        ValueError: if the mode is unknown.
    """

    def __init__(
        self,
        size: Union[None, int, tuple[int, int]] = None,
        resize_mode: str = "bilinear",
        patch_mode: bool = False,
        channels_last: bool = False,
    ):
        super().__init__()
        if resize_mode not in RESIZE_MODES:
            raise ValueError(f"Unknown resize_mode {resize_mode!r}: choose one of {', '.join(RESIZE_MODES)}.")
        self.size = size if size is None or isinstance(size, int) else tuple(size)
        self.resize_mode, self.patch_mode, self.channels_last = resize_mode, patch_mode, channels_last

    def forward(self, input: Tensor, size_tensor: Optional[Tensor] = None) -> Tensor:
        """Resize.

        Args:
            input: (..., c, h, w) or (..., c, n), with c at the end if `channels_last`.
            size_tensor: heights and widths (2,) or (b, 2), of which the first counts, or any other tensor
                whose last two axes have the wanted size. Used if `size` was not given.

        Returns:
            (..., c, h', w').

        Raises:
            ValueError: if there is no size, the input has too few axes, or n is not a square number.
        """
        size = self.size if self.size is not None else _read_size(size_tensor)
        if input.dim() < (2 if self.patch_mode else 3):
            raise ValueError(f"An input of shape {tuple(input.shape)} has too few axes to be resized.")
        if self.channels_last:
            input = input.movedim(-1, -2 if self.patch_mode else -3)
        if self.patch_mode:
            input = _patches_to_grid(input)
        return _interpolate(input, self.resize_mode, size=size)


def _read_size(size_tensor: Optional[Tensor]) -> tuple[int, int]:
    if size_tensor is None:
        raise ValueError("Resize needs either the argument size or an input size_tensor.")
    if size_tensor.dim() <= 2 and size_tensor.shape[-1] == 2:
        height, width = size_tensor.reshape(-1, 2)[0].tolist()
        return int(height), int(width)
    return size_tensor.shape[-2], size_tensor.shape[-1]
