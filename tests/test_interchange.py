"""The framework's own dataset configs read what the converters write."""

import io
import runpy
from pathlib import Path
from types import SimpleNamespace

import hydra
import numpy as np
import pytest
import torch
from hydra import initialize_config_module
from ocl.cli.train import build_and_register_datamodule_from_config
from ocl.preprocessing import IntegerToOneHotMask, VOCInstanceMasksToDenseMasks
from ocl.transforms import DuplicateFields, Map, SimpleTransform
from PIL import Image

from ocl_msf.cli import main
from ocl_msf.data.tfrecord import encode_example, write_records

pytestmark = pytest.mark.needs_host

SIDE, TIMES = 8, 2


def raw_maker(name):
    return SimpleNamespace(**runpy.run_path(str(Path(__file__).with_name(f"raw_{name}.py"))))


@pytest.fixture
def data_module(tmp_path, monkeypatch):
    """Composes a dataset config, alone or in an experiment, and makes its data module."""
    monkeypatch.setenv("DATASET_PREFIX", str(tmp_path))
    settings = ["dataset.num_workers=0", "dataset.batch_size=1", "dataset.eval_batch_size=2"]

    def make(*overrides, **arguments):
        with initialize_config_module("configs", version_base="1.1"):
            config = hydra.compose("training_config", overrides=[*overrides, *(f"++{x}" for x in settings)])
        return build_and_register_datamodule_from_config(config, **arguments)

    return make


def samples(loader):
    """{key: {field: array}}"""
    return {
        key: {field: value[i] for field, value in batch.items() if torch.is_tensor(value)}
        for batch in loader
        for i, key in enumerate(batch["__key__"])
    }


def png(array):
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, "png")
    return buffer.getvalue()


def write_movi(raw, variant, counts):
    """MOVi's files with as many little videos as `counts` says, each with one object."""
    folder = raw / f"movi_{variant}" / "128x128" / "1.0.0"
    folder.mkdir(parents=True)
    masks = np.zeros((TIMES, SIDE, SIDE), np.uint8)
    masks[:, 2:4, 3:7] = 1
    for split, count in counts.items():
        with open(folder / f"movi_{variant}-{split}.tfrecord-00000-of-00001", "wb") as file:
            for number in range(count):
                frames = np.random.default_rng(number).integers(0, 256, (TIMES, SIDE, SIDE, 3), np.uint8)
                features = {
                    "video": list(map(png, frames)),
                    "segmentations": list(map(png, masks)),
                    "instances/bboxes/ragged_flat_values": np.array([[2, 3, 4, 7]] * TIMES, np.float32) / SIDE,
                    "instances/bboxes/ragged_row_lengths_0": np.array([TIMES]),
                    "instances/bbox_frames/ragged_flat_values": np.arange(TIMES),
                    "instances/bbox_frames/ragged_row_lengths_0": np.array([TIMES]),
                }
                write_records(file, [encode_example(features)])


@pytest.mark.parametrize(
    "variant, counts, most",
    [
        ("c", (299, 8), 10),  # one for each of the framework's shards
        pytest.param("e", (680, 18), 23, marks=pytest.mark.slow),
        ("d", (5, 3), 23),  # our config
    ],
)
def test_movi(tmp_path, data_module, variant, counts, most):
    train, val = counts
    write_movi(tmp_path / "raw", variant, {"train": train, "validation": val})
    convert = ["movi", str(tmp_path / "raw"), str(tmp_path), "--variant", variant]
    main(["convert", *convert, "--size", str(SIDE), "--workers", "1", "--strict"])
    sizes = [] if variant == "d" else [f"dataset.train_size={train}", f"dataset.val_size={val}"]
    data = data_module(f"+dataset=movi_{variant}", *sizes)
    videos = samples(data.train_dataloader())
    assert set(videos) == {f"{number:07d}" for number in range(train)}
    assert all(set(video) == {"image"} for video in videos.values())
    expected = np.random.default_rng(4).integers(0, 256, (TIMES, SIDE, SIDE, 3), np.uint8)
    np.testing.assert_array_equal(videos["0000004"]["image"], expected)
    validation = samples(data.val_dataloader())
    assert set(validation) == {f"{number:07d}" for number in range(val)}
    mask = validation["0000002"]["mask"]
    assert mask.shape == (TIMES, most + 1, SIDE, SIDE, 1) and (mask.sum(1) == 1).all()
    assert (mask[:, 1, 2:4, 3:7] == 1).all() and mask[:, 1].sum() == TIMES * 8


