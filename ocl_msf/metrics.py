"""Scores that the host does not have: mIoU by object size (Table 7) and object separability of guidance (Table 4).

ARI, mIoU and mBO are the host's (`ocl.metrics`). They equal scikit-learn's adjusted_rand_score and an assignment by
scipy's linear_sum_assignment for one sample, averaged over samples. Samples with nothing to score are left out of
them, and of ARI_fg those without foreground; OCLF's own `ARIMetric` counts these as 1. True masks without pixels
(padding) never count. A score of nothing at all is NaN; reports say null.
"""

from typing import List, Optional, Tuple, Union

import numpy as np
import torch
import torchmetrics
from scipy.optimize import linear_sum_assignment
from sklearn.cluster import KMeans

from ocl_msf._host import require_host

with require_host():
    from ocl.metrics import ARIMetric


def refuse_nan(**values: Optional[torch.Tensor]) -> None:
    """Refuse tensors with NaN, by name: NaN has no score, but would be given one.

    Raises:
        ValueError: one holds NaN.
    """
    for name, tensor in values.items():
        if tensor is not None and tensor.isnan().any():
            raise ValueError(
                f"`{name}` {tuple(tensor.shape)} holds NaN, which has no score. If it is an output of the model, its "
                "training has diverged: take an earlier checkpoint. Otherwise check the data."
            )


SIZES = {  # of objects, in pixels of the original image; as in COCO, an object on a limit belongs to both classes
    "small": (0, 32**2),
    "medium": (32**2, 96**2),
    "large": (96**2, float("inf")),
    "all": (0, float("inf")),
}


class ARI(ARIMetric):
    """Adjusted Rand index, the mean over the samples that have a pixel to score, as the literature reports ARI_fg.

    The host's `ARIMetric` counts a sample without such a pixel, an image of background alone in ARI_fg, as 1.

    Args:
        foreground: leave out the pixels of the first true mask (ARI_fg).
    """

    scored: torch.Tensor

    def __init__(self, foreground: bool = True):
        super().__init__(foreground=foreground)
        _add_sum(self, "scored", torch.int64)

    def update(self, prediction: torch.Tensor, target: torch.Tensor, ignore: Optional[torch.Tensor] = None) -> None:
        """Add samples.

        Args:
            prediction: scores (b, k, h, w), or (b, t, k, h, w): a video is scored jointly over its frames.
            target: true masks (b, n, h, w) or (b, t, n, h, w), positive inside, disjoint.
            ignore: (b, 1, h, w) or (b, t, 1, h, w), positive where pixels are ignored.

        Raises:
            ValueError: shapes do not fit, or something holds NaN.
        """
        refuse_nan(prediction=prediction, target=target, ignore=ignore)
        _check_masks(prediction, target, None, ignore)
        chosen = _have_pixels(target, ignore, self.foreground)
        self.scored += chosen.sum()
        if chosen.any():
            super().update(prediction[chosen], target[chosen], None if ignore is None else ignore[chosen])

    def compute(self) -> torch.Tensor:
        """The mean over samples, float64; NaN if there were none to score."""
        return super().compute() if self.scored > 0 else self.scored.double() * torch.nan


class ScoredSamples(torchmetrics.Metric):
    """How many samples have a pixel to score, and so count in `ARI`.

    Args:
        foreground: see `ARI`.
    """

    full_state_update = False
    is_differentiable = False
    scored: torch.Tensor

    def __init__(self, foreground: bool = True):
        super().__init__()
        self.foreground = foreground
        _add_sum(self, "scored", torch.int64)

    def update(self, target: torch.Tensor, ignore: Optional[torch.Tensor] = None) -> None:
        """Add samples: `target` and `ignore` as those of `ARI`."""
        self.scored += _have_pixels(target, ignore, self.foreground).sum()

    def compute(self) -> torch.Tensor:
        """The number, float64."""
        return self.scored.double()


