import runpy
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_module
from ocl.cli.train import build_and_register_datamodule_from_config, build_model_from_config
from sklearn.metrics import adjusted_rand_score

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
    assert batch["mask"].shape == (3, 3, 64, 64) and (batch["mask"].sum(dim=1) == 1).all()
    masks = dict(zip(batch["__key__"], batch["mask"]))
    assert (masks["632"][1] == 1).all()  # nothing but sky
    void, ball = masks["285"][:2]  # 60 x 80, the ball is at 30 to 50 in both; the square starts at 10
    places = np.floor((np.arange(128) + 0.5) * 60 / 128)[1::2]
    expected = np.outer((places >= 30) & (places < 50), (places >= 20) & (places < 40))
    np.testing.assert_array_equal(ball.numpy(), expected)
    np.testing.assert_array_equal(void.numpy(), 1 - expected)
    assert next(iter(data.train_dataloader()))["image"].shape[1:] == (3, 64, 64)


@pytest.fixture(scope="module", params=["webdataset", "lmdb"])
def crowds(tmp_path_factory, request):
    """Four converted images for evaluation, one of them, 142238, with a crowd."""
    root = tmp_path_factory.mktemp("crowds")
    RAW.write_folder(root / "raw")
    for path in [*(root / "raw").rglob("*_train2017.json"), *(root / "raw").glob("*train2017/*")]:
        path.replace(str(path).replace("train2017", "val2017"))
    main(["convert", "coco", str(root / "raw"), str(root), "--workers", "1", "--format", request.param])
    return root


def load_validation(prefix, *overrides):
    """A model with its metrics, and the validation images as one batch."""
    chosen = ["+experiment=msf/slate_sized_coco", "+msf/preset=cpu", f"dataset.prefix={prefix}", *overrides]
    chosen += ["dataset.num_workers=0", "dataset.eval_batch_size=4", "experiment.image_size=128"]
    with initialize_config_module("configs", version_base="1.3"):
        config = compose("training_config", overrides=chosen)
    torch.manual_seed(0)  # of the order of the shards
    (batch,) = build_and_register_datamodule_from_config(config).val_dataloader()
    return build_model_from_config(config), batch


def score(model, batch, masks):
    for metric in model.evaluation_metrics.values():
        metric.reset()
        metric.update(input=batch, masks=masks)
    return {name: float(metric.compute()) for name, metric in model.evaluation_metrics.items()}


def test_crowds_take_no_part_in_the_scores(crowds):
    """Predictions that differ in crowd pixels only score the same, and as scikit-learn does on the others."""
    model, batch = load_validation(crowds)
    number = batch["__key__"].index("142238")
    expected = np.zeros((60, 80), bool)
    expected[20:40, 20:40] = True
    places = np.floor((np.arange(128) + 0.5) * 60 / 128).astype(int)
    assert batch["void"].shape == (4, 1, 128, 128)
    np.testing.assert_array_equal(batch["void"][number, 0] > 0, expected[np.ix_(places, places + 10)])
    assert not batch["void"][np.arange(4) != number].any()
    guess = torch.rand(4, 5, 128, 128, generator=torch.Generator().manual_seed(0))
    other = torch.where(batch["void"] > 0, guess.flip(1), guess)
    assert not torch.equal(guess.argmax(1), other.argmax(1))
    scores = score(model, batch, guess)
    assert {"ari", "ari_fg", "miou", "mbo", "miou_small"} <= set(scores)
    np.testing.assert_equal(scores, score(model, batch, other))  # NaN for sizes that no thing has
    indices = [
        adjusted_rand_score(true.argmax(0)[there], masks.argmax(0)[there])
        for true, masks, there in zip(batch["mask"], guess, batch["void"][:, 0] == 0)
    ]
    assert scores["ari"] == pytest.approx(np.mean(indices))


def test_crowds_are_scored_on_request(crowds):
    (model, batch), (_, without) = load_validation(crowds, "experiment.score_crowds=true"), load_validation(crowds)
    assert not batch["void"].any() and torch.equal(batch["mask"], without["mask"])
    guess = torch.rand(4, 5, 128, 128, generator=torch.Generator().manual_seed(0))
    kept, left_out = score(model, batch, guess), score(model, without, guess)
    assert all(kept[name] != left_out[name] for name in ("ari", "ari_fg", "miou", "mbo"))
    indices = [adjusted_rand_score(*(x.argmax(0).ravel() for x in pair)) for pair in zip(batch["mask"], guess)]
    assert kept["ari"] == pytest.approx(np.mean(indices))
