"""Experiments that read LMDB instead of shards: `dataset=<name>_lmdb`."""

from pathlib import Path

import hydra
import numpy as np
import pytest
from hydra import initialize_config_module
from ocl.cli.train import train as train_config
from omegaconf import OmegaConf

from ocl_msf.cli import main
from ocl_msf.data.lmdb import write_lmdb
from ocl_msf.data.shards import Conversion, encode_array
from ocl_msf.data.synthetic.scenes import make_scenes

CONFIGS = Path(__file__).parent.parent / "configs"
LEAVES = sorted(path.stem for path in (CONFIGS / "experiment" / "msf").glob("[!_]*.yaml"))
SHARDS = sorted(
    path.stem
    for path in (CONFIGS / "dataset").glob("*.yaml")
    if OmegaConf.load(path).get("_target_") == "ocl_msf.data.datamodule.ShardDataModule"
)
TINY = [
    "+msf/preset=cpu",
    "dataset.batch_size=2",
    "dataset.eval_batch_size=2",
    "dataset.num_workers=0",
    "experiment.pretraining={steps:2,warmup_steps:0,anneal_steps:1,validate_every:2,learning_rate:1e-3,clip_norm:1}",
    "experiment.training={steps:2,warmup_steps:0,validate_every:2,learning_rate:1e-3,clip_norm:0.02}",
    "experiment.vae={dim:8,hidden_dim:8}",
    "experiment.slots={number:5,dim:8}",
    "experiment.encoder.dim=4",
    "experiment.decoder={dim:16,num_layers:1,num_heads:2,dropout:0}",
    "experiment.image_size=32",
    "seed=0",
]


def encode_video(number):
    """Noise with one square that moves and has a box."""
    rng = np.random.default_rng(number)
    masks, boxes = np.zeros((12, 32, 32, 1), np.uint8), np.zeros((12, 10, 4), np.float32)
    for frame in range(12):
        masks[frame, 8:16, frame : frame + 8] = 1
        boxes[frame, 0] = np.array([frame, 8, frame + 8, 16]) / 32
    video = rng.integers(0, 256, (12, 32, 32, 3), dtype=np.uint8)
    arrays = {"video": video, "segmentations": masks, "instance_bbox": boxes}
    return f"{number:07d}", {f"{name}.npy.gz": encode_array(array) for name, array in arrays.items()}


@pytest.fixture(scope="module")
def prefix(tmp_path_factory):
    folder = tmp_path_factory.mktemp("lmdb")
    make_scenes(folder / "raw", 8, size=(48, 36), workers=1)
    options = [
        "--splits",
        "train=:5",
        "val=5:",
        "--size",
        "32",
        "--workers",
        "1",
        "--format",
        "lmdb",
        "--name",
        "clevrtex_lmdb",
    ]
    main(["convert", "clevrtex", str(folder / "raw"), str(folder), *options])
    videos = Conversion({}, {"train": range(5), "val": range(8, 11)}, encode_video)
    write_lmdb(folder / "movi_c_lmdb", videos, workers=1)
    return folder


@pytest.fixture
def compose(prefix, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DATASET_PREFIX", str(prefix))
    with initialize_config_module("configs", version_base="1.1"):
        yield lambda leaf, *overrides: hydra.compose(
            "training_config", overrides=[f"+experiment=msf/{leaf}", *overrides], return_hydra_config=True
        )


@pytest.mark.parametrize("name", SHARDS)
def test_every_data_set_in_shards_is_there_in_lmdb(name):
    shards, lmdb = (OmegaConf.load(CONFIGS / "dataset" / f"{x}.yaml") for x in (name, f"{name}_lmdb"))
    assert lmdb.name == f"{shards.name}_lmdb" and lmdb._target_ == "ocl_msf.data.LMDBDataModule"
    assert [shards.batch_size, shards.eval_batch_size] == [lmdb.batch_size, lmdb.eval_batch_size]


@pytest.mark.parametrize("leaf", LEAVES)
def test_every_experiment_takes_lmdb_and_keeps_its_settings(compose, leaf):
    shards = compose(leaf)
    lmdb = compose(leaf, f"dataset={shards.hydra.runtime.choices.dataset}_lmdb")
    assert lmdb.dataset._target_ == "ocl_msf.data.LMDBDataModule"
    assert set(lmdb.dataset) - set(shards.dataset) == {"seed"}
    plain = [OmegaConf.to_container(config.dataset, resolve=False) for config in (lmdb, shards)]
    ours, theirs = ({k: v for k, v in x.items() if k not in ("_target_", "name", "seed")} for x in plain)
    assert ours == theirs


def train(compose, leaf, dataset, *overrides):
    config = compose(leaf, f"dataset={dataset}_lmdb", *TINY, *overrides)
    train_config(config)


def test_images_train(compose, tmp_path):
    train(compose, "vqvae_clevrtex", "clevrtex")
    assert list(tmp_path.glob("lightning_logs/version_0/checkpoints/*step=2.ckpt"))


def test_videos_train_both_stages(compose, tmp_path):
    train(compose, "vqvae_movi_c", "movi_c_boxes")
    (checkpoint,) = tmp_path.glob("lightning_logs/version_0/checkpoints/*step=2.ckpt")
    train(compose, "steve_movi_c", "movi_c_boxes", f"experiment.vae_checkpoint='{checkpoint}'")
    assert list(tmp_path.glob("lightning_logs/version_1/checkpoints/*step=2.ckpt"))
