"""Contract of `ocl.metrics` (masks, diagnosis) and `ocl.visualizations`."""

import math

import numpy as np
import pytest
import torch
from ocl import metrics as M
from ocl import visualization_types as VT
from ocl import visualizations as V
from scipy.optimize import linear_sum_assignment
from sklearn.metrics import adjusted_rand_score


def masks_from_ids(ids, classes):
    """(..., H, W) integer ids -> (..., K, H, W) one-hot float masks."""
    return torch.stack([ids == c for c in range(classes)], dim=-3).float()


def random_case(seed, lead=(3,), size=(8, 9), true_classes=4, pred_classes=5):
    generator = torch.Generator().manual_seed(seed)
    true_ids = torch.randint(0, true_classes, lead + size, generator=generator)
    # Predictions correlate with the truth, such that scores are not all near zero.
    noise = torch.randint(0, pred_classes, lead + size, generator=generator)
    keep = torch.rand(lead + size, generator=generator) < 0.6
    pred_ids = torch.where(keep, (true_ids + 1) % pred_classes, noise)
    logits = masks_from_ids(pred_ids, pred_classes) + 0.5 * torch.rand(
        lead + (pred_classes,) + size, generator=generator
    )
    return true_ids, pred_ids, masks_from_ids(true_ids, true_classes), logits.softmax(-3)


def sklearn_ari(true_ids, pred_ids, keep=None):
    scores = []
    for index in range(len(true_ids)):
        t, p = true_ids[index].flatten(), pred_ids[index].flatten()
        if keep is not None:
            selected = keep[index].flatten()
            t, p = t[selected], p[selected]
        scores.append(adjusted_rand_score(t.numpy(), p.numpy()))
    return float(np.mean(scores))


# ------------------------------------------------------------------------------------------------------------------ ARI


@pytest.mark.core
@pytest.mark.parametrize("lead", [(3,), (3, 4)])
def test_ari_agrees_with_sklearn(lead):
    true_ids, pred_ids, target, prediction = random_case(0, lead)
    metric = M.ARIMetric(foreground=False)
    metric.update(prediction, target)
    value = metric.compute()
    assert value.dtype == torch.float64 and value.dim() == 0
    # All frames of a video are scored jointly.
    assert value.item() == pytest.approx(sklearn_ari(true_ids, pred_ids), abs=1e-6)
    foreground = M.ARIMetric()
    foreground.update(prediction=prediction, target=target)
    expected = sklearn_ari(true_ids, pred_ids, true_ids > 0)
    assert foreground.compute().item() == pytest.approx(expected, abs=1e-6)


@pytest.mark.core
def test_ari_averages_over_samples_of_all_updates():
    cases = [random_case(seed, (n,)) for seed, n in ((1, 1), (2, 3))]
    metric = M.ARIMetric(foreground=False)
    for _, _, target, prediction in cases:
        metric.update(prediction, target)
    scores = [sklearn_ari(t[i : i + 1], p[i : i + 1]) for t, p, _, _ in cases for i in range(len(t))]
    assert metric.compute().item() == pytest.approx(np.mean(scores), abs=1e-6)
    metric.reset()
    _, _, target, prediction = cases[0]
    assert metric(prediction, target).item() == pytest.approx(scores[0], abs=1e-6)


@pytest.mark.core
def test_ari_ignores_pixels_without_target_and_explicit_ignore_masks():
    true_ids, pred_ids, target, prediction = random_case(3)
    unlabeled = torch.rand(true_ids.shape) < 0.3
    sparse = target * (~unlabeled[:, None])
    metric = M.ARIMetric(foreground=False)
    metric.update(prediction, sparse)
    expected = sklearn_ari(true_ids, pred_ids, ~unlabeled)
    assert metric.compute().item() == pytest.approx(expected, abs=1e-6)
    metric = M.ARIMetric(foreground=False)
    before = prediction.clone(), target.clone()
    metric.update(prediction, target, ignore=unlabeled[:, None].to(torch.uint8))
    assert metric.compute().item() == pytest.approx(expected, abs=1e-6)
    assert torch.equal(prediction, before[0]) and torch.equal(target, before[1])


@pytest.mark.core
def test_ari_ignore_mask_for_videos():
    true_ids, pred_ids, target, prediction = random_case(4, (2, 3))
    skip = torch.rand(true_ids.shape) < 0.3
    metric = M.ARIMetric(foreground=False)
    metric.update(prediction, target, ignore=skip[:, :, None])
    expected = sklearn_ari(true_ids, pred_ids, ~skip)
    assert metric.compute().item() == pytest.approx(expected, abs=1e-6)


