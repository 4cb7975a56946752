import importlib
import json
import os
import re
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.core.hydra_config import HydraConfig
from hydra.errors import InstantiationException
from hydra.utils import instantiate
from ocl.transforms import Map
from omegaconf import OmegaConf

from ocl_msf.cli import main
from ocl_msf.data import open_dataset
from ocl_msf.data.datamodule import ShardDataModule
from ocl_msf.data.synthetic.scenes import make_scenes

pytestmark = [pytest.mark.needs_host, pytest.mark.oclf]

CONFIGS = Path(__file__).parent.parent / "configs"


def to_tensors(sample):
    return {key: torch.tensor(value) if isinstance(value, np.ndarray) else value for key, value in sample.items()}


def transforms():
    return {"tensors": Map(to_tensors, fields=("image", "mask", "visibility"), batch_transform=False)}


@pytest.fixture
def prefix(tmp_path):
    make_scenes(tmp_path / "raw", 14, size=(64, 48), workers=1)
    splits = ["--splits", "train=:9", "val=9:", "--size", "16", "--workers", "1"]
    main(["convert", "clevrtex", str(tmp_path / "raw"), str(tmp_path), *splits])
    return tmp_path


def test_sizes_and_shards_come_from_the_summary(prefix):
    data = ShardDataModule(str(prefix), "clevrtex", batch_size=4)
    assert (data.train_size, data.val_size, data.test_size) == (9, 5, None)
    assert len(data.train_shards) == len(data.val_shards) == 4 and data.test_shards is None
    assert (data.batch_size, data.eval_batch_size) == (4, 4)
    with pytest.raises(ValueError):
        data.test_dataloader()


@pytest.mark.parametrize("workers", [0, 2])
def test_every_sample_is_read_as_it_was_written(prefix, workers):
    data = ShardDataModule(
        str(prefix),
        "clevrtex",
        transforms(),
        transforms(),
        batch_size=2,
        eval_batch_size=3,
        num_workers=workers,
    )
    batches = list(data.val_dataloader())
    assert sorted(key for batch in batches for key in batch["__key__"]) == [f"{i:06d}" for i in range(9, 14)]
    for batch in batches:
        size = batch["batch_size"]
        assert batch["image"].shape == (size, 16, 16, 3) and batch["image"].dtype == torch.uint8
        assert batch["mask"].shape == (size, 11, 16, 16, 1)
        assert (batch["mask"].sum(dim=1) == 1).all()
        assert torch.equal(batch["visibility"], batch["mask"].flatten(2).amax(dim=2).float())
        assert (batch["visibility"][:, 0] == 1).all()
    keys = [key for batch in data.train_dataloader() for key in batch["__key__"]]
    assert len(set(keys)) == len(keys) and set(keys) <= {f"{i:06d}" for i in range(9)}


def test_workers_are_forked_from_a_process_without_threads(prefix):
    """A fork of this one would have the locks that its threads hold. Closures reach them all the same."""
    here = os.getpid()
    note = Map(
        lambda sample: {**sample, "here": here, "parent": os.getppid()}, fields=("image",), batch_transform=False
    )
    settings = dict(eval_transforms={"note": note}, batch_size=2, num_workers=2)
    loader = ShardDataModule(str(prefix), "clevrtex", **settings).val_dataloader()
    for _ in range(2):
        batches = list(loader)
        assert sum(batch["batch_size"] for batch in batches) == 5
        assert all((batch["here"] == here).all() and (batch["parent"] != here).all() for batch in batches)


def test_a_worker_that_gives_nothing_is_named(prefix):
    wait = Map(lambda sample: threading.Event().wait(), fields=("image",), batch_transform=False)
    settings = dict(eval_transforms={"wait": wait}, batch_size=2, num_workers=1, worker_timeout=1)
    loader = ShardDataModule(str(prefix), "clevrtex", **settings).val_dataloader()
    with pytest.raises(RuntimeError, match=r"Rank 0 got no batch from data worker 0 \(process \d+\) for 1 s"):
        next(iter(loader))


@pytest.mark.parametrize("prefix", [None, ""])
def test_an_unset_prefix_says_what_to_set(prefix):
    with pytest.raises(ValueError, match=r"DATASET_PREFIX is not set\. .*convert clevrtex RAW OUT"):
        ShardDataModule(prefix, "clevrtex")


