"""Mask metrics and visualizations of the host; scikit-learn and brute force are the judges."""

import itertools

import numpy as np
import pytest
import torch
from ocl import metrics, visualization_types, visualizations
from sklearn.metrics import adjusted_rand_score, jaccard_score


def one_hot(ids, classes):
    return torch.stack([ids == index for index in range(classes)], dim=-3).float()


def random_ids(seed, shape=(4, 10, 12), true_classes=4, predicted_classes=5):
    """Draw true ids and predicted ones that agree with them in part."""
    rng = np.random.default_rng(seed)
    true = rng.integers(true_classes, size=shape)
    noise = rng.integers(predicted_classes, size=shape)
    predicted = np.where(rng.random(shape) < 0.5, (true + 1) % predicted_classes, noise)
    return torch.from_numpy(true), torch.from_numpy(predicted)


def score(metric, *masks, **options):
    metric.update(*masks, **options)
    value = metric.compute()
    assert value.dtype == torch.float64 and value.dim() == 0
    return value.item()


def mean_ari(true, predicted, kept):
    return np.mean([adjusted_rand_score(t[k], p[k]) for t, p, k in zip(true.numpy(), predicted.numpy(), kept.numpy())])


@pytest.mark.parametrize(
    "true, predicted",
    [
        (torch.zeros(1, 4, 4), torch.zeros(1, 4, 4)),  # one cluster each
        (torch.zeros(1, 4, 4), torch.arange(16).view(1, 4, 4)),  # one cluster against single pixels
        (torch.arange(16).view(1, 4, 4), torch.arange(16).flip(0).view(1, 4, 4)),  # single pixels each
    ],
)
def test_ari_of_degenerate_masks(true, predicted):
    expected = adjusted_rand_score(true.flatten(), predicted.flatten())
    assert score(metrics.ARIMetric(False), one_hot(predicted, 16), one_hot(true, 16)) == expected


def test_ari_without_any_foreground_is_perfect():
    prediction = torch.rand(1, 3, 4, 4)
    assert score(metrics.ARIMetric(), prediction, torch.ones(1, 1, 4, 4)) == 1
    assert score(metrics.ARIMetric(convert_target_one_hot=True), prediction, torch.zeros(1, 3, 4, 4)) == 1


MASK_METRICS = [
    metrics.ARIMetric(),
    metrics.ARIMetric(False),
    metrics.UnsupervisedMaskIoUMetric(),
    metrics.UnsupervisedMaskIoUMetric(use_threshold=True),
    metrics.AverageBestOverlapMetric(),
    metrics.BestOverlapObjectRecoveryMetric(),
    metrics.MaskCorLocMetric(),
]


@pytest.mark.parametrize("metric", MASK_METRICS, ids=repr)
@pytest.mark.parametrize("spoiled", ["prediction", "target", "ignore"])
@pytest.mark.parametrize("lead", [(2,), (2, 3)])
def test_nan_has_no_score(metric, spoiled, lead):
    """Not in one pixel; infinity does, since decoders mask slots by it."""
    masks = {"prediction": torch.rand(*lead, 3, 4, 4), "target": torch.zeros(*lead, 2, 4, 4)}
    masks["target"][..., 1, :, :2] = 1  # one object
    masks["ignore"] = torch.zeros(*lead, 1, 4, 4)
    masks["prediction"][..., 0, :, :] = -torch.inf
    metric.reset()
    metric.update(**masks)
    masks[spoiled][-1, ..., 0, 1, 1] = torch.nan
    with pytest.raises(ValueError, match=f"`{spoiled}` .* holds NaN"):
        metric.update(**masks)
    assert metric.count == len(lead[:1]) * 2


def test_nan_has_no_score_among_patches_and_no_statistic():
    with pytest.raises(ValueError, match="`prediction` .* holds NaN"):
        metrics.PatchARIMetric().update(torch.full((1, 3, 16), torch.nan), torch.ones(1, 2, 8, 8))
    for tensor in (torch.tensor(torch.nan), torch.tensor([[1.0, 2.0], [torch.nan, 0.0]])):
        with pytest.raises(ValueError, match="`tensor` .* holds NaN"):
            metrics.TensorStatistic().update(tensor)


