"""Scores; scikit-learn, scipy and the definitions themselves are the judges."""

import itertools
import json
from functools import partial

import numpy as np
import pytest
import torch
from ocl import metrics as host
from scipy.optimize import linear_sum_assignment
from scipy.spatial.distance import pdist
from sklearn.cluster import KMeans
from sklearn.metrics import adjusted_rand_score, jaccard_score

from ocl_msf.instruments import Instrument, sum_errors
from ocl_msf.metrics import ARI, ObjectSeparability, ScoredSamples, SizedMaskIoU, object_separability

pytestmark = [pytest.mark.needs_host, pytest.mark.oclf]


def masks(ids, number):
    return torch.stack([torch.as_tensor(ids) == k for k in range(number)], -3).float()


def draw(seed, shape, true_number, predicted_number):
    rng = np.random.default_rng(seed)
    true = rng.integers(true_number, size=shape)
    noise = rng.integers(predicted_number, size=shape)
    return true, np.where(rng.random(shape) < 0.5, np.minimum(true, predicted_number - 1), noise)


def iou_table(true, predicted, true_number, predicted_number, counted):
    """IoUs (k, n) of one sample, by scikit-learn."""
    true, predicted = true[counted], predicted[counted]
    return np.array(
        [
            [jaccard_score(true == n, predicted == k, zero_division=0) for n in range(true_number)]
            for k in range(predicted_number)
        ]
    )


def judge(true, predicted, true_number, predicted_number, ignored):
    """ARI, ARI_fg, mIoU, mBO as means over samples."""
    rows = []
    for t, p, i in zip(true, predicted, ignored):
        ious = iou_table(t, p, true_number, predicted_number, ~i)
        ious = ious[:, [n for n in range(true_number) if (t[~i] == n).any()]]
        matched = ious[linear_sum_assignment(-ious)].sum() / ious.shape[1]
        front = ~i & (t > 0)
        ari_fg = adjusted_rand_score(t[front], p[front])
        rows.append([adjusted_rand_score(t[~i], p[~i]), ari_fg, matched, ious.max(0).mean()])
    return np.mean(rows, axis=0)


@pytest.mark.parametrize("true_number, predicted_number", [(4, 4), (3, 7), (7, 3), (1, 5), (5, 1), (1, 1)])
@pytest.mark.parametrize("shape", [(3, 6, 7), (2, 3, 6, 7)])
@pytest.mark.parametrize("void", [False, True])
def test_host_scores_are_exact(true_number, predicted_number, shape, void):
    """Random masks; one segment, an empty foreground, more slots than objects and fewer; padding and void pixels."""
    true, predicted = draw(0, shape, true_number, predicted_number)
    ignored = (np.random.default_rng(1).random(shape) < 0.3) & void
    padded = masks(true, true_number + 2)
    expected = judge(true, predicted, true_number, predicted_number, ignored)
    scores = [
        host.ARIMetric(False),
        host.ARIMetric(),
        host.UnsupervisedMaskIoUMetric(),
        host.AverageBestOverlapMetric(),
    ]
    for score, value in zip(scores, expected):
        score.update(masks(predicted, predicted_number), padded, torch.from_numpy(ignored).unsqueeze(-3))
        assert score.compute().item() == pytest.approx(value, abs=1e-12)


@pytest.mark.parametrize("shape", [(3, 6, 7), (2, 3, 6, 7)])
def test_miou_of_all_sizes_is_miou(shape):
    true, predicted = draw(2, shape, 5, 4)
    ignored = torch.rand(shape).unsqueeze(-3) < 0.2
    for background in (False, True):
        ours, theirs = (
            SizedMaskIoU(ignore_background=background),
            host.UnsupervisedMaskIoUMetric(ignore_background=background),
        )
        ours.update(masks(predicted, 4), masks(true, 7), ignore=ignored)
        theirs.update(masks(predicted, 4), masks(true, 7), ignored)
        assert 0 < ours.compute().item() == pytest.approx(theirs.compute().item(), abs=1e-12)


def sized_reference(size, true, predicted, true_number, predicted_number, area, ignored):
    """Mean IoU of the true masks of a size: matched by scipy with IoUs by scikit-learn, counted by their area."""
    low, high = {"small": (0, 1024), "medium": (1024, 9216), "large": (9216, np.inf), "all": (0, np.inf)}[size]
    scores = []
    for t, p, a, i in zip(true, predicted, area, ignored):
        present = [n for n in range(true_number) if (t[~i] == n).any()]
        ious = iou_table(t, p, true_number, predicted_number, ~i)[:, present]
        matched = np.zeros(true_number)
        for row, column in zip(*linear_sum_assignment(-ious)):
            matched[present[column]] = ious[row, column]
        counted = [matched[n] for n in present if low <= a[n] <= high]
        scores += [np.mean(counted)] if counted else []
    return np.mean(scores) if scores else np.nan


