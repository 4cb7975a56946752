"""True masks hold every object of the data, so that a score does not depend on how many slots a model has."""

import copy

import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_module
from hydra.utils import instantiate
from ocl.cli.train import build_and_register_datamodule_from_config
from PIL import Image
from sklearn.metrics import adjusted_rand_score

from ocl_msf.data.lmdb import write_lmdb
from ocl_msf.data.shards import Conversion, encode_array, encode_png, write_dataset
from ocl_msf.preprocessing import ObjectMasks, OneHotMasks, SegmentAreas

pytestmark = [pytest.mark.needs_host, pytest.mark.oclf]

SIDE = 32
COUNTS = [23, 12, 0, 1]  # objects of the samples


def grid_of(count):
    """Ids (32, 32): `count` squares of different sizes, numbered from 1, on ground."""
    ids = np.zeros((SIDE, SIDE), np.uint8)
    for number in range(count):
        y, x = 6 * (number // 5), 6 * (number % 5)
        ids[y : y + 2 + number % 4, x : x + 5] = number + 1
    return ids


def encode_video(count):
    """Objects at rest, and their boxes."""
    ids, boxes = grid_of(count), np.zeros((12, 23, 4), np.float32)
    for number in range(count):
        ys, xs = np.nonzero(ids == number + 1)
        boxes[:, number] = np.array([xs.min(), ys.min(), xs.max() + 1, ys.max() + 1]) / SIDE
    arrays = {"video": np.zeros((12, SIDE, SIDE, 3), np.uint8), "instance_bbox": boxes}
    arrays["segmentations"] = np.repeat(ids[None, ..., None], 12, 0)
    return f"{count:06d}", {f"{name}.npy.gz": encode_array(array) for name, array in arrays.items()}


def encode_image(count):
    """An image with the fields of COCO, OpenImages and VOC; the objects from 11 on are small, void is on the right."""
    ids = grid_of(count)
    void = np.where(np.arange(SIDE) < 30, ids, 255).astype(np.uint8)
    area = np.array([5000.0] * 10 + [100.0] * 13, np.float32)[:count]
    arrays = {"segmentation": ids[..., None], "segment_area": area, "segment_isthing": np.ones(count, np.uint8)}
    arrays["segment_iscrowd"] = np.zeros(count, np.uint8)
    arrays.update({f"segmentation-{kind}": void[..., None] for kind in ("class", "instance")})
    files = {f"{name}.npy.gz": encode_array(array) for name, array in arrays.items()}
    return f"{count:06d}", {**files, "image.png": encode_png(Image.new("RGB", (SIDE, SIDE)))}


@pytest.fixture(scope="module")
def prefix(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    for write, suffix in ((write_dataset, ""), (write_lmdb, "_lmdb")):
        for name in ("movi_d", "coco_panoptic", "openimages", "voc"):
            encode = encode_video if name == "movi_d" else encode_image
            write(folder / f"{name}{suffix}", Conversion({}, {"train": COUNTS, "val": COUNTS}, encode), workers=1)
    return folder


@pytest.fixture
def open_run(prefix):
    """The validation batch of an experiment, two samples a batch, and its metrics."""

    def run(experiment, *overrides):
        numbers = ["dataset.num_workers=0", "dataset.eval_batch_size=2", f"experiment.image_size={SIDE}"]
        chosen = [f"+experiment=msf/{experiment}", f"dataset.prefix={prefix}", *numbers, *overrides]
        with initialize_config_module("configs", version_base="1.3"):
            config = compose("training_config", overrides=chosen)
        data = build_and_register_datamodule_from_config(config)
        return list(data.val_dataloader()), instantiate(config.evaluation_metrics)

    return run


def predict(mask, found, slots):
    """One-hot predictions (..., slots, h, w) that find the objects up to `found`; the rest goes to the first slot."""
    ids = mask.argmax(-3)
    return torch.stack([torch.where(ids <= found, ids, 0) == slot for slot in range(slots)], -3).float()


def score(metric, batches, predictions):
    metric = copy.deepcopy(metric)
    for batch, masks in zip(batches, predictions):
        metric.update(input=batch, masks=masks)
    return metric.compute().item()


@pytest.mark.parametrize("suffix", ["", "_lmdb"])
@pytest.mark.parametrize(
    "experiment, name",
    [("steve_movi_d", "movi_d"), ("slate_coco", "coco_panoptic"), ("slate_openimages", "openimages")],
)
def test_a_score_does_not_depend_on_the_number_of_slots(open_run, experiment, name, suffix):
    """Seven of 23 objects are found, by 8 slots or by 24, and counted by scikit-learn over all of them."""
    expected, overlaps, frames = [], [], 12 if name == "movi_d" else 1
    for ids in (np.tile(grid_of(count), frames) for count in COUNTS if count):
        expected.append(adjusted_rand_score(ids[ids > 0], np.where(ids[ids > 0] <= 7, ids[ids > 0], 0)))
    for slots in (8, 24):
        batches, metrics = open_run(experiment, f"experiment.slots.number={slots}", f"dataset.name={name}{suffix}")
        for batch in batches:
            most = max(map(int, batch["__key__"]))
            assert batch["mask"].shape[-3] == max(most, 1) + 1 and (batch["mask"].sum(-3) == 1).all()
        predictions = [predict(batch["mask"], 7, slots) for batch in batches]
        assert score(metrics["ari_fg"], batches, predictions) == pytest.approx(np.mean(expected), abs=1e-12)
        assert score(metrics["ari_fg_samples"], batches, predictions) == len(expected) == 3
        overlaps.append([score(metrics[name], batches, predictions) for name in ("miou", "mbo")])
    assert overlaps[0] == pytest.approx(overlaps[1], abs=1e-12) and max(overlaps[0]) < 1


@pytest.mark.parametrize("experiment", ["steve_movi_d", "slate_coco"])
def test_one_override_keeps_the_objects_of_the_first_numbers_alone(open_run, experiment):
    """As the paper's 20 objects and a background."""
    batches, metrics = open_run(experiment, "experiment.true_masks=8")
    predictions = [predict(batch["mask"], 7, 8) for batch in batches]
    assert {batch["mask"].shape[-3] for batch in batches} == {8}
    assert score(metrics["ari_fg"], batches, predictions) == 1
    everywhere = all((batch["mask"].sum(-3) == 1).all() for batch in batches)
    assert everywhere == (experiment == "steve_movi_d")  # elsewhere they are in no mask


def test_void_is_none_of_the_masks_of_voc(open_run):
    batches, metrics = open_run("slate_voc")
    for batch in batches:
        assert batch["mask"].shape[1] == max(1, *map(int, batch["__key__"])) + 1
        assert (batch["mask"].sum(1) + batch["void"][:, 0] == 1).all() and (batch["void"][..., 30:] == 1).all()
    whole = [batch["mask"] for batch in batches]
    assert score(metrics["ari"], batches, whole) == score(metrics["miou"], batches, whole) == 1


def test_sizes_count_all_things(open_run):
    """The small ones have the numbers from 11 on; half of each of these is found."""
    batches, metrics = open_run("slate_sized_coco")
    predictions = []
    for batch in batches:
        assert batch["area"].shape == batch["mask"].shape[:2]
        halves = batch["mask"][:, 11:].clone()
        for half in halves.flatten(0, 1):
            places = half.nonzero()
            half[tuple(places[len(places) // 2 :].T)] = 0
        rest = 1 - batch["mask"][:, 1:11].sum(1, keepdim=True) - halves.sum(1, keepdim=True)
        predictions.append(torch.cat([rest, batch["mask"][:, 1:11], halves], 1))
    shares = {}
    for count in COUNTS:
        areas = np.bincount(grid_of(count).ravel(), minlength=24)[11:]
        shares[count] = [half / area for half, area in zip(areas // 2, areas) if area]
    expected = np.mean([np.mean(shares[count]) for count in (23, 12)])
    assert score(metrics["miou_small"], batches, predictions) == pytest.approx(expected, abs=1e-12)
    assert score(metrics["miou_medium"], batches, predictions) == 1


@pytest.mark.parametrize(
    "ids, count", [(np.zeros((1, 2, 2, 1), np.uint8), 2), (np.full((2, 2, 1), 254, np.uint8), 255)]
)
def test_there_are_as_many_masks_as_ids(ids, count):
    for make in (OneHotMasks, ObjectMasks):
        masks = make()(ids)
        assert masks.shape[-4] == count and (masks.sum(-4) == 1).all() and (masks.argmax(-4) == ids).all()
    mixed = np.where(np.arange(2)[:, None, None] > 0, np.uint8(255), ids)
    assert OneHotMasks(void=255)(mixed).shape[-4] == count
    assert not OneHotMasks(void=255)(mixed)[..., 1, :, :].any()


def test_areas_are_as_many_as_masks():
    for count in (0, 1, 30):
        sample = {"segment_area": np.arange(count), "segment_isthing": np.ones(count)}
        ids = np.arange(count + 1, dtype=np.uint8).reshape(1, -1, 1)
        assert len(SegmentAreas()(sample)["area"]) == len(OneHotMasks()(ids))