def test_ari_of_dense_and_overlapping_masks():
    true, predicted = random_ids(1)
    target, prediction = one_hot(true, 4), one_hot(predicted, 5)
    everything = torch.ones_like(true, dtype=torch.bool)
    dense = (target * torch.tensor([9.0, 4.0, 4.0, 200.0]).view(4, 1, 1)).to(torch.uint8)
    value = score(metrics.ARIMetric(False, convert_target_one_hot=True), prediction, dense)
    assert value == pytest.approx(mean_ari(true, predicted, everything))
    target[:, 0, :3] = target[:, 1, :3] = 1
    everything[:, :3] = False
    value = score(metrics.ARIMetric(False, ignore_overlaps=True), prediction, target)
    assert value == pytest.approx(mean_ari(true, predicted, everything))
    for metric in (metrics.ARIMetric(False), metrics.UnsupervisedMaskIoUMetric()):
        with pytest.raises(ValueError, match="overlap"):
            metric.update(prediction, target)
        metric.update(prediction, target, ignore=~everything.unsqueeze(1))  # nobody asks about these pixels


def test_patch_ari_resizes_predictions():
    true, predicted = random_ids(2, (2, 4, 4))
    target = one_hot(true, 4).repeat_interleave(2, -1).repeat_interleave(2, -2)
    value = score(metrics.PatchARIMetric(False, "nearest"), one_hot(predicted, 5).flatten(2), target)
    large = predicted.repeat_interleave(2, -1).repeat_interleave(2, -2)
    assert value == pytest.approx(score(metrics.ARIMetric(False), one_hot(large, 5), target))


def iou_table(prediction, target):
    """IoU of all predicted with all true masks, both (K, H, W), by scikit-learn."""
    return np.array([[jaccard_score(t.flatten(), p.flatten(), zero_division=0) for t in target] for p in prediction])


def best_assignment(table):
    """Try all one-to-one matchings; return the IoU of every true mask."""
    n_predicted, n_true = table.shape
    candidates = []
    for order in itertools.permutations(range(max(n_predicted, n_true)), n_true):
        candidates.append([table[row, k] if row < n_predicted else 0.0 for k, row in enumerate(order)])
    return np.array(max(candidates, key=sum))


@pytest.mark.parametrize("predicted_classes", [2, 5])
def test_hungarian_iou_agrees_with_brute_force(predicted_classes):
    true, predicted = random_ids(3, predicted_classes=predicted_classes)
    target, prediction = one_hot(true, 4), one_hot(predicted, predicted_classes)
    matched = [best_assignment(iou_table(p, t)) for p, t in zip(prediction.bool(), target.bool())]
    assert score(metrics.UnsupervisedMaskIoUMetric(), prediction, target) == pytest.approx(np.mean(matched))
    fraction = metrics.UnsupervisedMaskIoUMetric(compute_discovery_fraction=True, discovery_threshold=0.2)
    assert score(fraction, prediction, target) == pytest.approx(np.mean(np.array(matched) > 0.2))


def test_best_overlap_family():
    true, predicted = random_ids(4, (6, 4, 5))
    target, prediction = one_hot(true, 4), one_hot(predicted, 5)
    best = np.array([iou_table(p, t).max(0) for p, t in zip(prediction.bool(), target.bool())])
    threshold = float(np.median(best.max(1)))
    found = best > threshold
    assert 0 < found.any(1).mean() < 1
    options = dict(discovery_threshold=threshold)
    mean = score(metrics.AverageBestOverlapMetric(), prediction, target)
    recovered = score(metrics.BestOverlapObjectRecoveryMetric(**options), prediction, target)
    localized = score(metrics.MaskCorLocMetric(**options), prediction, target)
    assert [mean, recovered, localized] == pytest.approx([best.mean(), found.mean(), found.any(1).mean()])
    foreground = score(metrics.AverageBestOverlapMetric(ignore_background=True), prediction, target)
    assert foreground == pytest.approx(best[:, 1:].mean())


def test_iou_of_thresholded_scores_and_of_videos():
    true, _ = random_ids(5, (2, 3, 6, 6))
    target, prediction = one_hot(true, 4), torch.rand(2, 3, 5, 6, 6)
    joint = [masks.movedim(2, 1).flatten(2, 3) for masks in (prediction > 0.7, target)]
    matched = [best_assignment(iou_table(p, t)) for p, t in zip(*(masks.bool() for masks in joint))]
    metric = metrics.UnsupervisedMaskIoUMetric(use_threshold=True, threshold=0.7)
    assert score(metric, prediction, target) == pytest.approx(np.mean(matched))


def test_absent_objects_and_empty_images_do_not_count():
    true, predicted = random_ids(6)
    target, prediction = one_hot(true, 4), one_hot(predicted, 5)
    for matching in ("hungarian", "best_overlap"):
        metric = metrics.UnsupervisedMaskIoUMetric(matching=matching)
        assert score(metric, prediction, torch.zeros_like(target)) == 0
        expected = score(metrics.UnsupervisedMaskIoUMetric(matching=matching), prediction, target)
        padded = torch.cat([torch.zeros_like(target), target], dim=1)
        assert score(metric, prediction, padded) == pytest.approx(expected)