@pytest.mark.core
def test_ari_degenerate_cases_count_as_perfect():
    ones = torch.ones(1, 1, 4, 4)
    metric = M.ARIMetric(foreground=False)
    metric.update(ones, ones)  # everything in one cluster
    assert metric.compute() == 1.0
    empty = M.ARIMetric()  # foreground only, but there is only background
    empty.update(torch.rand(1, 3, 4, 4), masks_from_ids(torch.zeros(1, 4, 4), 2))
    assert empty.compute() == 1.0


@pytest.mark.core
def test_ari_overlapping_targets():
    _, _, target, prediction = random_case(5)
    overlapping = target.clone()
    overlapping[:, 1, :2] = 1
    with pytest.raises((AssertionError, ValueError)):
        M.ARIMetric(foreground=False).update(prediction, overlapping)
    relaxed = M.ARIMetric(foreground=False, ignore_overlaps=True)
    relaxed.update(prediction, overlapping)
    reference = M.ARIMetric(foreground=False)
    unique = (overlapping > 0).sum(1, keepdim=True) == 1
    reference.update(prediction, overlapping * unique)
    assert relaxed.compute() == reference.compute()


@pytest.mark.core
def test_ari_converts_dense_class_masks():
    """Dense masks carry class ids as values, the padding object is all zero."""
    true_ids, pred_ids, target, prediction = random_case(6)
    labels = torch.tensor([3.0, 200.0, 1.0, 7.0]).view(1, 4, 1, 1)
    dense = torch.cat([target * labels, torch.zeros_like(target[:, :1])], dim=1)
    dense[:, :, 0, 0] = 0  # unlabeled pixels stay unlabeled
    metric = M.ARIMetric(foreground=False, convert_target_one_hot=True)
    metric.update(prediction, dense.to(torch.uint8))
    keep = torch.ones_like(true_ids, dtype=torch.bool)
    keep[:, 0, 0] = False
    assert metric.compute().item() == pytest.approx(sklearn_ari(true_ids, pred_ids, keep), abs=1e-6)


@pytest.mark.core
def test_ari_rejects_other_ranks():
    with pytest.raises(ValueError):
        M.ARIMetric().update(torch.rand(3, 8, 8), torch.rand(3, 8, 8))


@pytest.mark.core
def test_patch_ari_upsamples_predictions():
    generator = torch.Generator().manual_seed(0)
    patches = torch.rand(2, 5, 16, generator=generator)
    _, _, target, _ = random_case(7, (2,), (8, 8))
    metric = M.PatchARIMetric(foreground=False)
    metric.update(prediction=patches, target=target)
    image = torch.nn.functional.interpolate(patches.view(2, 5, 4, 4), size=8, mode="bilinear")
    reference = M.ARIMetric(foreground=False)
    reference.update(image, target)
    assert metric.compute() == reference.compute()
    nearest = M.PatchARIMetric(resize_masks_mode="nearest")
    nearest.update(patches, target)
    assert nearest.compute() <= 1.0


# ----------------------------------------------------------------------------------------------------------- IoU family


def iou_matrix(pred, true):
    """pred (C, N) bool, true (K, N) bool -> (C, K) IoU with empty unions counting zero."""
    matrix = np.zeros((len(pred), len(true)))
    for c in range(len(pred)):
        for k in range(len(true)):
            union = np.logical_or(pred[c], true[k]).sum()
            matrix[c, k] = np.logical_and(pred[c], true[k]).sum() / union if union else 0.0
    return matrix


def matched_ious(pred, true, matching):
    true = true[true.any(axis=1)]
    matrix = iou_matrix(pred, true)
    if matching == "best_overlap":
        return matrix.max(axis=0)
    ious = np.zeros(len(true))
    rows, cols = linear_sum_assignment(matrix, maximize=True)
    ious[cols] = matrix[rows, cols]
    return ious


def binary(masks):
    return masks.flatten(-2).numpy().astype(bool)


def expected_score(prediction, target, matching, reduce=np.mean, threshold=None):
    scores = []
    for p, t in zip(prediction, target):
        if threshold is None:
            p = masks_from_ids(p.argmax(0), len(p))
        else:
            p = p > threshold
        if t.any():
            scores.append(reduce(matched_ious(binary(p), binary(t > 0), matching)))
    return float(np.mean(scores)) if scores else 0.0


