"""Functions that metrics of masks share, for masks that are not in batches of images."""

import torch
from torch import Tensor


def one_hot_argmax(scores: Tensor) -> Tensor:
    """Mark the highest of k scores (b, k, ...), the first one of equals, as bool."""
    winner = scores.max(dim=1, keepdim=True).indices  # several times faster than argmax on CPUs
    ids = torch.arange(scores.shape[1], device=scores.device)
    return ids.view(-1, *[1] * (scores.dim() - 2)) == winner


def count_common_pixels(first: Tensor, second: Tensor) -> Tensor:
    """Count the pixels that bool masks (b, c, n) and (b, k, n) share, as (b, c, k) in double precision."""
    # Autocast would round products in single precision; in double precision they are exact.
    return first.to(torch.float64) @ second.to(torch.float64).transpose(1, 2)


def rand_index_of_table(table: Tensor) -> Tensor:
    """Compute the adjusted Rand index (b,) of contingency tables (b, c, k); it is 1 where it is not defined.

    This is Hubert and Arabie (1985), eq. 5, with ordered instead of unordered pairs of pixels.
    """
    margins = table, table.sum(2, keepdim=True), table.sum(1, keepdim=True), table.sum((1, 2), keepdim=True)
    in_both, in_rows, in_columns, in_all = ((counts * (counts - 1)).sum((1, 2)) for counts in margins)
    # Divided first, such that a single cluster gives exactly 1.
    expected = in_rows * (in_columns / in_all.clamp(min=1))
    span = (in_rows + in_columns) / 2 - expected
    return torch.where(span > 0, (in_both - expected) / span.where(span > 0, 1), 1)


def tensor_to_one_hot(tensor: Tensor, dim: int) -> Tensor:
    """Mark the largest value along an axis, the first one of equals, by 1 in an int64 tensor of zeros."""
    largest = tensor.max(dim=dim, keepdim=True).indices
    return torch.zeros_like(tensor, dtype=torch.int64).scatter_(dim, largest, 1)


def adjusted_rand_index(pred_mask: Tensor, true_mask: Tensor) -> Tensor:
    """Compute the adjusted Rand index of points with a true cluster.

    Args:
        pred_mask: scores (b, n, c) of n points; the highest says the cluster.
        true_mask: one-hot (b, n, k); points without any 1 are left out.

    Returns:
        (b,), in double precision.
    """
    predicted = one_hot_argmax(pred_mask.transpose(1, 2))
    return rand_index_of_table(count_common_pixels(predicted, true_mask.transpose(1, 2)))


def fg_adjusted_rand_index(pred_mask: Tensor, true_mask: Tensor, bg_dim: int = 0) -> Tensor:
    """Compute `adjusted_rand_index` without the points of the true cluster `bg_dim`.

    Raises:
        ValueError: if there is no such cluster.
    """
    clusters = true_mask.shape[-1]
    if not 0 <= bg_dim < clusters:
        raise ValueError(f"`bg_dim` has to be one of the {clusters} true clusters, counted from 0, not {bg_dim}.")
    foreground = [cluster for cluster in range(clusters) if cluster != bg_dim]
    return adjusted_rand_index(pred_mask, true_mask[..., foreground])


def masks_to_bboxes(masks: Tensor, empty_value: float = -1.0) -> Tensor:
    """Find the first and last column and row of masks.

    Args:
        masks: (n, h, w), not 0 inside.
        empty_value: the coordinates of a mask without any pixel.

    Returns:
        Boxes x1, y1, x2, y2 (n, 4), float32; the last column and row belong to the mask.
    """
    from torchvision.ops import masks_to_boxes  # here, since it takes seconds

    boxes = torch.full((len(masks), 4), float(empty_value), device=masks.device)
    inside = masks != 0
    present = inside.flatten(1).any(dim=1)
    if present.any():
        boxes[present] = masks_to_boxes(inside[present]).to(boxes)
    return boxes
