"""What scores are worth: trivial rows, image gain and the instruments of slots, on constructed cases."""

import dataclasses
import zlib
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from ocl.metrics import AverageBestOverlapMetric, UnsupervisedMaskIoUMetric
from ocl.utils.routing import Combined
from routed.ocl.losses import ReconstructionLoss
from routed.ocl.metrics import AverageBestOverlapMetric as RoutedOverlap
from routed.ocl.metrics import UnsupervisedMaskIoUMetric as RoutedIoU
from routed.ocl_msf.metrics import ARI as RoutedARI
from routed.ocl_msf.metrics import SizedMaskIoU as RoutedSized
from sklearn.cluster import KMeans
from sklearn.metrics import adjusted_rand_score
from torch import nn
from torch.nn import functional as F

from ocl_msf.experiments.honest_rows import SCORES, behind, gain_share, text_table, verdict
from ocl_msf.metrics import SizedMaskIoU
from ocl_msf.results import trivial
from ocl_msf.results.slot_instruments import SlotInstruments, attention_entropy

pytestmark = pytest.mark.needs_host

SLOTS, SIZE, COUNT = 4, 12, 6


@dataclasses.dataclass
class Grouping:
    objects: torch.Tensor
    feature_attributions: torch.Tensor
    is_empty: torch.Tensor = None


class Decoder(nn.Module):
    """Predicts the mean of the slots, or what does not depend on them."""

    def __init__(self, asks):
        super().__init__()
        self.asks = asks

    def forward(self, inputs):
        slots = inputs["perceptual_grouping"].objects
        return SimpleNamespace(made=slots.mean(1) if self.asks else torch.zeros_like(slots[:, 0]))


class Evaluation(nn.Module):
    """What the module sees of a model and its trainer."""

    def __init__(self, asks=True):
        super().__init__()
        paths = dict(prediction_path="masks", target_path="input.mask", ignore_path="input.void")
        self.evaluation_metrics = nn.ModuleDict(
            {
                "ari": RoutedARI(foreground=False, **paths),
                "ari_fg": RoutedARI(foreground=True, **paths),
                "miou": RoutedIoU(**paths),
                "mbo": RoutedOverlap(**paths),
            }
        )
        self.models = Combined(decoder=Decoder(asks))
        self.losses = {"mse": ReconstructionLoss("mse", input_path="decoder.made", target_path="input.target")}
        self.logged = {}
        self.__dict__["trainer"] = SimpleNamespace(callbacks=[], is_global_zero=True, lightning_module=self)

    def log(self, name, value, **_):
        self.logged[name.split("/")[1]] = value


def make_scenes(frames=()):
    """Images of a patch on a textured ground, true masks, keys and void pixels."""
    random = np.random.default_rng(0)
    true = np.zeros((COUNT, *frames, SIZE, SIZE), np.int64)
    for n in range(COUNT):
        true[n, ..., n : n + 5, 3:8] = 1
        true[n, ..., 8:, 6 - n : 11 - n] = 2
    image = random.random((*true.shape, 3)) * 0.2 + true[..., None] * 0.3
    void = random.random(true.shape) < 0.1
    return {
        "image": torch.from_numpy(image).movedim(-1, -3).float(),
        "mask": F.one_hot(torch.from_numpy(true), 3).movedim(-1, -3).float(),
        "void": torch.from_numpy(void).unsqueeze(-3),
        "__key__": [f"{n:04}" for n in range(COUNT)],
        "target": torch.from_numpy(random.random((COUNT, 5))).float(),
    }


def measure(folder, masks, scenes, sizes=(4, 2), order=range(COUNT), asks=True, metrics=None):
    """Evaluate masks (b, k, h, w) in batches of these sizes, and return what is logged."""
    evaluation, module = Evaluation(asks), SlotInstruments(str(folder))
    evaluation.evaluation_metrics = nn.ModuleDict(metrics) if metrics else evaluation.evaluation_metrics
    slots = torch.randn(COUNT, SLOTS, 5, generator=torch.Generator().manual_seed(0))
    attention = torch.full((COUNT, SLOTS, 9), 1 / SLOTS)
    for part in torch.tensor(list(order)).split(list(sizes)):
        data = {name: x[part] if torch.is_tensor(x) else [x[n] for n in part] for name, x in scenes.items()}
        tree = {"input": data, "masks": masks[part], "model": evaluation}
        tree["perceptual_grouping"] = Grouping(slots[part], attention[part])
        tree["decoder"] = evaluation.models["decoder"](inputs=tree)
        module(inputs=tree)
        for metric in evaluation.evaluation_metrics.values():
            metric.update(**tree)
    for callback in evaluation.trainer.callbacks:
        callback.on_validation_epoch_end(evaluation.trainer, evaluation)
        callback.on_validation_end(evaluation.trainer, evaluation)
    logged = {name: metric.compute().item() for name, metric in evaluation.evaluation_metrics.items()}
    return {**logged, **evaluation.logged}, slots