@pytest.mark.core
@pytest.mark.parametrize("matching", ["hungarian", "best_overlap"])
@pytest.mark.parametrize("pred_classes", [2, 5])
def test_unsupervised_iou(matching, pred_classes):
    _, _, target, prediction = random_case(8, pred_classes=pred_classes)
    metric = M.UnsupervisedMaskIoUMetric(matching=matching)
    metric.update(prediction=prediction, target=target)
    expected = expected_score(prediction, target, matching)
    assert metric.compute().item() == pytest.approx(expected, abs=1e-6)
    assert metric.compute().dtype == torch.float64
    # Averages are taken per image first, then over all images of all updates.
    metric.update(prediction[:1], target[:1])
    parts = [expected_score(prediction[i : i + 1], target[i : i + 1], matching) for i in (0, 1, 2, 0)]
    assert metric.compute().item() == pytest.approx(np.mean(parts), abs=1e-6)


@pytest.mark.core
def test_unsupervised_iou_threshold_and_background():
    _, _, target, prediction = random_case(9)
    metric = M.UnsupervisedMaskIoUMetric(use_threshold=True, threshold=0.25)
    metric.update(prediction, target)
    expected = expected_score(prediction, target, "hungarian", threshold=0.25)
    assert metric.compute().item() == pytest.approx(expected, abs=1e-6)
    metric = M.UnsupervisedMaskIoUMetric(ignore_background=True)
    metric.update(prediction, target)
    expected = expected_score(prediction, target[:, 1:], "hungarian")
    assert metric.compute().item() == pytest.approx(expected, abs=1e-6)


@pytest.mark.core
def test_unsupervised_iou_skips_padding_and_empty_images():
    _, _, target, prediction = random_case(10)
    padded = torch.cat([target, torch.zeros_like(target)], dim=1)
    metric = M.UnsupervisedMaskIoUMetric()
    metric.update(prediction, padded)
    expected = expected_score(prediction, target, "hungarian")
    assert metric.compute().item() == pytest.approx(expected, abs=1e-6)
    metric.update(prediction, torch.zeros_like(target))
    assert metric.compute().item() == pytest.approx(expected, abs=1e-6)
    nothing = M.UnsupervisedMaskIoUMetric()
    nothing.update(prediction, torch.zeros_like(target))
    assert nothing.compute() == 0.0


@pytest.mark.core
def test_unsupervised_iou_ignore_and_overlaps():
    _, _, target, prediction = random_case(11)
    skip = torch.rand(3, 1, 8, 9) < 0.3
    metric = M.UnsupervisedMaskIoUMetric()
    metric.update(prediction, target, ignore=skip)
    scores = []
    for p, t, s in zip(prediction, target, skip[:, 0]):
        p = masks_from_ids(p.argmax(0), len(p))
        keep = ~s.flatten().numpy()
        pairs = matched_ious(binary(p)[:, keep], binary(t)[:, keep], "hungarian")
        scores.append(pairs.mean())
    assert metric.compute().item() == pytest.approx(np.mean(scores), abs=1e-6)
    overlapping = target.clone()
    overlapping[:, 1, :2] = 1
    with pytest.raises((AssertionError, ValueError)):
        M.UnsupervisedMaskIoUMetric().update(prediction, overlapping)
    relaxed = M.UnsupervisedMaskIoUMetric(ignore_overlaps=True)
    relaxed.update(prediction, overlapping)
    reference = M.UnsupervisedMaskIoUMetric()
    reference.update(prediction, overlapping, ignore=overlapping.sum(1, keepdim=True) > 1)
    assert relaxed.compute() == reference.compute()


@pytest.mark.core
def test_unsupervised_iou_on_videos_needs_consistent_masks():
    _, _, target, prediction = random_case(12, (2, 3))
    metric = M.UnsupervisedMaskIoUMetric()
    metric.update(prediction, target)
    merged_prediction = prediction.transpose(1, 2).flatten(2, 3)
    merged_target = target.transpose(1, 2).flatten(2, 3)
    expected = expected_score(merged_prediction, merged_target, "hungarian")
    assert metric.compute().item() == pytest.approx(expected, abs=1e-6)