@pytest.mark.parametrize("size", ["small", "medium", "large", "all"])
@pytest.mark.parametrize("true_number, predicted_number", [(4, 4), (3, 7), (7, 3), (1, 5), (5, 1), (1, 1)])
@pytest.mark.parametrize("shape", [(3, 6, 7), (2, 3, 6, 7)])
@pytest.mark.parametrize("void", [False, True])
def test_sizes_are_exact(size, true_number, predicted_number, shape, void):
    """Random masks with areas around the limits and on them, void pixels, padding, images and videos."""
    true, predicted = draw(5, shape, true_number, predicted_number)
    rng = np.random.default_rng(6)
    ignored = (rng.random(shape) < 0.4) & void
    area = rng.choice([0.0, 1023.5, 1024.0, 1025.0, 9216.0, 9217.0, 1e5], (shape[0], true_number + 2))
    score = SizedMaskIoU(size)
    masked = torch.from_numpy(ignored).unsqueeze(-3)
    score.update(masks(predicted, predicted_number), masks(true, true_number + 2), torch.from_numpy(area), masked)
    expected = sized_reference(size, true, predicted, true_number, predicted_number, area, ignored)
    assert score.compute().item() == pytest.approx(expected, abs=1e-12, nan_ok=True)


def test_images_that_are_void_everywhere_change_no_score_but_ari():
    """ARI counts all of no pairs of pixels as right; the others leave out what has no true masks."""
    true, predicted = draw(7, (2, 6, 7), 4, 4)
    void = torch.zeros(2, 1, 6, 7, dtype=torch.bool)
    void[1] = True
    for make, of_void in [
        (partial(host.ARIMetric, False), 1.0),
        (host.ARIMetric, 1.0),
        (host.UnsupervisedMaskIoUMetric, None),
        (host.AverageBestOverlapMetric, None),
        (SizedMaskIoU, None),
    ]:
        one, both = make(), make()
        one.update(masks(predicted[:1], 4), masks(true[:1], 4))
        both.update(masks(predicted, 4), masks(true, 4), ignore=void)
        expected = one.compute().item() if of_void is None else (one.compute().item() + of_void) / 2
        assert both.compute().item() == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("shape", [(5, 6, 7), (5, 3, 6, 7)])
@pytest.mark.parametrize("foreground", [True, False])
def test_ari_is_the_mean_over_the_samples_with_something_to_score(shape, foreground):
    """Of five, one shows no object, one is void everywhere, one where its objects are; the host counts these as 1."""
    true, predicted = draw(10, shape, 4, 3)
    true[1] = 0
    ignored = np.zeros(shape, bool)
    ignored[2], ignored[3] = True, true[3] > 0
    scores = []
    for t, p, i in zip(true, predicted, ignored):
        counted = ~i & (t > 0) if foreground else ~i
        scores += [adjusted_rand_score(t[counted], p[counted])] if counted.any() else []
    assert len(scores) == (2 if foreground else 4)
    inputs = masks(predicted, 3), masks(true, 6), torch.from_numpy(ignored).unsqueeze(-3)
    ours, theirs, count = ARI(foreground), host.ARIMetric(foreground), ScoredSamples(foreground)
    for order in ([1, 2], [0, 3, 4]):  # nothing to score in the first batch
        batch = [x[order] for x in inputs]
        for metric, arguments in ((ours, batch), (theirs, batch), (count, batch[1:])):
            metric.update(*arguments)
    assert count.compute() == len(scores)
    assert ours.compute().item() == pytest.approx(np.mean(scores), abs=1e-12)
    assert theirs.compute().item() == pytest.approx((sum(scores) + 5 - len(scores)) / 5, abs=1e-12)


def test_ari_without_any_sample_to_score_is_not_defined():
    for target in (masks(np.zeros((2, 4, 4), int), 3), torch.ones(2, 1, 4, 4)):
        metric, count = ARI(), ScoredSamples()
        metric.update(torch.rand(2, 3, 4, 4), target)
        count.update(target)
        assert metric.compute().isnan() and count.compute() == 0
    with pytest.raises(ValueError, match="Expected predictions"):
        ARI().update(torch.rand(2, 3, 4, 4), torch.ones(2, 3, 4, 5))


