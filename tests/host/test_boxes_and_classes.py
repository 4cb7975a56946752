"""Metrics of boxes, tracks and classes, and matching; scipy, scikit-learn, torchvision and counts are the judges."""

import itertools

import pytest
import torch
from ocl import metrics
from ocl.matching import CPUHungarianMatcher
from ocl.metrics import masks, utils
from ocl.metrics.bbox import unsupervised_bbox_iou
from ocl.utils.bboxes import box_cxcywh_to_xyxy, box_xyxy_to_cxcywh
from ocl.utils.windows import JoinWindows
from sklearn.metrics import accuracy_score, adjusted_rand_score, confusion_matrix, jaccard_score
from torchvision.ops import box_convert
from torchvision.ops import box_iou as pairwise_iou


def boxes_image(*boxes, size=20):
    """Draw masks (k, s, s) of boxes x1, y1, x2, y2 whose last column and row belong to them."""
    image = torch.zeros(len(boxes), size, size)
    for mask, (left, top, right, bottom) in zip(image, boxes):
        mask[top : bottom + 1, left : right + 1] = 1
    return image


TRUE = [(1, 1, 6, 5), (10, 2, 15, 9), (3, 12, 8, 17)]
FOUND = [(10, 3, 16, 9), (2, 1, 6, 6), (14, 14, 18, 18), (1, 2, 5, 5)]


def scored(metric, *inputs):
    metric.update(*inputs)
    return float(metric.compute())


def test_boxes_around_masks():
    image = torch.cat([boxes_image(*TRUE), torch.zeros(1, 20, 20)])
    assert utils.masks_to_bboxes(image, empty_value=-2).tolist() == [*map(list, TRUE), [-2] * 4]
    assert utils.masks_to_bboxes(image[:0]).shape == (0, 4)


@pytest.mark.parametrize("is_mask", [False, True])
def test_iou_of_boxes(is_mask):
    found, true = torch.tensor(FOUND).double(), torch.tensor(TRUE).double()
    ious = pairwise_iou(found, true)
    best = max(sum(ious[row, k] for k, row in enumerate(rows)) / 3 for rows in itertools.permutations(range(4), 3))
    prediction = torch.cat([boxes_image(*FOUND), torch.zeros(1, 20, 20)]).unsqueeze(0)
    no_box = torch.tensor([[0.0] * 4, [-1.0] * 4], dtype=torch.float64)
    target = boxes_image(*TRUE).unsqueeze(0) if is_mask else torch.cat([no_box, true]).unsqueeze(0)
    given = target.clone()
    kind = {"target_is_mask": is_mask, "use_threshold": True}
    assert scored(metrics.UnsupervisedBboxIoUMetric(**kind), prediction, target) == pytest.approx(best)
    above = (ious.amax(0) > 0.5).double()
    assert scored(metrics.BboxRecallMetric(**kind), prediction, target) == pytest.approx(above.mean())
    assert scored(metrics.BboxCorLocMetric(**kind), prediction, target) == above.amax() == 1
    assert scored(metrics.BboxCorLocMetric(discovery_threshold=0.99, **kind), prediction, target) == 0
    video = prediction.unsqueeze(1).repeat(1, 2, 1, 1, 1), target.unsqueeze(1).repeat_interleave(2, dim=1)
    video[0][:, 1] = 0  # nothing is found in the second frame
    assert scored(metrics.UnsupervisedBboxIoUMetric(**kind), *video) == pytest.approx(best / 2)
    assert unsupervised_bbox_iou(found, true, "hungarian") == pytest.approx(best)
    assert unsupervised_bbox_iou(found, true, reduction="none").tolist() == pytest.approx(ious.amax(0).tolist())
    assert torch.equal(target, given)
    with pytest.raises(ValueError, match="boxes"):
        metrics.UnsupervisedBboxIoUMetric().update(prediction, boxes_image(*TRUE).unsqueeze(0))