@pytest.mark.core
def test_discovery_and_localization_variants():
    _, _, target, prediction = random_case(13, (6,), (4, 4))
    threshold = 0.3

    def recovered(ious):
        return np.mean(ious > threshold)

    def localized(ious):
        return float(np.any(ious > threshold))

    cases = [
        (M.AverageBestOverlapMetric(), np.mean),
        (M.BestOverlapObjectRecoveryMetric(discovery_threshold=threshold), recovered),
        (M.MaskCorLocMetric(discovery_threshold=threshold), localized),
    ]
    for metric, reduce in cases:
        assert isinstance(metric, M.UnsupervisedMaskIoUMetric)
        metric.update(prediction, target)
        expected = expected_score(prediction, target, "best_overlap", reduce)
        assert metric.compute().item() == pytest.approx(expected, abs=1e-6)
    hungarian = M.UnsupervisedMaskIoUMetric(compute_discovery_fraction=True, discovery_threshold=threshold)
    hungarian.update(prediction, target)
    expected = expected_score(prediction, target, "hungarian", recovered)
    assert hungarian.compute().item() == pytest.approx(expected, abs=1e-6)
    foreground = M.AverageBestOverlapMetric(ignore_background=True)
    foreground.update(prediction, target)
    expected = expected_score(prediction, target[:, 1:], "best_overlap")
    assert foreground.compute().item() == pytest.approx(expected, abs=1e-6)


@pytest.mark.core
def test_iou_metric_argument_checks():
    with pytest.raises(ValueError):
        M.UnsupervisedMaskIoUMetric(matching="greedy")
    with pytest.raises(ValueError):
        M.UnsupervisedMaskIoUMetric(compute_discovery_fraction=True, correct_localization=True)
    with pytest.raises(ValueError):
        M.UnsupervisedMaskIoUMetric().update(torch.rand(3, 4, 4), torch.rand(3, 4, 4))


@pytest.mark.core
@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_tensor_statistic(reduction):
    metric = M.TensorStatistic(reduction=reduction)
    first, second = torch.rand(3, 4, 5), torch.rand(2, 4, 5)
    metric.update(first)
    metric.update(tensor=second)
    per_sample = torch.cat([first, second]).double().flatten(1)
    per_sample = per_sample.mean(1) if reduction == "mean" else per_sample.sum(1)
    assert metric.compute().item() == pytest.approx(per_sample.mean().item())
    scalar = M.TensorStatistic()
    scalar.update(torch.tensor(3.0))
    assert scalar.compute() == 3.0
    with pytest.raises(ValueError):
        M.TensorStatistic(reduction="median")


# ------------------------------------------------------------------------------------------------------- visualizations


def grid_shape(count, per_row, height, width, pad=2):
    columns = min(count, per_row)
    rows = math.ceil(count / columns)
    return (rows * (height + pad) + pad, columns * (width + pad) + pad)


def cell(grid, row, column, height, width, pad=2):
    top, left = pad + row * (height + pad), pad + column * (width + pad)
    return grid[..., top : top + height, left : left + width]


def halve(tensor):
    return tensor * 0.5


@pytest.mark.core
def test_image_visualization():
    image = torch.rand(5, 3, 4, 6)
    vis = V.Image(n_instances=3, n_row=2, denormalization=halve)(image=image)
    assert isinstance(vis, VT.Image) and vis.dataformats == "CHW"
    assert vis.img_tensor.shape == (3,) + grid_shape(3, 2, 4, 6)
    assert torch.equal(cell(vis.img_tensor, 0, 1, 4, 6), image[1] * 0.5)
    assert torch.equal(cell(vis.img_tensor, 1, 0, 4, 6), image[2] * 0.5)
    images = V.Image(n_instances=3, as_grid=False)(image)
    assert isinstance(images, VT.Images) and images.dataformats == "NCHW"
    assert torch.equal(images.img_tensor, image[:3])


@pytest.mark.core
def test_mask_visualization():
    masks = torch.rand(3, 5, 4, 6)
    vis = V.Mask(n_instances=2)(mask=masks)
    assert isinstance(vis, VT.Image)
    assert vis.img_tensor.shape == (3,) + grid_shape(10, 5, 4, 6)  # one row per instance
    assert torch.allclose(cell(vis.img_tensor, 1, 2, 4, 6)[0], 1 - masks[1, 2])
    video = V.Mask(n_instances=2, fps=7)(torch.rand(3, 8, 5, 4, 6))
    assert isinstance(video, VT.Video) and video.fps == 7
    assert video.vid_tensor.shape == (1, 8, 3) + grid_shape(10, 5, 4, 6)
    with pytest.raises(RuntimeError):
        V.Mask()(torch.rand(4, 4, 4))


@pytest.mark.core
def test_video_visualization():
    video = torch.rand(4, 5, 3, 4, 6)
    vis = V.Video(n_instances=3, n_row=3, denormalization=halve, fps=3)(video=video)
    assert isinstance(vis, VT.Video) and vis.fps == 3
    assert vis.vid_tensor.shape == (1, 5, 3) + grid_shape(3, 3, 4, 6)
    assert torch.allclose(cell(vis.vid_tensor[0, 4], 0, 2, 4, 6), video[2, 4] * 0.5)
    assert torch.equal(V.Video(n_instances=2, as_grid=False)(video).vid_tensor, video[:2])