class SizedMaskIoU(torchmetrics.Metric):
    """Mean IoU of true masks of one size (Table 7), matched one to one with predictions (Hungarian).

    All true masks of a sample are matched, and those of the size are scored; one without a match scores 0. The score
    of a sample is their mean, and the metric is the mean over the samples that have masks of the size, NaN without any.

    Args:
        size: "small", "medium" or "large" by COCO's limits of area, 32^2 and 96^2, both inclusive; or "all".
        ignore_background: leave out the first true mask.

    Raises:
        ValueError: size is none of the four.
    """

    full_state_update = False
    is_differentiable = False
    higher_is_better = True

    def __init__(self, size: str = "all", ignore_background: bool = False):
        super().__init__()
        if size not in SIZES:
            raise ValueError(f"size must be one of {', '.join(SIZES)}, got {size!r}.")
        self.limits = SIZES[size]
        self.ignore_background = ignore_background
        _add_sums(self, "total")

    def update(
        self,
        prediction: torch.Tensor,
        target: torch.Tensor,
        area: Optional[torch.Tensor] = None,
        ignore: Optional[torch.Tensor] = None,
    ) -> None:
        """Add samples.

        Args:
            prediction: scores (b, k, h, w), or (b, t, k, h, w): a video is scored jointly over its frames.
            target: true masks (b, n, h, w) or (b, t, n, h, w), positive inside, disjoint.
            area: (b, n), of the true masks, in pixels of the original image; by default that in `target`, the mean
                over the frames in which the object is visible.
            ignore: (b, 1, h, w) or (b, t, 1, h, w), positive where pixels are ignored.

        Raises:
            ValueError: shapes do not fit, or something holds NaN.
        """
        refuse_nan(prediction=prediction, target=target, area=area, ignore=ignore)
        _check_masks(prediction, target, area, ignore)
        target = target.detach() > 0
        if area is None:
            area = _areas(target)
        valid = _flatten(target).new_ones(1) if ignore is None else ~_flatten(ignore > 0)  # b 1 p
        segments = _flatten(prediction.detach()).argmax(1)  # b p
        predicted = torch.stack([segments == k for k in range(prediction.shape[-3])], 1) & valid  # b k p
        target = _flatten(target) & valid  # b n p
        if self.ignore_background:
            target, area = target[:, 1:], area[:, 1:]
        of_size = (area >= self.limits[0]) & (area <= self.limits[1]) & target.any(-1)  # b n
        for ious, present, scored in zip(_ious(predicted, target), target.any(-1), of_size):
            if scored.any():
                self.total += _match(ious.cpu().numpy(), present.cpu().numpy())[scored.cpu().numpy()].mean()
                self.count += 1

    def compute(self) -> torch.Tensor:
        """The mean over samples, 0 to 1, float64; NaN if no sample has masks of the size."""
        return self.total / self.count


class ObjectSeparability(torchmetrics.Metric):
    """Object separability of VAE guidance (section 4.2, Table 4); see `object_separability`.

    Args:
        distance: "inter" (higher is better) or "intra" (lower is better).
        num_clusters: clusters in an image, or in the set.
        over: "image": every image is clustered on its own, and images are averaged. "set": the super-pixels of all
            images, of all ranks, are clustered once; they are kept in memory until then.
        per_image: how many super-pixels of an image are clustered, evenly spaced in raster order; by default all. It
            bounds the memory that a set takes.

    Raises:
        ValueError: an argument is none of these.
    """

    full_state_update = False
    is_differentiable = False
    superpixels: Union[torch.Tensor, List[torch.Tensor]]

    def __init__(
        self, distance: str = "inter", num_clusters: int = 11, over: str = "image", per_image: Optional[int] = None
    ):
        super().__init__()
        too_few = num_clusters < 2 or (per_image is not None and per_image < 1)
        if distance not in ("inter", "intra") or over not in ("image", "set") or too_few:
            raise ValueError(
                "distance must be inter or intra, over image or set, num_clusters at least 2, per_image positive, "
                f"got {distance!r}, {over!r}, {num_clusters}, {per_image}."
            )
        self.index = ("inter", "intra").index(distance)
        self.num_clusters = num_clusters
        self.over = over
        self.per_image = per_image
        _add_sums(self, "total")
        self.add_state("superpixels", default=[], dist_reduce_fx="cat")

    def update(self, guidance: torch.Tensor) -> None:
        """Add guidance (b, c, h, w) or (b, t, c, h, w), finite; frames are images of their own.

        Raises:
            ValueError: another shape, NaN, or infinity.
        """
        images = _images(guidance).detach().flatten(2).transpose(1, 2)  # (b, h*w, c)
        if self.per_image is not None and self.per_image < images.shape[1]:
            places = torch.linspace(0, images.shape[1] - 1, self.per_image, dtype=torch.float64)
            images = images[:, places.round().long()]
        if self.over == "set":
            self.superpixels.append(images.flatten(0, 1).float())
            return
        scores = [_separate(image, self.num_clusters)[self.index] for image in images]
        self.total += sum(scores)
        self.count += len(scores)

    def compute(self) -> torch.Tensor:
        """The distance, in units of the guidance, float64; NaN if there was no guidance."""
        if self.over == "image":
            return self.total / self.count
        if len(self.superpixels) == 0:
            return torch.full_like(self.total, torch.nan)
        superpixels = self.superpixels if isinstance(self.superpixels, torch.Tensor) else torch.cat(self.superpixels)
        return self.total.new_tensor(_separate(superpixels, self.num_clusters)[self.index])


