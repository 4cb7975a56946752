"""Converted OpenImages through the data modules and the experiments, and conversions that are killed."""

import runpy
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import hydra
import numpy as np
import pytest
import torch
from hydra import initialize_config_module
from hydra.utils import instantiate
from ocl.cli.train import train

from ocl_msf.cli import main

pytestmark = pytest.mark.needs_host

RAW = SimpleNamespace(**runpy.run_path(str(Path(__file__).with_name("raw_openimages.py"))))  # the fixture's maker
TINY = [
    "+msf/preset=cpu",
    "dataset.batch_size=2",
    "dataset.eval_batch_size=2",
    "dataset.num_workers=0",
    "experiment.pretraining={steps:1,warmup_steps:0,anneal_steps:1,validate_every:1,learning_rate:1e-3,clip_norm:1}",
    "experiment.training={steps:1,warmup_steps:0,validate_every:1,learning_rate:1e-3,clip_norm:1}",
    "experiment.vae={dim:8,hidden_dim:8}",
    "experiment.slots={number:3,dim:8}",
    "experiment.encoder.dim=4",
    "experiment.decoder={dim:16,num_layers:1,num_heads:2,dropout:0}",
    "experiment.image_size=32",
    "seed=0",
]


@pytest.fixture(scope="module")
def raw(tmp_path_factory):
    raw = tmp_path_factory.mktemp("openimages") / "raw"
    RAW.write_folder(raw)
    return raw


@pytest.fixture(scope="module")
def prefix(raw, tmp_path_factory):
    """DATASET_PREFIX with both formats."""
    folder = tmp_path_factory.mktemp("prefix")
    for form, name in (("webdataset", "openimages"), ("lmdb", "openimages_lmdb")):
        options = ["--size", "96", "--workers", "1", "--format", form, "--name", name]
        main(["convert", "openimages", str(raw), str(folder), *options])
    return folder


@pytest.fixture
def compose(prefix, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DATASET_PREFIX", str(prefix))
    with initialize_config_module("configs", version_base="1.1"):
        yield lambda leaf, *overrides: hydra.compose(
            "training_config", overrides=[f"+experiment=msf/{leaf}", *TINY, *overrides]
        )


@pytest.mark.parametrize("name", ["openimages", "openimages_lmdb"])
def test_both_formats_are_read_with_the_experiments_transforms(compose, name):
    config = compose("slate_openimages", f"dataset.name={name}", "experiment.image_size=48", "dataset.batch_size=3")
    data = instantiate(config.dataset, _convert_="all")
    assert (data.train_size, data.val_size) == (4, 2)  # without tiny and many objects, and no masks
    (batch,) = data.val_dataloader()
    images = [f"{int(key):016x}" for key in batch["__key__"]]
    assert sorted(images) == sorted(RAW.VAL)
    assert batch["image"].shape == (2, 3, 48, 48) and -1 <= batch["image"].min() < batch["image"].max() <= 1
    assert batch["mask"].shape == (2, 3, 48, 48) and (batch["mask"].sum(dim=1) == 1).all()
    tortoise, chair = dict(zip(images, batch["mask"]))["af00000000000007"][1:3]
    size, objects = RAW.VAL["af00000000000007"]
    expected = RAW.draw(size, *objects[1][1:])[1::2, 1::2]  # of twice the image's size
    for new in (96, 48):
        places = np.floor((np.arange(new) + 0.5) * len(expected) / new).astype(int)
        expected = expected[np.ix_(places, places)]
    np.testing.assert_array_equal(chair.numpy(), expected)
    assert tortoise.sum() > 0 and (tortoise * chair).sum() == 0
    assert next(iter(data.train_dataloader()))["image"].shape[1:] == (3, 48, 48)


@pytest.mark.parametrize(
    "model, vae, losses", [("slate", "", ["tokens", "sparsity"]), ("slotdiffusion", "_c4", ["noise"])]
)
def test_both_stages_take_a_step(compose, tmp_path, model, vae, losses):
    train(compose(f"vqvae_openimages{vae}"))
    (checkpoint,) = tmp_path.glob("lightning_logs/version_0/checkpoints/*step0000001.ckpt")
    config = compose(f"{model}_openimages", f"experiment.vae_checkpoint='{checkpoint}'")
    train(config)
    (checkpoint,) = tmp_path.glob("lightning_logs/version_1/checkpoints/*step0000001.ckpt")
    assert torch.load(checkpoint, weights_only=True)["global_step"] == 1
    assert list(instantiate(config.losses)) == losses


def test_the_larger_input_has_stage_one_of_its_own(compose):
    vae, slate = (
        hydra.compose("training_config", overrides=[f"+experiment=msf/{leaf}"]).experiment
        for leaf in ("vqvae_openimages_256", "slate_256_openimages")
    )
    assert vae.image_size == slate.image_size == slate.callbacks.load_guidance.wanted.image_size == 256
    assert slate.callbacks.load_guidance.search_folder.endswith("/msf/vqvae_openimages_256")
    assert "+experiment=msf/vqvae_openimages_256 " in slate.callbacks.load_guidance.command


def contents(out):
    files = (path for path in sorted(out.rglob("*")) if path.is_file() and path.suffix != ".partial")
    return {str(path.relative_to(out)): path.read_bytes() for path in files}


@pytest.mark.parametrize("form", ["webdataset", "lmdb"])
def test_a_killed_conversion_goes_on_to_the_same_bytes(raw, tmp_path, form):
    options = ["--size", "24", "--samples-per-shard", "1", "--workers", "1", "--format", form]
    main(["convert", "openimages", str(raw), str(tmp_path / "whole"), *options])
    command = [sys.executable, "-m", "ocl_msf", "convert", "openimages", str(raw), str(tmp_path / "killed"), *options]
    for shards in (1, 4):  # the second run goes on with the first one's
        process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
        while len(list((tmp_path / "killed").rglob("*.tar"))) < shards and process.poll() is None:
            time.sleep(0.002)
        process.kill()
        process.wait()
    main(command[3:])
    whole = contents(tmp_path / "whole")
    assert contents(tmp_path / "killed") == whole and len(whole) > 2
