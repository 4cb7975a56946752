"""From raw videos through converter and data module to windows of frames."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from ocl.transforms import Map, SampleConsecutive

from ocl_msf.cli import main
from ocl_msf.data.synthetic.moving_scenes import make_moving_scenes

pytestmark = pytest.mark.needs_host

CONFIGS = Path(__file__).parent.parent / "configs"
FIELDS = ("video", "segmentations", "instance_bbox")


def to_tensors(sample):
    return {key: torch.tensor(value) if isinstance(value, np.ndarray) else value for key, value in sample.items()}


def data_module(variant, window=None):
    """The data module of a variant's config; `window` frames of each training video."""
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        config = compose(overrides=["+dataset=movi", f"dataset.name=movi_{variant}"]).dataset
    tensors = {"tensors": Map(to_tensors, fields=FIELDS, batch_transform=False)}
    windows = {"a_window": SampleConsecutive(window, fields=FIELDS)} if window else {}
    numbers = {"batch_size": 1, "eval_batch_size": 2, "num_workers": 0}
    return instantiate(config, **numbers, train_transforms={**windows, **tensors}, eval_transforms=tensors)


def samples(loader):
    """(key, {field: array}) of all samples of a loader."""
    for batch in loader:
        for i, key in enumerate(batch["__key__"]):
            yield key, {field: batch[field][i].numpy() for field in FIELDS}


@pytest.mark.parametrize("variant, boxes", [("c", 10), ("d", 23), ("e", 23)])
def test_training_reads_aligned_windows_and_evaluation_whole_videos(tmp_path, monkeypatch, variant, boxes):
    monkeypatch.setenv("DATASET_PREFIX", str(tmp_path))
    make_moving_scenes(tmp_path / "raw", 6, 3, variant, size=16, workers=1)
    options = ["--variant", variant, "--size", "16", "--workers", "1"]
    main(["convert", "movi", str(tmp_path / "raw"), str(tmp_path), *options])
    data = data_module(variant, window=6)
    assert (data.train_size, data.val_size, data.test_size) == (6, 3, None)
    assert sorted(key for key, _ in samples(data.val_dataloader())) == [f"{i:07d}" for i in range(3)]
    for _, sample in samples(data.val_dataloader()):
        shapes = {field: (array.shape, array.dtype.name) for field, array in sample.items()}
        assert shapes == {
            "video": ((24, 16, 16, 3), "uint8"),
            "segmentations": ((24, 16, 16, 1), "uint8"),
            "instance_bbox": ((24, boxes, 4), "float32"),
        }
    whole = dict(samples(data_module(variant).train_dataloader()))
    starts = set()
    for _ in range(4):
        for key, sample in samples(data.train_dataloader()):
            video = whole[key.split("_")[0]]
            windows = [
                start
                for start in range(0, 24, 6)
                if all(np.array_equal(sample[field], video[field][start : start + 6]) for field in FIELDS)
            ]
            assert len(windows) == 1
            starts |= set(windows)
    assert len(starts) > 1