def test_metrics_are_exact_under_autocast_and_average_over_samples():
    true, predicted = random_ids(7, (4, 80, 80))
    target, prediction = one_hot(true, 4), one_hot(predicted, 5)
    for cls in (metrics.ARIMetric, metrics.UnsupervisedMaskIoUMetric):
        at_once, in_parts = cls(), cls()
        expected = score(at_once, prediction, target)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            in_parts.update(prediction[:1], target[:1])
            in_parts.update(prediction=prediction[1:], target=target[1:])
        assert in_parts.compute().item() == pytest.approx(expected, abs=1e-12)
        with pytest.raises(ValueError, match="shapes"):
            at_once.update(prediction, target[..., 1:])
    with pytest.raises(ValueError, match="matching"):
        metrics.UnsupervisedMaskIoUMetric(matching="greedy")
    with pytest.raises(ValueError, match="one of"):
        metrics.MaskCorLocMetric(compute_discovery_fraction=True)


def test_tensor_statistic():
    metric = metrics.TensorStatistic(reduction="sum")
    metric.update(torch.ones(3, 2, 2))
    metric.update(torch.full((1, 8), 1.0))
    metric.update(torch.tensor([1.0, 2.0]))
    assert metric.compute() == (3 * 4 + 8 + 3) / 5


class Experiment:
    def __init__(self):
        self.added = {}

    def add_image(self, tag, img_tensor, global_step, dataformats):
        self.added[tag] = (img_tensor.shape, dataformats, global_step)

    def add_images(self, tag, img_tensor, global_step, dataformats):
        self.added[tag] = (img_tensor.shape, dataformats, global_step)

    def add_video(self, tag, vid_tensor, global_step, fps):
        self.added[tag] = (vid_tensor.shape, fps, global_step)

    def add_figure(self, tag, figure, global_step, close):
        self.added[tag] = (figure, close, global_step)


def test_visualizations_reach_an_experiment():
    experiment, images, video = Experiment(), torch.rand(3, 3, 4, 4), torch.rand(3, 2, 3, 4, 4)
    shown = {
        "image": visualizations.Image(n_instances=2)(images),
        "images": visualizations.Image(n_instances=2, as_grid=False)(images.bfloat16()),
        "video": visualizations.Video(fps=3)(video),
        "mask": visualizations.Mask()(images),
        "mask_video": visualizations.Mask(fps=5)(video),
        "figure": visualization_types.Figure("figure"),
    }
    for tag, visualization in shown.items():
        visualization.add_to_experiment(experiment, tag, global_step=7)
    assert experiment.added == {
        "image": ((3, 8, 14), "CHW", 7),
        "images": ((2, 3, 4, 4), "NCHW", 7),
        "video": ((1, 2, 3, 8, 20), 3, 7),
        "mask": ((3, 20, 20), "CHW", 7),
        "mask_video": ((1, 2, 3, 20, 20), 5, 7),
        "figure": ("figure", True, 7),
    }
    assert shown["images"].img_tensor.dtype == torch.float32  # NumPy knows no bfloat16


def test_objects_segments_and_flow_have_the_right_colors():
    masks = one_hot(torch.arange(16).view(1, 4, 4) % 2, 2).repeat(2, 1, 1, 1)
    red = torch.tensor([255.0, 0.0, 0.0]).view(3, 1, 1).expand(2, 2, 3, 4, 4)
    objects = visualizations.VisualObject(denormalization=lambda x: x / 255)
    picture = objects(red, masks)["reconstruction"].img_tensor
    assert picture[:, 2, 2].tolist() == [1, 0, 0, 1] and picture[:, 2, 8].tolist() == [1, 0, 0, 0]
    film = objects(red.unsqueeze(1), masks.unsqueeze(1))["reconstruction"].vid_tensor[0, 0]
    assert film[:, 2, 2].tolist() == [1, 0, 0] and film[:, 2, 8].tolist() == [1, 1, 1]
    segments = visualizations.Segmentation()(torch.zeros(2, 3, 4, 4), masks).img_tensor
    assert segments.dtype == torch.uint8 and not torch.equal(segments[:, 2, 2], segments[:, 2, 3])
    flow = torch.zeros(1, 2, 2, 2)
    flow[0, 0, 0, 0] = 3.0
    colors = visualizations.Flow(as_grid=False)(flow).img_tensor[0]
    assert colors[:, 0, 0].tolist() == [1, 0, 0] and (colors[:, 1] == 1).all()
    with pytest.raises(RuntimeError, match="shape"):
        objects(red[0], masks)
