"""Converted VOC through the data modules, the host's own transforms, and an experiment."""

import json
import runpy
from pathlib import Path
from types import SimpleNamespace

import hydra
import numpy as np
import pytest
import torch
from hydra import initialize_config_module
from hydra.utils import instantiate
from ocl.cli.train import build_model_from_config
from ocl.cli.train import train as train_config
from ocl.preprocessing import IntegerToOneHotMask, VOCInstanceMasksToDenseMasks
from ocl.transforms import Map
from sklearn.metrics import adjusted_rand_score

from ocl_msf.cli import main
from ocl_msf.data import open_dataset

pytestmark = pytest.mark.needs_host

RAW = SimpleNamespace(**runpy.run_path(str(Path(__file__).with_name("raw_voc.py"))))  # the fixture's maker
TINY = [
    "+msf/preset=cpu",
    "dataset.batch_size=2",
    "dataset.eval_batch_size=2",
    "dataset.num_workers=0",
    "experiment.pretraining={steps:2,warmup_steps:0,anneal_steps:1,validate_every:2,learning_rate:1e-3,clip_norm:1}",
    "experiment.vae={dim:8,hidden_dim:8}",
    "experiment.slots={number:3,dim:8}",
    "experiment.encoder.dim=4",
    "experiment.decoder={dim:16,num_layers:1,num_heads:2,dropout:0}",
    "experiment.image_size=32",
    "seed=0",
]


@pytest.fixture(scope="module")
def prefix(tmp_path_factory):
    prefix = tmp_path_factory.mktemp("voc")
    RAW.write_folder(prefix / "raw")
    for options in (["--format", "lmdb", "--name", "voc_lmdb"], [], ["--variant", "trainaug"]):
        main(["convert", "voc", str(prefix / "raw"), str(prefix), "--workers", "1", *options])
    return prefix


@pytest.fixture
def compose(prefix, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DATASET_PREFIX", str(prefix))
    with initialize_config_module("configs", version_base="1.1"):
        yield lambda leaf, *more: hydra.compose("training_config", overrides=[f"+experiment=msf/{leaf}", *TINY, *more])


def classes_of(prefix, name):
    """The class mask of a validation image as the converter left it, (128, 128)."""
    size, objects = RAW.VAL[name]
    mask, _ = RAW.masks(size, objects)
    side, (top, left) = min(size), ((length - min(size)) // 2 for length in size)
    places = np.floor((np.arange(128) + 0.5) * side / 128).astype(int)
    return mask[top:, left:][np.ix_(places, places)]


@pytest.mark.parametrize("name", ["voc", "voc_lmdb"])
def test_void_pixels_are_in_no_mask(compose, prefix, name):
    config = compose("slate_voc", f"dataset.name={name}", "experiment.image_size=128")
    data = instantiate(config.dataset, _convert_="all")
    assert (data.train_size, data.val_size) == (5, 2)  # without the image of eleven classes
    (batch,) = data.val_dataloader()
    assert sorted(batch["__key__"]) == ["2007000042", "2011003271"]
    assert batch["image"].shape == (2, 3, 128, 128) and -1 <= batch["image"].min() < batch["image"].max() <= 1
    assert batch["mask"].shape == (2, 21, 128, 128) and batch["void"].shape == (2, 1, 128, 128)
    for key, masks, void in zip(batch["__key__"], batch["mask"].numpy(), batch["void"].numpy()):
        expected = classes_of(prefix, f"{key[:4]}_{key[4:]}")
        np.testing.assert_array_equal(masks, expected == np.arange(21)[:, None, None])
        np.testing.assert_array_equal(void[0], expected == RAW.VOID)
        assert void.any()
    assert set(next(iter(data.train_dataloader()))) == {"image", "__key__", "batch_size"}


def test_void_pixels_take_no_part_in_the_scores(compose, prefix):
    """Predictions that differ in void pixels only score the same, and as scikit-learn does on the others."""
    config = compose("slate_voc", "experiment.image_size=128")
    (batch,) = instantiate(config.dataset, _convert_="all").val_dataloader()
    metrics = build_model_from_config(config).evaluation_metrics
    guess = torch.rand(2, 5, 128, 128, generator=torch.Generator().manual_seed(0))
    other = torch.where(batch["void"] > 0, guess.flip(1), guess)
    assert not torch.equal(guess.argmax(1), other.argmax(1))
    for name in ("ari", "ari_fg", "miou", "mbo"):
        scores = []
        for masks in (guess, other):
            metrics[name].reset()
            metrics[name].update(input=batch, masks=masks)
            scores.append(float(metrics[name].compute()))
        assert scores[0] == scores[1] != 0
    known = batch["void"][:, 0] == 0
    indices = [
        adjusted_rand_score(true.argmax(0)[there], masks.argmax(0)[there])
        for true, masks, there in zip(batch["mask"], guess, known)
    ]
    metrics["ari"].reset()
    metrics["ari"].update(input=batch, masks=guess)
    assert float(metrics["ari"].compute()) == pytest.approx(np.mean(indices))


@pytest.mark.parametrize("name", ["voc", "voc_lmdb"])
def test_the_hosts_transforms_for_voc_take_the_samples(prefix, name):
    """They raise where an object has pixels of no class or of several."""

    def transform(sample):
        one_hot = IntegerToOneHotMask(output_axis=-4)(sample["segmentation-instance"])
        return VOCInstanceMasksToDenseMasks()({**sample, "segmentation-instance": one_hot})

    seen = {}

    def remember(sample):
        seen[sample["__key__"]] = transform(sample)
        return {"__key__": sample["__key__"]}

    fields = ("image", "segmentation-class", "segmentation-instance", "instance_category")
    remembering = {"a": Map(remember, fields, False)}
    data = open_dataset(str(prefix), name, eval_transforms=remembering, batch_size=2, num_workers=0)
    list(data.val_dataloader())
    assert seen["2011003271"]["instance_category"].tolist() == [RAW.CAT, RAW.MONITOR]
    assert seen["2007000042"]["instance_category"].tolist() == [RAW.PERSON] * 11
    assert seen["2007000042"]["ignore_mask"].dtype == bool


@pytest.mark.parametrize("choice", ["dataset=voc", "dataset.name=voc_lmdb", "dataset=voc_trainaug"])
def test_stage_one_trains(compose, tmp_path, choice):
    train_config(compose("vqvae_voc", choice))
    assert list(tmp_path.glob("lightning_logs/version_0/checkpoints/*step0000002.ckpt"))


def test_the_summary_names_what_was_left_out(prefix):
    summary = json.loads((prefix / "voc" / "summary.json").read_text())
    left_out = {reason: entry["names"] for reason, entry in summary["rejected"].items()}
    assert left_out == {"more than 10 objects": ["2007_000033"]}
    assert summary["options"]["filter"]["count"] == "classes"