def object_separability(guidance: torch.Tensor, num_clusters: int = 11, over: str = "image") -> Tuple[float, float]:
    """Measure how well k-means separates the super-pixels of guidance (section 4.2, Table 4).

    The paper does not say how it clusters. Here k-means (k-means++, 4 starts, seed 0) finds `num_clusters` in the
    super-pixels, or as many as there are different ones; ClevrTex has up to 10 objects and a background. Distances
    are Euclidean, in units of the guidance, so they compare models only as far as those scale their codes alike.

    Args:
        guidance: X_1 (b, c, h, w), or (b, t, c, h, w).
        num_clusters: how many clusters.
        over: "image" or "set"; see ObjectSeparability.

    Returns:
        inter, the mean distance between cluster centres (higher is better), and intra, the mean distance of
        super-pixels to the centre of their cluster (lower is better). Where all super-pixels are alike, both are 0.
    """
    images = _images(guidance)
    if over == "set":
        return _separate(images.movedim(1, -1).flatten(0, -2), num_clusters)
    if over != "image":
        raise ValueError(f"over must be image or set, got {over!r}.")
    scores = [_separate(image.flatten(1).T, num_clusters) for image in images]
    inter, intra = np.mean(scores, axis=0)
    return float(inter), float(intra)


def _separate(superpixels: torch.Tensor, num_clusters: int) -> Tuple[float, float]:
    """Cluster super-pixels (n, c): the distances inter and intra."""
    points = superpixels.detach().double().cpu().numpy()
    clusters = min(num_clusters, len(np.unique(points, axis=0)))
    clustering = KMeans(clusters, n_init=4, random_state=0).fit(points)
    centres = clustering.cluster_centers_
    intra = np.linalg.norm(points - centres[clustering.labels_], axis=1).mean()
    first, second = np.triu_indices(clusters, 1)
    inter = np.linalg.norm(centres[first] - centres[second], axis=1).mean() if clusters > 1 else 0.0
    return float(inter), float(intra)


def _add_sums(metric: torchmetrics.Metric, name: str) -> None:
    _add_sum(metric, name, torch.float64)
    _add_sum(metric, "count", torch.int64)


def _add_sum(metric: torchmetrics.Metric, name: str, dtype: torch.dtype) -> None:
    metric.add_state(name, default=torch.zeros((), dtype=dtype), dist_reduce_fx="sum")


def _have_pixels(target: torch.Tensor, ignore: Optional[torch.Tensor], foreground: bool) -> torch.Tensor:
    """Which samples have a pixel to score in a true mask, the first left out if `foreground`: (b,), bool."""
    inside = _flatten(target > 0)[:, int(foreground) :]  # b n p
    return (inside if ignore is None else inside & ~_flatten(ignore > 0)).flatten(1).any(1)


def _images(guidance: torch.Tensor) -> torch.Tensor:
    if guidance.dim() not in (4, 5):
        raise ValueError(f"Expected guidance (b, c, h, w) or (b, t, c, h, w), got {tuple(guidance.shape)}.")
    if not guidance.isfinite().all():
        raise ValueError(
            f"`guidance` {tuple(guidance.shape)} holds NaN or infinity, which cannot be clustered: the training of the "
            "VAE has diverged. Take an earlier checkpoint, or check the data."
        )
    return guidance.flatten(0, 1) if guidance.dim() == 5 else guidance


def _check_masks(prediction, target, area, ignore) -> None:
    masks = [tuple(mask.shape) for mask in (prediction, target, ignore) if mask is not None]
    agree = prediction.dim() in (4, 5) and len({shape[:-3] + shape[-2:] for shape in masks}) == 1
    if not agree or (area is not None and tuple(area.shape) != (target.shape[0], target.shape[-3])):
        raise ValueError(
            "Expected predictions (b, k, h, w), true masks (b, n, h, w), areas (b, n) and pixels to ignore "
            f"(b, 1, h, w), or videos with an axis t behind b, got {masks}"
            + (f" and areas {tuple(area.shape)}." if area is not None else ".")
        )


def _flatten(masks: torch.Tensor) -> torch.Tensor:
    """(b, k, h, w) or (b, t, k, h, w) -> (b, k, pixels of all frames)."""
    return masks.movedim(-3, 1).flatten(2)


def _areas(target: torch.Tensor) -> torch.Tensor:
    """Number of pixels of true masks, the mean over the frames that show them: (b, n), float64."""
    pixels = target.flatten(-2).sum(-1, dtype=torch.float64)
    if pixels.dim() == 2:
        return pixels
    return pixels.sum(1) / (pixels > 0).sum(1).clamp(min=1)


def _ious(predicted: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """IoU of all pairs of masks (b, k, p) and (b, n, p): (b, k, n), float64."""
    predicted, target = predicted.double(), target.double()
    common = predicted @ target.transpose(1, 2)
    union = predicted.sum(-1).unsqueeze(2) + target.sum(-1).unsqueeze(1) - common
    return common / union.clamp(min=1)


def _match(ious: np.ndarray, present: np.ndarray) -> np.ndarray:
    """IoUs (k, n) -> the IoU of every true mask with the prediction matched to it, 0 without one (n,)."""
    columns = np.flatnonzero(present)
    rows, order = linear_sum_assignment(ious[:, columns], maximize=True)
    matched = np.zeros(len(present))
    matched[columns[order]] = ious[rows, columns[order]]
    return matched
