"""Scores of true objects that are matched with predictions of any order."""

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from ocl.metrics.means import MeanMetric
from ocl.metrics.utils import one_hot_argmax


def check_matching(matching: str) -> None:
    """Raise a ValueError if there is no such matching."""
    if matching not in ("hungarian", "best_overlap"):
        raise ValueError(f"Unknown matching {matching!r}: choose hungarian or best_overlap.")


def assign(ious: Tensor, present: Tensor) -> Tensor:
    """Match predictions (c, k) one to one with the present ones of k true objects; return the IoUs (k,)."""
    columns = present.nonzero().flatten()
    rows, order = linear_sum_assignment(ious[:, columns].numpy(), maximize=True)
    matched = torch.zeros_like(ious[0])
    matched[columns[order]] = ious[rows, columns[order]]
    return matched


class MatchedIoUMetric(MeanMetric):
    """Mean over samples of what the IoUs of their true objects with predictions say.

    The score of a sample is the mean over its true objects; samples without any do not count.

    Args:
        use_threshold: predictions are all scores above `threshold`, instead of the highest of every pixel.
        threshold: see above.
        matching: `hungarian`, every prediction serves one true object at most, and objects left over score 0; or
            `best_overlap`, every true object takes the best prediction.
        compute_discovery_fraction: the score is the fraction of true objects above `discovery_threshold`.
        correct_localization: the score is 1 if any true object is above `discovery_threshold`, otherwise 0.
        discovery_threshold: see above.

    Raises:
        ValueError: if the matching is unknown or two kinds of scores are asked for.
    """

    higher_is_better = True

    def __init__(
        self,
        use_threshold: bool = False,
        threshold: float = 0.5,
        matching: str = "hungarian",
        compute_discovery_fraction: bool = False,
        correct_localization: bool = False,
        discovery_threshold: float = 0.5,
    ):
        super().__init__()
        check_matching(matching)
        if compute_discovery_fraction and correct_localization:
            raise ValueError("Choose one of compute_discovery_fraction and correct_localization.")
        self.use_threshold, self.threshold, self.matching = use_threshold, threshold, matching
        self.compute_discovery_fraction, self.correct_localization = compute_discovery_fraction, correct_localization
        self.discovery_threshold = discovery_threshold

    def select(self, scores: Tensor) -> Tensor:
        """Turn scores (b, c, ...) into bool masks."""
        return scores > self.threshold if self.use_threshold else one_hot_argmax(scores)

    def add_matched(self, ious: Tensor, present: Tensor) -> None:
        """Add the samples that have any of the true objects (b, k), with IoUs (b, c, k)."""
        if self.matching == "best_overlap":
            matched = ious.amax(dim=1)
        else:
            matched = torch.stack([assign(table, kept) for table, kept in zip(ious.cpu(), present.cpu())]).to(ious)
        matched = matched.where(present, torch.nan)
        if self.correct_localization:
            scores = (matched > self.discovery_threshold).any(dim=1).to(ious)
        elif self.compute_discovery_fraction:
            scores = (matched > self.discovery_threshold).sum(dim=1) / present.sum(dim=1, dtype=ious.dtype)
        else:
            scores = matched.nanmean(dim=1)
        self.add_scores(scores[present.any(dim=1)])