def drawn_masks(scenes):
    return torch.rand(COUNT, SLOTS, *scenes["mask"].shape[2:], generator=torch.Generator().manual_seed(1))


def test_masks_that_are_the_same_in_all_images_have_no_image_gain(tmp_path, capsys):
    scenes = make_scenes()
    masks = torch.rand(1, SLOTS, SIZE, SIZE, generator=torch.Generator().manual_seed(1)).expand(COUNT, -1, -1, -1)
    scores, _ = measure(tmp_path, masks, scenes)
    for name in SCORES:
        assert scores[f"image_gain_{name}"] == pytest.approx(0, abs=1e-12)
    assert scores["slot_overlap"] == scores["attention_entropy"] == pytest.approx(1)
    assert "blind grid" in capsys.readouterr().out


def test_true_masks_are_ahead_of_both_rows_and_gain_from_the_image(tmp_path, capsys):
    scenes = make_scenes()
    masks = torch.cat([scenes["mask"], torch.zeros(COUNT, 1, SIZE, SIZE)], 1)
    scores, _ = measure(tmp_path, masks, scenes)
    assert behind(scores) == {"grid": [], "colour": []} and verdict(scores) == "ahead of both in every score"
    assert all(scores[name] == pytest.approx(1) and 0 < scores[f"image_gain_{name}"] < 2 for name in SCORES)
    assert verdict(scores) in capsys.readouterr().out


@pytest.mark.parametrize("frames", [(), (2,)])
def test_image_gain_is_the_loss_with_the_masks_of_another_sample(tmp_path, frames):
    """The other one is the next in the order of the keys' checksums; batches and their order do not matter."""
    scenes = make_scenes(frames)
    if frames:  # videos: (b, t, k, h, w)
        masks = torch.rand(COUNT, *frames, SLOTS, SIZE, SIZE, generator=torch.Generator().manual_seed(1))
    else:
        masks = drawn_masks(scenes)
    scores, _ = measure(tmp_path, masks, scenes)
    ring = sorted(range(COUNT), key=lambda n: zlib.crc32(scenes["__key__"][n].encode()))
    other = dict(zip(ring, ring[1:] + ring[:1]))
    moved = masks[[other[n] for n in range(COUNT)]]
    for name, metric in {"miou": UnsupervisedMaskIoUMetric(), "mbo": AverageBestOverlapMetric()}.items():
        metric.update(moved, scenes["mask"], scenes["void"])
        assert scores[f"image_gain_{name}"] == pytest.approx(scores[name] - metric.compute().item(), abs=1e-12)
    for sizes, order in (((1,) * COUNT, range(COUNT)), ((6,), [3, 1, 0, 5, 4, 2])):
        again, _ = measure(tmp_path, masks, scenes, sizes, order)
        same = [name for name in scores if name != "slot_gain"]
        assert {name: again[name] for name in same} == {name: pytest.approx(scores[name], abs=1e-12) for name in same}


def test_trivial_rows_are_those_of_scikit_learn(tmp_path):
    scenes = make_scenes()
    scores, _ = measure(tmp_path, drawn_masks(scenes), scenes)
    points = np.stack(np.mgrid[:SIZE, :SIZE], -1).reshape(-1, 2) / SIZE
    grid = KMeans(SLOTS, n_init=4, random_state=0).fit_predict(points)
    expected = {"grid_ari": [], "colour_ari": [], "colour_ari_fg": []}
    for image, mask, void in zip(scenes["image"], scenes["mask"], scenes["void"]):
        pixels = image.permute(1, 2, 0).reshape(-1, 3).double().numpy()
        colours = KMeans(SLOTS, n_init=1, max_iter=50, random_state=0).fit_predict(pixels)
        true, counted = mask.argmax(0).flatten().numpy(), ~void.flatten().numpy()
        front = counted & (true > 0)
        expected["grid_ari"].append(adjusted_rand_score(true[counted], grid[counted]))
        expected["colour_ari"].append(adjusted_rand_score(true[counted], colours[counted]))
        expected["colour_ari_fg"].append(adjusted_rand_score(true[front], colours[front]))
    for name, values in expected.items():
        assert scores[name] == pytest.approx(np.mean(values), abs=1e-12)


def test_slot_gain_is_what_the_loss_grows_by_with_the_slots_of_the_sample_before(tmp_path):
    scenes = make_scenes()
    masks = drawn_masks(scenes)
    scores, slots = measure(tmp_path, masks, scenes)
    error = np.square((slots.mean(1) - scenes["target"]).numpy()).mean(1)
    other = np.square((slots.mean(1)[:-1] - scenes["target"][1:]).numpy()).mean(1)
    assert scores["slot_gain"] == pytest.approx((other - error[1:]).mean(), abs=1e-6)
    assert measure(tmp_path, masks, scenes, (1, 3, 2))[0]["slot_gain"] == pytest.approx(scores["slot_gain"], abs=1e-6)
    assert measure(tmp_path, masks, scenes, asks=False)[0]["slot_gain"] == 0