def test_a_sample_without_true_masks_is_left_out_of_overlaps():
    true, predicted = draw(8, (1, 6, 7), 4, 4)
    for make in (host.UnsupervisedMaskIoUMetric, host.AverageBestOverlapMetric, SizedMaskIoU):
        one, both = make(), make()
        one.update(masks(predicted, 4), masks(true, 4))
        both.update(masks(predicted, 4), masks(true, 4))
        both.update(masks(predicted, 4), torch.zeros(1, 4, 6, 7))
        assert both.compute() == one.compute() > 0


def test_soft_masks_count_as_their_highest_slot_and_ties_as_the_first():
    true, predicted = draw(9, (2, 6, 7), 4, 5)
    hard = masks(predicted, 5)
    soft = 0.2 * torch.rand(hard.shape, generator=torch.Generator().manual_seed(0)) + 0.3 * hard
    tied = torch.cat([hard, hard], 1)
    makers = (partial(host.ARIMetric, False), host.ARIMetric, host.UnsupervisedMaskIoUMetric)
    for make in (*makers, host.AverageBestOverlapMetric, SizedMaskIoU):
        values = []
        for prediction in (hard, soft, tied):
            score = make()
            score.update(prediction, masks(true, 4))
            values.append(score.compute().item())
        assert values == pytest.approx([values[0]] * 3, abs=1e-12)


def scene():
    """One image: objects of 31x32, 32x32, 96x96 and 100x100 pixels on ground; predictions cut each in half."""
    true = np.zeros((1, 140, 340), dtype=int)
    for index, (height, width, left) in enumerate([(31, 32, 0), (32, 32, 40), (96, 96, 80), (100, 100, 180)], 1):
        true[0, :height, left : left + width] = index
    predicted = true.copy()
    predicted[:, :, 56:72] = 0  # half of object 2
    predicted[:, :, 80:128] = 0  # half of object 3
    return true, predicted


def test_a_size_counts_its_objects_and_those_on_its_limits():
    true, predicted = scene()
    expected = {"small": (1 + 0.5) / 2, "medium": (0.5 + 0.5) / 2, "large": (0.5 + 1) / 2}
    for size, value in expected.items():
        score = SizedMaskIoU(size, ignore_background=True)
        score.update(masks(predicted, 5), masks(true, 6))
        assert score.compute().item() == pytest.approx(value)


def test_given_areas_decide_the_size():
    true, predicted = scene()
    score = SizedMaskIoU("small", ignore_background=True)
    area = torch.tensor([[9e9, 2000, 2000, 1000, 2000]])
    score.update(masks(predicted, 5), masks(true, 5), area=area)
    assert score.compute().item() == pytest.approx(0.5)  # object 3 alone


def test_samples_without_the_size_do_not_count():
    true, predicted = scene()
    score = SizedMaskIoU("small", ignore_background=True)
    score.update(masks(predicted, 5), masks(true, 5))
    before = score.compute().item()
    score.update(masks(true * 0, 5), masks(true * 0, 5))
    assert score.compute().item() == before
    empty = SizedMaskIoU("small", ignore_background=True)
    empty.update(masks(true * 0, 5), masks(true * 0, 5))
    assert empty.compute().isnan()


def test_an_object_of_a_video_is_as_large_as_in_the_frames_that_show_it():
    target = torch.zeros(1, 4, 1, 40, 40)
    target[:, 0, :, :30, :30] = 1  # 900 pixels in one frame, 1600 in another
    target[:, 1] = 1
    for size, value in {"small": float("nan"), "medium": 1}.items():
        score = SizedMaskIoU(size)
        score.update(torch.cat([target, 1 - target], 2), target)
        assert score.compute().item() == pytest.approx(value, nan_ok=True)


@pytest.mark.parametrize("wrong", ["size", "target", "area", "rank"])
def test_wrong_input_is_named(wrong):
    if wrong == "size":
        with pytest.raises(ValueError, match="small, medium, large"):
            SizedMaskIoU("tiny")
        return
    prediction, target, area = torch.zeros(2, 3, 4, 4), torch.zeros(2, 2, 4, 4), torch.zeros(2, 2)
    target = target[..., :3] if wrong == "target" else target
    area = area[:, :1] if wrong == "area" else area
    prediction = prediction[0] if wrong == "rank" else prediction
    with pytest.raises(ValueError, match="Expected predictions"):
        SizedMaskIoU().update(prediction, target, area)


