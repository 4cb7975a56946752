"""Metrics of classes that are only known once a whole data set was seen."""

from collections.abc import Mapping
from typing import Any, Optional

import numpy as np
import torch
import torchmetrics
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from ocl.errors import require
from ocl.metrics.means import refuse_nan
from ocl.metrics.utils import one_hot_argmax


def _iou_of_table(table: Tensor, true_areas: Tensor) -> Tensor:
    """Compute the IoU (m, k) of clusters and classes from common pixels (m, k) and the areas of the classes (k,)."""
    union = table.sum(dim=1, keepdim=True) + true_areas - table
    return table.to(torch.float64) / union.clamp(min=1)


class DatasetSemanticMaskIoUMetric(torchmetrics.Metric):
    """IoU per class of semantic segmentation by clusters, which are matched with classes over the whole data set.

    Args:
        n_predicted_classes: number of clusters; their ids count from 1, and 0 is no cluster.
        n_classes: number of classes; their ids count from 1, and 0 is background.
        use_threshold: objects are all scores above `threshold`, instead of the highest of every pixel; where they
            overlap, the highest cluster id wins.
        threshold: see above.
        matching: `hungarian`, one cluster per class; or `majority`, every cluster goes to the class that it overlaps
            best, and clusters of one class are merged.
        ignore_background: leave out background pixels.
        use_unmatched_as_background: background is no class to match, but predicted by pixels without a matched cluster.

    Raises:
        ValueError: if the matching is unknown, or options contradict each other.
    """

    full_state_update = is_differentiable = False
    confusion_mat: Tensor

    def __init__(
        self,
        n_predicted_classes: int,
        n_classes: int,
        use_threshold: bool = False,
        threshold: float = 0.5,
        matching: str = "hungarian",
        ignore_background: bool = False,
        use_unmatched_as_background: bool = False,
    ):
        super().__init__()
        if matching not in ("hungarian", "majority"):
            raise ValueError(f"Unknown matching {matching!r}: choose hungarian or majority.")
        if use_unmatched_as_background and (ignore_background or matching == "majority"):
            raise ValueError(
                "`use_unmatched_as_background` goes with the matching hungarian and without `ignore_background`."
            )
        self.n_predicted_classes, self.n_classes = n_predicted_classes, n_classes
        self.use_threshold, self.threshold, self.matching = use_threshold, threshold, matching
        self.ignore_background, self.use_unmatched_as_background = ignore_background, use_unmatched_as_background
        table = torch.zeros(n_predicted_classes + 1, n_classes + 1, dtype=torch.int64)
        self.add_state("confusion_mat", table, dist_reduce_fx="sum", persistent=True)

    def update(
        self, predictions: Tensor, targets: Tensor, prediction_class_ids: Tensor, ignore: Optional[Tensor] = None
    ) -> None:
        """Count the pixels that clusters and classes share.

        Args:
            predictions: scores of objects (b, c, h, w) or (b, t, c, h, w).
            targets: (b, k, h, w) or (b, t, k, h, w), the class id inside and 0 outside; the highest wins a pixel.
            prediction_class_ids: the cluster of each object (b, c) or (b, t, c).
            ignore: (b, 1, h, w) or (b, t, 1, h, w), true where pixels are left out.

        Raises:
            ValueError: if an id is too large, or something holds NaN.
        """
        refuse_nan(predictions=predictions, targets=targets)
        scores, true = predictions.flatten(0, -4).flatten(2), targets.flatten(0, -4).flatten(2).amax(dim=1).long()
        if self.use_threshold:
            objects = scores > self.threshold
        else:
            objects = one_hot_argmax(scores) & (scores.amax(dim=1, keepdim=True) != 0)
        ids = prediction_class_ids.flatten(0, -2).long()
        if (
            ids.numel()
            and int(ids.max()) > self.n_predicted_classes
            or true.numel()
            and int(true.max()) > self.n_classes
        ):
            raise ValueError(
                f"Expected clusters 0 ... {self.n_predicted_classes} and classes 0 ... {self.n_classes}, "
                f"got {int(ids.max())} and {int(true.max())}."
            )
        predicted = (objects * ids.unsqueeze(-1)).amax(dim=1)
        cells = predicted * (self.n_classes + 1) + true
        counted = cells if ignore is None else cells[ignore.flatten(0, -4).flatten(1) == 0]
        counts = torch.bincount(counted.flatten(), minlength=self.confusion_mat.numel())
        self.confusion_mat += counts.view_as(self.confusion_mat)

    def compute(self) -> tuple[Tensor, Tensor, Tensor]:
        """Return the IoU of each class, the accuracy, and for each class whether it has no pixels.

        The first and the last are (n_classes + 1,), or (n_classes,) if the background is left out.
        """
        table = self.confusion_mat[:, int(self.ignore_background) :]
        areas = table.sum(dim=0)
        if self.matching == "majority":
            iou, correct = self._merge(table[1:], areas)
        else:
            first = int(self.use_unmatched_as_background)
            iou, correct = torch.zeros_like(areas, dtype=torch.float64), torch.zeros_like(areas)
            ious = _iou_of_table(table[1:], areas)[:, first:]
            clusters, classes = (torch.as_tensor(i) for i in linear_sum_assignment(ious.cpu().numpy(), maximize=True))
            iou[classes + first], correct[classes + first] = (
                ious[clusters, classes],
                table[clusters + 1, classes + first],
            )
            if first:
                matched = torch.isin(torch.arange(len(table)), clusters + 1).to(table.device)
                background = table[~matched].sum(dim=0, keepdim=True)
                iou[0], correct[0] = _iou_of_table(background, areas)[0, 0], background[0, 0]
        return iou, correct.sum().to(torch.float64) / areas.sum(), areas == 0

    def _merge(self, table: Tensor, areas: Tensor) -> tuple[Tensor, Tensor]:
        """Merge clusters by the class that they overlap best; return IoUs and correct pixels (k,)."""
        best, classes = _iou_of_table(table, areas).max(dim=1)
        merged = torch.zeros(len(areas), len(areas), dtype=table.dtype, device=table.device)
        merged.index_add_(0, classes[best > 0], table[best > 0])
        best, classes = _iou_of_table(merged, areas).max(dim=1)
        iou, correct = torch.zeros_like(best), torch.zeros_like(areas)
        rows = (best > 0).nonzero().flatten()
        iou[classes[rows]], correct[classes[rows]] = best[rows], merged[rows, classes[rows]]
        return iou, correct