def test_areas_that_leave_masks_out_do_so_in_every_row(tmp_path):
    """Stuff of COCO has the area -1, and is matched but not counted (Table 7)."""
    scenes = {**make_scenes(), "area": torch.tensor([[-1.0, 25, -1]]).expand(COUNT, -1)}
    paths = dict(prediction_path="masks", target_path="input.mask", ignore_path="input.void", area_path="input.area")
    scores, _ = measure(tmp_path, drawn_masks(scenes), scenes, metrics={"miou": RoutedSized(**paths)})
    metric, grid = SizedMaskIoU(), torch.from_numpy(trivial.blind_grid(SIZE, SIZE, SLOTS)).long()
    masks = F.one_hot(grid, SLOTS).permute(2, 0, 1).expand(COUNT, -1, -1, -1)
    metric.update(masks.float(), scenes["mask"], scenes["area"], scenes["void"])
    assert scores["grid_miou"] == pytest.approx(metric.compute().item(), abs=1e-12)


def test_one_sample_alone_has_no_other(tmp_path):
    scenes = make_scenes()
    scores, _ = measure(tmp_path, drawn_masks(scenes), scenes, (1,), [0])
    assert np.isnan(scores["slot_gain"]) and "image_gain_ari" not in scores and "grid_ari" in scores


def test_attention_entropy_is_that_of_the_active_slots():
    halves = torch.zeros(3, 4, 2)
    halves[0, :2] = 0.5  # two slots are on, and share everything
    halves[1, 0, 0] = halves[1, 1, 1] = 1.0  # each has its own position
    halves[2, 0] = 1.0  # one slot alone has no choice
    assert attention_entropy(halves) == (pytest.approx(1.0), 2)


def test_colours_are_computed_once(tmp_path, monkeypatch):
    image, closed = np.random.default_rng(0).random((6, 7, 3)).astype(np.float32), tmp_path / "file"
    closed.write_text("no folder")
    places = [closed / "data", tmp_path / "run"]
    clusters = trivial.ColourClusters(places)
    first = clusters.segment(image, 3)
    clusters.save([clusters.new])
    (path,) = (tmp_path / "run").iterdir()
    assert path.name == "colours-6x7-3.npz"

    compute = trivial.colour_centres
    monkeypatch.setattr(trivial, "colour_centres", lambda *_: pytest.fail("computed again"))
    np.testing.assert_array_equal(trivial.ColourClusters(places).segment(image, 3), first)
    monkeypatch.setattr(trivial, "colour_centres", compute)
    more = trivial.ColourClusters(places)
    more.segment(image + 1, 3)
    more.save([more.new])
    assert len(trivial._read(path)) == 2
    path.write_bytes(path.read_bytes()[:100])
    np.testing.assert_array_equal(trivial.ColourClusters(places).segment(image, 3), first)


def test_segments_are_at_most_as_many_as_colours_and_pixels():
    assert len(np.unique(trivial.nearest_colours(*[np.eye(3)[[0, 0, 1, 2]]] * 2))) == 3
    assert len(trivial.colour_centres(np.zeros((4, 4, 3)), 5)) == 1
    assert sorted(trivial.blind_grid(1, 3, 7).ravel()) == [0, 1, 2]
    sizes = np.unique(trivial.blind_grid(64, 64, 11), return_counts=True)[1]
    assert len(sizes) == 11 and sizes.max() < 2 * sizes.min()
    large = np.random.default_rng(0).random((80, 80, 3))
    assert len(trivial.colour_centres(large, 6)) == 6


ROWS = {"grid_ari": 0.1, "grid_miou": 0.2, "colour_ari": 0.3, "colour_miou": 0.1, "image_gain_ari": 0.05}


def test_the_verdict_names_what_a_model_is_behind_in():
    assert verdict({"ari": 0.4, "miou": 0.3, **ROWS}) == "ahead of both in every score"
    assert verdict({"ari": 0.2, "miou": 0.2, **ROWS}) == "not ahead of blind grid in mIoU; of colour clustering in ARI"
    assert verdict({"ari": 0.2}) == ""
    assert (gain_share("ari", {"ari": 0.2, **ROWS}), gain_share("miou", {"miou": 0.2, **ROWS})) == ("25 %", "")


def test_the_table_is_aligned():
    lines = text_table("scenes", {"model": {"ari": 0.4, "miou": 0.3, **ROWS}})
    assert [line.split()[-2:] for line in lines[1:]] == [
        ["40.0", "30.0"],
        ["5.0", "-"],
        ["10.0", "20.0"],
        ["30.0", "10.0"],
    ]
    assert len({len(line) for line in lines}) == 1
    assert len(text_table("scenes", {"old": {"ari": 0.4, "tokens": 3.0}})) == 2