def blobs(spread, number=2):
    """Images of three quarters around known centres, (b, 2, 8, 8); the centres are 3, 4 and 5 apart."""
    centres = torch.tensor([[0.0, 0.0], [3.0, 0.0], [0.0, 4.0]])
    ids = torch.arange(64).view(8, 8) % 3
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(number, 8, 8, 2, generator=generator)
    return (centres[ids] + spread * noise / noise.norm(dim=-1, keepdim=True)).permute(0, 3, 1, 2)


def test_separability_of_known_clusters():
    assert object_separability(blobs(0), 3) == pytest.approx((4, 0), abs=1e-6)
    inter, intra = object_separability(blobs(0.1), 3)
    assert inter == pytest.approx(4, abs=0.1) and intra == pytest.approx(0.1, abs=0.02)
    assert object_separability(2 * blobs(0.1), 3) == pytest.approx((2 * inter, 2 * intra))


@pytest.mark.parametrize("over", ["image", "set"])
def test_separability_is_what_scikit_learn_clusters(over):
    maps = torch.randn(3, 5, 6, 7, generator=torch.Generator().manual_seed(1))
    rows = [image.reshape(5, -1).T.double().numpy() for image in maps]
    inter, intra = [], []
    for points in rows if over == "image" else [np.concatenate(rows)]:
        found = KMeans(4, n_init=4, random_state=0).fit(points)
        inter.append(pdist(found.cluster_centers_).mean())
        intra.append(found.transform(points).min(1).mean())
    assert object_separability(maps, 4, over) == pytest.approx((np.mean(inter), np.mean(intra)), rel=1e-9)


def test_some_super_pixels_of_every_image_stand_for_it():
    """Of 16 in a row, 6 are every third; as many as there are, or more, are all."""
    maps = torch.randn(3, 5, 1, 16, generator=torch.Generator().manual_seed(2))
    for number, chosen in ((6, maps[..., ::3]), (16, maps), (99, maps)):
        metric = ObjectSeparability("intra", 3, "set", number)
        metric.update(maps)
        assert metric.compute().item() == pytest.approx(object_separability(chosen, 3, "set")[1], rel=1e-6)


def test_clusters_of_an_image_and_of_the_set_differ():
    """Two images, each of two values of its own."""
    first = torch.arange(16).view(1, 1, 4, 4) % 2 * 1.0
    images = torch.cat([first, first + 10])
    assert object_separability(images, 2) == pytest.approx((1, 0))
    assert object_separability(images, 2, over="set") == pytest.approx((10, 0.5))


def test_fewer_values_than_clusters():
    assert object_separability(blobs(0), 11) == pytest.approx((4, 0), abs=1e-6)
    assert object_separability(torch.ones(2, 5, 4, 4), 11) == (0, 0)


@pytest.mark.parametrize("over", ["image", "set"])
def test_metric_agrees_with_function(over):
    maps = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    expected = object_separability(maps, 4, over)
    for distance, value in zip(("inter", "intra"), expected):
        metric = ObjectSeparability(distance, 4, over)
        metric.update(maps[:1])
        metric.update(maps[1:].unsqueeze(1))  # videos of one frame
        assert metric.compute().item() == pytest.approx(value, rel=1e-6)


def test_unknown_choices_are_named():
    for arguments in [("between",), ("inter", 1), ("inter", 4, "batch"), ("inter", 4, "set", 0)]:
        with pytest.raises(ValueError, match="distance must be"):
            ObjectSeparability(*arguments)
    with pytest.raises(ValueError, match="Expected guidance"):
        object_separability(torch.zeros(3, 4, 4))


RANKS = {
    "ari": partial(host.ARIMetric, False),
    "ari_fg": host.ARIMetric,
    "of_objects": ARI,
    "miou": host.UnsupervisedMaskIoUMetric,
    "mbo": host.AverageBestOverlapMetric,
    "small": partial(SizedMaskIoU, "small"),
    "large": partial(SizedMaskIoU, "large"),
    "image": partial(ObjectSeparability, "inter", 3),
    "set": partial(ObjectSeparability, "intra", 3, "set"),
    "missed": partial(Instrument, "missed", 11),
}

