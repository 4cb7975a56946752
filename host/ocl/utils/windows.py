"""Join what was computed on windows of an image."""

from collections.abc import Sequence

from torch import Tensor, nn


class JoinWindows(nn.Module):
    """Put the masks of the windows of `ocl.transforms.SpatialSlidingWindow` side by side in masks of the image.

    Args:
        n_windows: number of windows of an image.
        size: [height, width] of the image.
    """

    def __init__(self, n_windows: int, size: Sequence[int]):
        super().__init__()
        self.n_windows, self.size = n_windows, tuple(size)

    def forward(self, masks: Tensor, keys: Sequence[str]) -> Tensor:
        """Join windows that do not overlap.

        Args:
            masks: (n_windows, k, h, w).
            keys: of each window, `<key>_<column>_<row>`, its first column and row in the image; negative in padding.

        Returns:
            (1, n_windows * k, height, width); the masks of a window are 0 outside of it.

        Raises:
            ValueError: if there are more or fewer windows.
        """
        if len(masks) != self.n_windows:
            raise ValueError(f"An image has {self.n_windows} windows, got {len(masks)}: use this as the batch size.")
        (height, width), n_masks = self.size, masks.shape[1]
        joined = masks.new_zeros(len(masks) * n_masks, height, width)
        for index, (mask, key) in enumerate(zip(masks, keys)):
            left, top = (int(part) for part in key.split("_")[-2:])
            rows = slice(max(top, 0), min(top + mask.shape[-2], height))
            columns = slice(max(left, 0), min(left + mask.shape[-1], width))
            inside = mask[:, rows.start - top : rows.stop - top, columns.start - left : columns.stop - left]
            joined[index * n_masks : (index + 1) * n_masks, rows, columns] = inside
        return joined.unsqueeze(0)