@pytest.mark.parametrize("form", ["webdataset", "lmdb"])
def test_a_relative_prefix_starts_where_the_program_was_started(prefix, tmp_path, monkeypatch, form):
    if form == "lmdb":
        options = ["--splits", "train=:9", "--size", "16", "--workers", "1", "--format", "lmdb", "--overwrite"]
        main(["convert", "clevrtex", str(tmp_path / "raw"), str(tmp_path), *options])
    (tmp_path / "run").mkdir()
    monkeypatch.chdir(tmp_path / "run")
    launched = OmegaConf.create({"hydra": {"runtime": {"cwd": str(tmp_path.parent)}}})
    monkeypatch.setattr(HydraConfig.instance(), "cfg", launched)
    data = open_dataset(tmp_path.name, "clevrtex", None, train_transforms=transforms(), batch_size=3, num_workers=0)
    assert data.train_size == 9 and len(list(data.train_dataloader())) == 3
    with pytest.raises(ValueError, match=rf"{tmp_path.parent}/nowhere/clevrtex/summary\.json is missing"):
        open_dataset("nowhere", "clevrtex")


def test_braces_in_the_name_of_a_folder_are_part_of_it(prefix):
    for name in ("{a,b}", "{1..3}", "{", "back\\slash,"):
        (prefix / "clevrtex").rename(prefix / name)
        data = ShardDataModule(str(prefix), name, None, transforms(), batch_size=4, num_workers=0)
        assert sum(batch["batch_size"] for batch in data.val_dataloader()) == 5
        (prefix / name).rename(prefix / "clevrtex")


def test_missing_data_say_how_to_make_them(tmp_path):
    with pytest.raises(ValueError, match=rf"nothing was converted.*convert clevrtex RAW {tmp_path}"):
        ShardDataModule(str(tmp_path), "clevrtex")


def test_an_interrupted_conversion_is_not_read(prefix):
    (prefix / "clevrtex" / "summary.json").rename(prefix / "clevrtex" / "unfinished.json")
    with pytest.raises(ValueError, match=r"summary\.json is missing: its conversion was interrupted"):
        ShardDataModule(str(prefix), "clevrtex")


def test_damaged_shards_are_named(prefix):
    shard = prefix / "clevrtex" / "val" / "shard-000001.tar"
    whole = shard.read_bytes()
    shard.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=rf"val/shard-000001\.tar has {len(whole) // 2} bytes instead of {len(whole)}"):
        ShardDataModule(str(prefix), "clevrtex")
    shard.unlink()
    with pytest.raises(ValueError, match=r"val/shard-000001\.tar is missing"):
        ShardDataModule(str(prefix), "clevrtex")


def test_an_unknown_format_is_refused(prefix):
    path = prefix / "clevrtex" / "summary.json"
    path.write_text(json.dumps(dict(json.loads(path.read_text()), version=2)))
    with pytest.raises(ValueError, match=r"summary\.json has version 2, not 1"):
        ShardDataModule(str(prefix), "clevrtex")


def test_the_config_takes_the_prefix_from_the_environment(prefix, monkeypatch):
    monkeypatch.delenv("DATASET_PREFIX", raising=False)
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        config = compose(overrides=["+dataset=clevrtex", "+seed=3"])
    with pytest.raises(InstantiationException, match="DATASET_PREFIX is not set"):
        instantiate(config.dataset)
    monkeypatch.setenv("DATASET_PREFIX", str(prefix))
    config.dataset.eval_batch_size = 7  # what OCLF's evaluation overrides has to be there
    data = instantiate(config.dataset)
    assert (data.train_size, data.batch_size, data.eval_batch_size) == (9, 32, 7)


def test_without_a_host_the_import_says_how_to_get_one(monkeypatch):
    monkeypatch.setitem(sys.modules, "ocl.datasets", None)
    monkeypatch.delitem(sys.modules, "ocl_msf.data.datamodule")
    with pytest.raises(ImportError, match=r"pip install 'ocl-msf\[host\]'"):
        importlib.import_module("ocl_msf.data.datamodule")


@pytest.mark.parametrize(
    "name, command",
    [
        ("clevrtex", "convert clevrtex RAW {}`"),
        ("clevrtex_outd", "convert clevrtex RAW {} --variant outd`"),
        ("movi_d", "convert movi RAW {} --variant d`"),
        ("coco_panoptic", "convert coco RAW {}`"),
    ],
)
def test_missing_data_are_answered_with_the_command_that_makes_them(tmp_path, name, command):
    with pytest.raises(ValueError, match=re.escape(command.format(tmp_path))):
        ShardDataModule(str(tmp_path), name)