PROCESS = """
import json, os, torch
from ocl import metrics as host
from ocl_msf.instruments import Instrument, sum_errors
from ocl_msf.metrics import ARI, ObjectSeparability, SizedMaskIoU
rank, data = int(os.environ["LOCAL_RANK"]), torch.load("data.pt", weights_only=True)
torch.distributed.init_process_group("gloo", rank=rank, world_size=2)
metrics = {
    "ari": host.ARIMetric(False),
    "ari_fg": host.ARIMetric(),
    "of_objects": ARI(),
    "miou": host.UnsupervisedMaskIoUMetric(),
    "mbo": host.AverageBestOverlapMetric(),
    "small": SizedMaskIoU("small"),
    "large": SizedMaskIoU("large"),  # of which no sample has any
    "image": ObjectSeparability("inter", 3),
    "set": ObjectSeparability("intra", 3, "set"),
    "missed": Instrument("missed", 11),
}
part = slice(0, 1) if rank == 0 else slice(1, None)
for name in list(metrics)[:7]:
    metrics[name].update(data["prediction"][part], data["target"][part])
metrics["image"].update(data["maps"][part])
metrics["set"].update(data["maps"][part])
metrics["missed"].update({"missed": sum_errors(data["maps"][part], data["maps"][part].round())})
with open(f"{rank}.json", "w") as file:
    json.dump({name: metric.compute().item() for name, metric in metrics.items()}, file)
"""


def test_two_processes_score_as_one(run_program, tmp_path):
    """Of unequal parts: one sample on the first, which shows no object, two on the second."""
    true, predicted = draw(3, (3, 8, 8), 4, 4)
    true[0] = 0
    maps = torch.randn(3, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    data = {"prediction": masks(predicted, 4), "target": masks(true, 4), "maps": maps}
    torch.save(data, tmp_path / "data.pt")
    (tmp_path / "score.py").write_text(PROCESS)
    done = run_program("score", cwd=tmp_path, ranks=2)
    assert done.returncode == 0, done.stderr
    written = [(tmp_path / f"{rank}.json").read_text() for rank in range(2)]
    assert written[0] == written[1]
    found = json.loads(written[0])
    for name, make in RANKS.items():
        metric = make()
        given = {"image": [maps], "set": [maps], "missed": [{"missed": sum_errors(maps, maps.round())}]}
        metric.update(*given.get(name, (data["prediction"], data["target"])))
        assert found[name] == pytest.approx(metric.compute().item(), rel=1e-6, nan_ok=True), name


def test_order_of_samples_and_slots_does_not_matter():
    true, predicted = draw(4, (3, 6, 6), 4, 5)
    values = []
    for order in itertools.islice(itertools.permutations(range(5)), 0, 120, 37):
        score = SizedMaskIoU("small")
        score.update(masks(predicted, 5)[:, list(order)].flip(0), masks(true, 4).flip(0))
        values.append(score.compute().item())
    assert values == pytest.approx([values[0]] * len(values))


@pytest.mark.parametrize("size", ["all", "large"])
@pytest.mark.parametrize("spoiled", ["prediction", "target", "area", "ignore"])
def test_nan_has_no_score(size, spoiled):
    given = {"prediction": torch.rand(2, 3, 4, 4), "target": torch.ones(2, 1, 4, 4)}
    given.update(area=torch.ones(2, 1), ignore=torch.zeros(2, 1, 4, 4))
    given[spoiled][1].view(-1)[0] = torch.nan
    with pytest.raises(ValueError, match=f"`{spoiled}` .* holds NaN"):
        SizedMaskIoU(size).update(**given)
    given.pop("area")
    if spoiled != "area":
        with pytest.raises(ValueError, match=f"`{spoiled}` .* holds NaN"):
            ARI().update(**given)


@pytest.mark.parametrize("over", ["image", "set"])
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_guidance_that_is_not_finite_has_no_clusters(over, value):
    guidance = torch.rand(2, 3, 4, 4)
    guidance[1, 2, 3, 3] = value
    with pytest.raises(ValueError, match="`guidance` .* NaN or infinity"):
        ObjectSeparability(over=over).update(guidance)
    with pytest.raises(ValueError, match="`guidance` .* NaN or infinity"):
        object_separability(guidance, over=over)


@pytest.mark.filterwarnings("ignore:The ``compute`` method")  # before any update
def test_a_score_of_nothing_is_not_defined():
    small = SizedMaskIoU("small")
    small.update(torch.rand(1, 2, 4, 4), torch.ones(1, 1, 4, 4), torch.tensor([[1e6]]))
    nothing = [small, SizedMaskIoU(), ObjectSeparability(), ObjectSeparability(over="set")]
    assert all(metric.compute().isnan() for metric in nothing)
