import runpy
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from hydra import compose, initialize_config_module
from ocl.cli.train import build_and_register_datamodule_from_config

from ocl_msf.cli import main

pytestmark = pytest.mark.needs_host

RAW = SimpleNamespace(**runpy.run_path(str(Path(__file__).with_name("raw_coco.py"))))  # the fixture's maker


def test_the_data_module_reads_samples_with_the_experiments_transforms(tmp_path):
    RAW.write_folder(tmp_path / "raw")
    main(["convert", "coco", str(tmp_path / "raw"), str(tmp_path), "--workers", "1"])
    numbers = ["dataset.num_workers=0", "dataset.batch_size=3", "experiment.image_size=64"]
    chosen = ["+experiment=msf/slate_coco", f"dataset.prefix={tmp_path}", *numbers]
    with initialize_config_module("configs", version_base="1.3"):
        data = build_and_register_datamodule_from_config(compose("training_config", overrides=chosen))
    assert (data.train_size, data.val_size) == (4, 3)  # without the image of eleven things
    (batch,) = data.val_dataloader()
    assert sorted(batch["__key__"]) == ["139", "285", "632"]
    assert batch["image"].shape == (3, 3, 64, 64) and -1 <= batch["image"].min() < batch["image"].max() <= 1
    assert batch["mask"].shape == (3, 11, 64, 64) and (batch["mask"].sum(dim=1) == 1).all()
    masks = dict(zip(batch["__key__"], batch["mask"]))
    assert (masks["632"][1] == 1).all()  # nothing but sky
    void, ball = masks["285"][:2]  # 60 x 80, the ball is at 30 to 50 in both; the square starts at 10
    places = np.floor((np.arange(128) + 0.5) * 60 / 128)[1::2]
    expected = np.outer((places >= 30) & (places < 50), (places >= 20) & (places < 40))
    np.testing.assert_array_equal(ball.numpy(), expected)
    np.testing.assert_array_equal(void.numpy(), 1 - expected)
    assert next(iter(data.train_dataloader()))["image"].shape[1:] == (3, 64, 64)