class SklearnClustering:
    """Clustering of vectors by scikit-learn.

    Args:
        n_clusters: number of clusters.
        method: `kmeans` or `spectral`, which cannot predict.
        clustering_kwargs: further arguments of the clustering.
        use_l2_normalization: divide vectors by their norms, behind PCA.
        use_pca: reduce vectors by PCA first.
        pca_dimensions: number of components, by default all.
        pca_kwargs: further arguments of PCA.

    Raises:
        ValueError: if the method is unknown.
        ImportError: if scikit-learn is not installed.
    """

    def __init__(
        self,
        n_clusters: int,
        method: str = "kmeans",
        clustering_kwargs: Optional[Mapping[str, Any]] = None,
        use_l2_normalization: bool = False,
        use_pca: bool = False,
        pca_dimensions: Optional[int] = None,
        pca_kwargs: Optional[Mapping[str, Any]] = None,
    ):
        if method not in ("kmeans", "spectral"):
            raise ValueError(f"Unknown clustering method {method!r}: choose kmeans or spectral.")
        require("sklearn", "clustering")
        self.n_clusters, self.method, self.clustering_kwargs = n_clusters, method, dict(clustering_kwargs or {})
        self.use_l2_normalization, self.use_pca = use_l2_normalization, use_pca
        self.pca_dimensions, self.pca_kwargs = pca_dimensions, dict(pca_kwargs or {})
        self._clustering: Any = None
        self._pca: Any = None

    def fit_predict(self, features: Tensor) -> Tensor:
        """Cluster vectors (n, d) anew; return their clusters (n,), int64."""
        from sklearn import cluster, decomposition

        kind = cluster.KMeans if self.method == "kmeans" else cluster.SpectralClustering
        self._clustering = kind(n_clusters=self.n_clusters, **self.clustering_kwargs)
        vectors = features.detach().cpu().numpy()
        if self.use_pca:
            self._pca = decomposition.PCA(n_components=self.pca_dimensions, **self.pca_kwargs)
            vectors = self._pca.fit_transform(vectors)
        return torch.from_numpy(self._clustering.fit_predict(self._normalize(vectors)).astype(np.int64))

    def predict(self, features: Tensor) -> Tensor:
        """Return the clusters (n,) of further vectors (n, d).

        Raises:
            ValueError: if there are no clusters yet.
        """
        if self._clustering is None:
            raise ValueError("There are no clusters yet: call fit_predict first.")
        vectors = features.detach().cpu().numpy()
        vectors = self._pca.transform(vectors) if self.use_pca else vectors
        return torch.from_numpy(self._clustering.predict(self._normalize(vectors)).astype(np.int64))

    def _normalize(self, vectors: np.ndarray) -> np.ndarray:
        if not self.use_l2_normalization:
            return vectors
        return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-8)