def test_formats_of_boxes():
    corners = torch.tensor(TRUE).double()
    centres = box_convert(corners, "xyxy", "cxcywh")
    assert torch.equal(box_xyxy_to_cxcywh(corners), centres) and torch.equal(box_cxcywh_to_xyxy(centres), corners)


def test_tracking_counts_misses_strays_and_switches():
    first, second, stray, wall = TRUE[0], TRUE[1], FOUND[2], (0, 0, 19, 19)
    target = boxes_image(first, second).repeat(1, 4, 1, 1, 1)
    frames = [(first, second, wall), (first, second, stray), (second, first, wall), (first, stray, wall)]
    prediction = torch.stack([boxes_image(*frame) for frame in frames]).unsqueeze(0)
    # Eight objects; a stray twice, two switches there, one back, and one miss at the end.
    metric = metrics.MOTMetric()
    assert scored(metric, prediction, target) == pytest.approx(100 * (1 - (2 + 3 + 1) / 8))
    metric.update(target, target)
    assert float(metric.compute()) == pytest.approx(100 * (1 - 6 / 16))
    boxes = torch.tensor([[*map(list, (first, second)), [-1] * 4]] * 4).unsqueeze(0)
    assert scored(metrics.MOTMetric(target_is_mask=False), prediction, boxes) == pytest.approx(25)


def test_rand_index_and_iou_of_points():
    generator = torch.Generator().manual_seed(0)
    scores = torch.rand(3, 40, 4, generator=generator)
    true = torch.randint(3, (3, 40), generator=generator)
    one_hot = torch.nn.functional.one_hot(true, 3)
    predicted = scores.argmax(-1)
    expected = [adjusted_rand_score(t, p) for t, p in zip(true, predicted)]
    assert masks.adjusted_rand_index(scores, one_hot).tolist() == pytest.approx(expected)
    for background in range(3):
        kept = true != background
        expected = [adjusted_rand_score(t[k], p[k]) for t, p, k in zip(true, predicted, kept)]
        assert masks.fg_adjusted_rand_index(scores, one_hot, background).tolist() == pytest.approx(expected)
    chosen = utils.tensor_to_one_hot(scores, dim=2)
    assert torch.equal(chosen, torch.nn.functional.one_hot(predicted, 4))
    predictions, targets = chosen[0].T, one_hot[0].T
    ious = torch.tensor([[jaccard_score(t, p) for t in targets] for p in predictions]).double()
    best = max(sum(ious[row, k] for k, row in enumerate(rows)) / 3 for rows in itertools.permutations(range(4), 3))
    assert masks.unsupervised_mask_iou(predictions, targets) == pytest.approx(best)
    per_mask = masks.unsupervised_mask_iou(predictions, targets, "best_overlap", "none")
    assert per_mask.tolist() == pytest.approx(ious.amax(0).tolist())
    empty = torch.zeros(1, 40)
    assert masks.unsupervised_mask_iou(empty, empty, iou_empty=1.0) == 1


