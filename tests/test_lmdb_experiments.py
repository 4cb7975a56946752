"""Experiments that read LMDB instead of shards, by the same configs."""

import hydra
import numpy as np
import pytest
from hydra import initialize_config_module
from ocl.cli.train import train as train_config

from ocl_msf.cli import main
from ocl_msf.data import LMDBDataModule, ShardDataModule, open_dataset
from ocl_msf.data.lmdb import write_lmdb
from ocl_msf.data.shards import Conversion, encode_array
from ocl_msf.data.synthetic.scenes import make_scenes

pytestmark = [pytest.mark.needs_host, pytest.mark.oclf]

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
    options = ["--splits", "train=:5", "val=5:", "--size", "32", "--workers", "1", "--format", "lmdb"]
    main(["convert", "clevrtex", str(folder / "raw"), str(folder), *options])
    videos = Conversion({}, {"train": range(5), "val": range(8, 11)}, encode_video)
    write_lmdb(folder / "movi_c_lmdb", videos, workers=1)
    return folder


@pytest.fixture
def train(prefix, tmp_path, monkeypatch):
    """Train a leaf for two steps; returns the checkpoint."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DATASET_PREFIX", str(prefix))

    def run(leaf, *overrides):
        config = hydra.compose("training_config", overrides=[f"+experiment=msf/{leaf}", *TINY, *overrides])
        train_config(config)
        return max(tmp_path.glob("lightning_logs/version_*/checkpoints/*step0000002.ckpt"), key=str)

    with initialize_config_module("configs", version_base="1.1"):
        yield run


def test_images_train(train):
    assert train("vqvae_clevrtex").is_file()


def test_videos_of_an_earlier_conversion_train_both_stages(train):
    """Their folder has a suffix."""
    lmdb = "dataset.name=movi_c_lmdb"
    first = train("vqvae_movi_c", lmdb)
    assert train("steve_movi_c", lmdb, f"experiment.vae_checkpoint='{first}'") != first


def test_one_door_reads_both_formats(prefix):
    name = ("clevrtex", "shards")
    options = ["--splits", "train=:5", "val=5:", "--size", "32", "--workers", "1", "--name", name[1]]
    main(["convert", "clevrtex", str(prefix / "raw"), str(prefix), *options])
    lmdb, shards = (open_dataset(str(prefix), x, num_workers=0, batch_size=2, seed=1) for x in name)
    assert isinstance(lmdb, LMDBDataModule) and isinstance(shards, ShardDataModule)
    assert (lmdb.train_size, lmdb.val_size, lmdb.batch_size) == (shards.train_size, shards.val_size, shards.batch_size)
    with pytest.raises(TypeError, match="shuffel"):
        open_dataset(str(prefix), "shards", shuffel=True)