@pytest.mark.core
def test_visual_object_visualization():
    objects, masks = torch.rand(3, 5, 3, 4, 6), torch.rand(3, 5, 4, 6)
    vis = V.VisualObject(n_instances=2, denormalization=halve)(object=objects, mask=masks)
    assert set(vis) == {"reconstruction", "mask"}
    rgba = vis["reconstruction"].img_tensor
    assert rgba.shape == (4,) + grid_shape(10, 5, 4, 6)  # the mask serves as alpha channel
    assert torch.allclose(cell(rgba, 1, 3, 4, 6), torch.cat([objects[1, 3] * 0.5, masks[1, 3:4]]))
    assert torch.allclose(cell(vis["mask"].img_tensor, 0, 4, 4, 6)[0], 1 - masks[0, 4])
    objects, masks = torch.rand(2, 7, 5, 3, 4, 6), torch.rand(2, 7, 5, 4, 6)
    vis = V.VisualObject(fps=2)(objects, masks)
    assert all(isinstance(v, VT.Video) and v.fps == 2 for v in vis.values())
    frame = vis["reconstruction"].vid_tensor[0, 6]
    alpha = masks[1, 6, 2]
    expected = objects[1, 6, 2] * alpha + (1 - alpha)  # pasted onto white
    assert torch.allclose(cell(frame, 1, 2, 4, 6), expected, atol=1e-6)
    with pytest.raises(RuntimeError):
        V.VisualObject()(torch.rand(2, 3, 4, 6), torch.rand(2, 4, 6))


@pytest.mark.core
@pytest.mark.parametrize("classes", [3, 24])
def test_segmentation_visualization(classes):
    ids = torch.arange(classes).repeat_interleave(8).view(1, classes, 8).repeat(2, 1, 1)
    vis = V.Segmentation(n_instances=2)(image=torch.full((2, 3, classes, 8), 0.5), mask=masks_from_ids(ids, classes))
    assert isinstance(vis, VT.Image) and vis.img_tensor.dtype == torch.uint8
    assert vis.img_tensor.shape == (3,) + grid_shape(2, 8, classes, 8)
    picture = cell(vis.img_tensor, 0, 1, classes, 8)
    colors = {tuple(picture[:, row, 0].tolist()) for row in range(classes)}
    assert len(colors) > classes // 2  # classes are told apart by color
    assert all(torch.equal(picture[:, r], picture[:, r, :1].expand(3, 8)) for r in range(classes))
    assert V.Segmentation()(torch.rand(1, 2, 3, 8, 8), torch.rand(1, 2, 3, 8, 8)) is None


@pytest.mark.compat
def test_flow_visualization():
    still = V.Flow()(torch.zeros(2, 2, 4, 6))
    assert isinstance(still, VT.Image) and torch.all(cell(still.img_tensor, 0, 1, 4, 6) == 1.0)
    assert V.Flow(as_grid=False, n_instances=1)(torch.rand(2, 2, 4, 6)).img_tensor.shape == (1, 3, 4, 6)


class Recorder:
    def __init__(self):
        self.calls = []

    def __getattr__(self, name):
        return lambda **kwargs: self.calls.append((name, kwargs))


@pytest.mark.core
def test_visualizations_write_themselves_to_the_experiment():
    recorder = Recorder()
    tensor = torch.rand(1)
    VT.Image(tensor).add_to_experiment(experiment=recorder, tag="a/b", global_step=3)
    VT.Images(tensor).add_to_experiment(recorder, "c", 4)
    VT.Video(tensor).add_to_experiment(recorder, "d", 5)
    VT.Figure("figure").add_to_experiment(recorder, "e", 6)
    assert recorder.calls == [
        ("add_image", dict(img_tensor=tensor, dataformats="CHW", tag="a/b", global_step=3)),
        ("add_images", dict(img_tensor=tensor, dataformats="NCHW", tag="c", global_step=4)),
        ("add_video", dict(vid_tensor=tensor, fps=4, tag="d", global_step=5)),
        ("add_figure", dict(figure="figure", close=True, tag="e", global_step=6)),
    ]
    assert all(issubclass(c, VT.Visualization) for c in (VT.Image, VT.Images, VT.Video, VT.Figure))


@pytest.mark.core
def test_visualization_method_is_the_abstract_base():
    with pytest.raises(TypeError):
        V.VisualizationMethod()
    for cls in (V.Image, V.Video, V.Mask, V.VisualObject, V.Segmentation):
        assert issubclass(cls, V.VisualizationMethod)