@pytest.mark.parametrize("matching", ["hungarian", "majority"])
@pytest.mark.parametrize("ignore_background", [False, True])
def test_classes_of_a_data_set(matching, ignore_background):
    generator = torch.Generator().manual_seed(1)
    true = torch.randint(3, (5, 1, 6, 6), generator=generator)
    noisy = torch.rand(true.shape, generator=generator) < 0.3
    objects = torch.where(noisy, torch.randint(4, true.shape, generator=generator), true)
    ids = torch.tensor([3, 1, 2, 4])  # of the objects; each class is found in most places
    kept = torch.rand(true.shape, generator=generator) < 0.8
    prediction = torch.nn.functional.one_hot(objects[:, 0], 4).movedim(-1, 1)
    metric = metrics.DatasetSemanticMaskIoUMetric(4, 2, matching=matching, ignore_background=ignore_background)
    for part in (slice(3), slice(3, None)):
        metric.update(prediction[part], true[part], ids.expand(5, 4)[part], ~kept[part])
    if ignore_background:
        kept &= true > 0
    found, true = ids[objects[kept]], true[kept]
    assert metric.confusion_mat[:, int(ignore_background) :].sum() == len(true)
    if matching == "majority":
        areas = confusion_matrix(true, found, labels=range(5))[int(ignore_background) : 3, 1:]
        union = areas.sum(0) + areas.sum(1, keepdims=True) - areas
        classes = torch.as_tensor((areas / union).argmax(0)) + int(ignore_background)
        renamed = classes[found - 1]
    else:  # every class is best matched with the cluster that most of it is in; the fourth is left over
        renamed = torch.tensor([9, 1, 2, 0, 9])[found]
    labels = [1, 2] if ignore_background else [0, 1, 2]
    iou, accuracy, is_missing = metric.compute()
    assert iou.tolist() == pytest.approx(jaccard_score(true, renamed, labels=labels, average=None).tolist())
    assert accuracy == pytest.approx(accuracy_score(true, renamed)) and not is_missing.any()
    assert torch.equal(metric.compute()[0], iou)


def test_background_of_classes_is_what_nothing_was_matched_with():
    true = torch.tensor([0, 0, 0, 1, 1, 2, 2]).view(1, 1, 1, 7)
    objects = torch.eye(5)[[0, 1, 2, 3, 3, 4, 0]].T.view(1, 5, 1, 7)
    metric = metrics.DatasetSemanticMaskIoUMetric(4, 2, use_unmatched_as_background=True)
    metric.update(objects, true, torch.tensor([[0, 1, 2, 3, 4]]))
    for _ in range(2):
        iou, accuracy, _ = metric.compute()
        assert iou.tolist() == pytest.approx([3 / 4, 1, 1 / 2]) and accuracy == pytest.approx(6 / 7)
    with pytest.raises(ValueError, match="Expected clusters 0 ... 4"):
        metric.update(objects, true, torch.tensor([[0, 1, 2, 3, 5]]))


@pytest.mark.parametrize("options", [{}, {"use_l2_normalization": True}, {"use_pca": True, "pca_dimensions": 2}])
def test_clustering_of_vectors(options):
    generator = torch.Generator().manual_seed(0)
    true = torch.arange(3).repeat(20)
    vectors = 5 * torch.eye(3, 4)[true] + 0.1 * torch.randn(60, 4, generator=generator)
    clustering = metrics.SklearnClustering(3, clustering_kwargs={"random_state": 0, "n_init": 3}, **options)
    with pytest.raises(ValueError, match="fit_predict first"):
        clustering.predict(vectors)
    clusters = clustering.fit_predict(vectors)
    assert adjusted_rand_score(true, clusters) == 1 and torch.equal(clustering.predict(vectors[:9]), clusters[:9])


def test_matching_finds_the_least_cost():
    costs = torch.rand(2, 3, 4, generator=torch.Generator().manual_seed(0), requires_grad=True)
    assignment, cost = CPUHungarianMatcher()(costs)
    for matrix, total in zip(costs, cost):
        assert total.item() == pytest.approx(
            min(sum(matrix[i, j].item() for i, j in enumerate(js)) for js in itertools.permutations(range(4), 3))
        )
    cost.sum().backward()
    assert torch.equal(costs.grad, assignment) and assignment.sum(2).eq(1).all()


def test_windows_are_joined_where_they_were_cut():
    image = torch.rand(2, 4, 6)
    padded = torch.nn.functional.pad(image, (1, 1, 2, 0))
    corners = [(left, top) for top in (-2, 1) for left in (-1, 3)]
    windows = torch.stack([padded[:, top + 2 : top + 5, left + 1 : left + 5] for left, top in corners])
    joined = JoinWindows(4, [4, 6])(windows, [f"name_7_{left}_{top}" for left, top in corners])
    assert joined.shape == (1, 8, 4, 6) and torch.equal(joined.view(4, 2, 4, 6).sum(0), image)