def test_boxes_are_there_for_who_asks(tmp_path, data_module):
    write_movi(tmp_path / "raw", "c", {"train": 1, "validation": 8})
    main(["convert", "movi", str(tmp_path / "raw"), str(tmp_path), "--size", str(SIDE), "--workers", "1"])
    asking = {"a": DuplicateFields({"instance_bbox": "boxes"}, batch_transform=False)}
    data = data_module("+dataset=movi_c", "dataset.val_size=8", eval_transforms=asking)
    boxes = samples(data.val_dataloader())["0000007"]["boxes"]
    assert boxes.shape == (TIMES, 10, 4) and boxes[:, 0].tolist() == [[0.375, 0.25, 0.875, 0.5]] * TIMES
    assert not boxes[:, 1:].any()


def test_coco(tmp_path, data_module):
    """The experiment slate/coco reads all images and the instances, also of images without one."""
    raw = raw_maker("coco")
    for split, count in ((raw.TRAIN, 413), (raw.VAL, 18)):
        plain = ((24, 32), {5: (raw.GRASS, 0, (0, 0, 32, 24))})
        split.update({1000 + number: plain for number in range(count - len(split))})
    raw.write_folder(tmp_path / "raw")
    convert = ["coco", str(tmp_path / "raw"), str(tmp_path), "--no-filter", "--oclf-layout", "--size", "32"]
    main(["convert", *convert, "--workers", "1"])
    sizes = ["dataset.train_size=413", "dataset.val_size=18", "experiment.image_size=32"]
    data = data_module("+experiment=slate/coco", *sizes)
    train = samples(data.train_dataloader())
    assert set(train) == {str(number) for number in raw.TRAIN}
    assert all(sample["image"].shape == (3, 32, 32) for sample in train.values())
    val = samples(data.val_dataloader())
    assert set(val) == {str(number) for number in raw.VAL}
    instances, dense = val["632"]["instance_mask"], val["632"]["segmentation_mask"]
    assert instances.any((1, 2)).sum() == 3 and dense.any((1, 2)).sum() == 2  # two people and a ball
    assert not val["1000"]["instance_mask"].any()


def test_voc(tmp_path, data_module):
    raw = raw_maker("voc")
    for split, year, count in ((raw.TRAIN, 2009, 39), (raw.VAL, 2010, 12)):  # and two of SBD
        plain = ((24, 32), [(raw.CAT, (8, 8, 12, 12))])
        split.update({f"{year}_{number:06d}": plain for number in range(count - len(split))})
    raw.write_folder(tmp_path / "raw")
    convert = ["voc", str(tmp_path / "raw"), str(tmp_path), "--variant", "trainaug", "--no-filter", "--oclf-layout"]
    main(["convert", *convert, "--size", "32", "--workers", "1"])
    fields = ("image", "segmentation-instance", "segmentation-class")
    one_hot = SimpleTransform({"segmentation-instance": IntegerToOneHotMask(output_axis=-4)}, batch_transform=False)
    masks = Map(VOCInstanceMasksToDenseMasks(), fields=fields, batch_transform=False)
    images = Map(dict, fields=("image",), batch_transform=False)
    transforms = {"train_transforms": {"a": images}, "eval_transforms": {"a": one_hot, "b": masks}}
    sizes = ["dataset.train_size=41", "dataset.val_size=12"]
    data = data_module("+dataset=voc2012_trainaug", *sizes, **transforms)
    train, val = samples(data.train_dataloader()), samples(data.val_dataloader())
    names = {*raw.TRAIN, *raw.SBD} - set(raw.VAL)
    assert set(train) == {name.replace("_", "") for name in names} and len(train) == 41
    assert all(sample["image"].shape == (32, 32, 3) for sample in train.values())
    assert set(val) == {name.replace("_", "") for name in raw.VAL}
    assert val["2007000042"]["segmentation-instance"].amax() == raw.PERSON
    assert val["2007000042"]["ignore_mask"].any() and not val["2007000042"]["ignore_mask"].all()


def test_what_the_framework_has_no_config_for_is_named(tmp_path):
    with pytest.raises(SystemExit, match="no config for clevrtex, only for coco_panoptic, movi_c"):
        main(["convert", "clevrtex", str(tmp_path), str(tmp_path), "--oclf-layout"])


@pytest.mark.parametrize(
    "overrides, environment", [([], {"DATASET_PREFIX": "shards"}), (["dataset.prefix=shards"], {})]
)
def test_sizes_are_counted_below_a_relative_prefix(shards, tmp_path, run_program, overrides, environment):
    (tmp_path / "shards").symlink_to(shards)
    options = {"cwd": tmp_path, **environment}
    done = run_program("ocl.cli.compute_dataset_size", "+dataset=clevrtex", *overrides, **options)
    assert done.returncode == 0 and "Train split size: 8" in done.stdout, done.stdout + done.stderr
