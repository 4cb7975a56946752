"""What the command line offers besides running: what a run would be, how much data it has, where it logs."""

import csv
import dataclasses
import inspect
import logging
import subprocess
import sys

import hydra
import numpy as np
import pytest
import pytorch_lightning as pl
import webdataset
from hydra.core.global_hydra import GlobalHydra
from ocl.cli import cli_utils, dump_movi_dataset, training_config
from ocl.cli.compute_dataset_size import compute_size
from ocl.cli.eval import list_metrics
from ocl.cli.train import TrainerConf, instantiate
from omegaconf import OmegaConf
from pytorch_lightning.plugins.environments import SLURMEnvironment

TINY = """
# @package _global_
defaults: [/experiment/_output_path, /training_config, _self_]
trainer: {accelerator: cpu, devices: 1, max_steps: 2, log_every_n_steps: 1, enable_model_summary: false}
dataset:
  _target_: ocl.datasets.DummyDataModule
  data_shapes: {x: [4]}
  data_types: {x: uniform}
models:
  net: {_target_: routed.torch.nn.Linear, in_features: 4, out_features: 4, input_path: input.x}
losses:
  mse: {_target_: routed.ocl.losses.ReconstructionLoss, loss_type: mse, input_path: net, target_path: input.x}
optimizers:
  adam: {_target_: torch.optim.Adam, _partial_: true, lr: 0.01}
"""


@pytest.fixture
def program(tmp_path, run_program):
    """Start a program of the host, in a folder of its own."""
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment" / "tiny.yaml").write_text(TINY.lstrip())

    def run(name, *arguments):
        arguments = ["--config-dir", tmp_path, *arguments]
        return run_program(f"ocl.cli.{name}", *arguments, cwd=tmp_path, HYDRA_FULL_ERROR="0")

    return run


@pytest.mark.parametrize(
    "arguments, expected",
    [
        (["+experiment=tiny", "--cfg", "job"], ["max_steps: 2", "max_epochs: null", "loss_type: mse"]),
        (["+experiment=tiny", "--info"], ["pkg://configs", "experiment/tiny", "training_config"]),
        (["+experiment=tiny", "--info", "defaults-tree"], ["experiment: tiny"]),
    ],
)
def test_a_run_is_shown_without_running(program, tmp_path, arguments, expected):
    result = program("train", *arguments)
    assert result.returncode == 0, result.stderr
    assert all(text in result.stdout for text in expected)
    assert "Training in" not in result.stdout and not (tmp_path / "outputs" / "tiny").exists()


@pytest.mark.parametrize("override", ["trainer.max_stepz=3", "seeed=3"])
def test_unknown_keys_give_hydras_message(program, override):
    result = program("train", "+experiment=tiny", override)
    assert result.returncode == 1
    assert f"Could not override '{override[:-2]}'." in result.stderr
    assert f"To append to your config use +{override}" in result.stderr and "Traceback" not in result.stderr


def test_csv_instead_of_tensorboard_by_an_override(program, tmp_path):
    logger = "trainer.logger={_target_: pytorch_lightning.loggers.CSVLogger, save_dir: .}"
    result = program("train", "+experiment=tiny", logger, "hydra.run.dir=run")
    assert result.returncode == 0, result.stderr
    with open(tmp_path / "run" / "lightning_logs" / "version_0" / "metrics.csv") as file:
        rows = list(csv.DictReader(file))
    assert len([row for row in rows if row["train/mse"]]) == 2 and "lr-Adam" in rows[0]
    assert cli_utils.find_checkpoint(str(tmp_path / "run")).endswith("step=2.ckpt")
    assert not list((tmp_path / "run").rglob("events.out*"))


def test_tensorboard_without_any_override(program, tmp_path):
    result = program("train", "+experiment=tiny", "hydra.run.dir=run")
    assert result.returncode == 0, result.stderr
    assert list((tmp_path / "run" / "lightning_logs" / "version_0").glob("events.out*"))


def test_a_config_is_composed_without_what_trains():
    code = """
import sys, hydra, ocl.cli.train
with hydra.initialize_config_module("configs", version_base="1.1"):
    print(hydra.compose("training_config", ["+experiment=slate/clevr6"]).trainer._target_)
print({"torch", "torchvision", "pytorch_lightning"} & set(sys.modules))
"""
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True)
    assert done.stdout == "pytorch_lightning.trainer.trainer.Trainer\nset()\n", done.stderr


def test_a_config_has_the_arguments_of_lightnings_trainer_and_their_defaults():
    defaults = {name: parameter.default for name, parameter in inspect.signature(pl.Trainer).parameters.items()}
    expected = {"_target_": f"{pl.Trainer.__module__}.Trainer", **defaults}
    expected["callbacks"] = "${oc.dict.values:experiment.callbacks}"
    assert {field.name: field.default for field in dataclasses.fields(TrainerConf)} == expected


def test_the_arguments_of_a_trainer_written_in_another_way_are_asked_for(monkeypatch):
    def refuse(source):
        raise ValueError("no class Trainer")

    read = {(name, default) for name, _, default in training_config.trainer_arguments()}
    monkeypatch.setattr(training_config, "read_arguments", refuse)
    assert {(name, default) for name, _, default in training_config.trainer_arguments()} == read


def test_slurm_is_an_overlay_of_launcher_and_strategy(tmp_path):
    # Stands in for the package hydra-submitit-launcher, which may be absent.
    (tmp_path / "hydra" / "launcher").mkdir(parents=True)
    options = ("timeout_min: 60", "cpus_per_task: 1", "tasks_per_node: 1", "gres: null")
    (tmp_path / "hydra" / "launcher" / "submitit_slurm.yaml").write_text("\n".join(options))
    overrides = [f"hydra.searchpath=[file://{tmp_path}]", "+cluster=slurm", "trainer.num_nodes=2"]
    GlobalHydra.instance().clear()
    with cli_utils.hydra_1_1(), hydra.initialize_config_module("configs", version_base="1.1"):
        config = hydra.compose("training_config", overrides, return_hydra_config=True)
    assert config.hydra.launcher.tasks_per_node == config.trainer.devices == 8
    assert config.trainer.num_nodes == 2
    assert isinstance(instantiate(config.trainer.strategy), pl.strategies.DDPStrategy)
    (environment,) = instantiate(config.trainer.plugins)
    assert isinstance(environment, SLURMEnvironment) and not environment.auto_requeue


def test_weights_and_biases_by_an_override(program):
    logger = "trainer.logger={_target_: pytorch_lightning.loggers.WandbLogger, project: msf, offline: true}"
    result = program("train", "+experiment=tiny", logger, "--cfg", "job")
    assert result.returncode == 0, result.stderr
    assert "_target_: pytorch_lightning.loggers.WandbLogger" in result.stdout


def test_the_size_of_a_dataset_counts_what_its_transforms_leave(tmp_path, caplog):
    for shard in range(2):
        with webdataset.TarWriter(str(tmp_path / f"{shard}.tar")) as sink:
            for key in range(5 * shard, 5 * shard + 5):
                sink.write({"__key__": str(key), "x.npy": np.full(3, key)})
    predicate = "${lambda_fn:'lambda x: x.max() < 7'}"
    few = {"_target_": "ocl.transforms.Filter", "predicate": predicate, "fields": ["x"]}
    dataset = {
        "_target_": "ocl.datasets.WebdatasetDataModule",
        "train_shards": str(tmp_path / "{0..1}.tar"),
        "val_shards": str(tmp_path / "1.tar"),
        "train_transforms": {"few": few},
    }
    with caplog.at_level(logging.INFO):
        compute_size(OmegaConf.create({"dataset": dataset}))
    for line in ("Train split size: 7", "Validation split size: 5", "Test split: This dataset has no"):
        assert line in caplog.text


def test_scores_of_a_group_have_a_line_of_their_own():
    metrics = {"loss": 1.0, "ami/group_1/scale_1": 0.25, "inter": 2.0, "ami/all": float("nan")}
    assert list_metrics(metrics) == "loss 1, inter 2\n  ami: group_1/scale_1 0.25, all nan"


def dump(data_shapes, tmp_path):
    GlobalHydra.instance().clear()
    types = {"image": "image", "mask": "mask"}
    dataset = {"_target_": "ocl.datasets.DummyDataModule", "data_shapes": data_shapes, "data_types": types}
    sizes = {"train_size": 3, "val_size": 2}
    dump_movi_dataset.dump(OmegaConf.create({"dataset": {**dataset, **sizes}, "output_dir": str(tmp_path / "arrays")}))
    return {path.name: np.load(path) for path in (tmp_path / "arrays").iterdir()}


def test_images_and_masks_of_movi_are_dumped_as_arrays(tmp_path):
    arrays = dump({"image": [8, 8, 3], "mask": [2, 8, 8, 1]}, tmp_path)
    shapes = {name: array.shape for name, array in arrays.items()}
    images, masks = (8, 8, 3), (2, 8, 8, 1)
    assert shapes == {"train_images.npy": (3, *images), "val_images.npy": (2, *images), "val_labels.npy": (2, *masks)}
    assert arrays["val_labels.npy"].dtype == np.uint8


def test_what_cannot_be_dumped_is_said(tmp_path, program):
    with pytest.raises(ValueError, match="no field `mask`"):
        dump({"image": [8, 8, 3]}, tmp_path)
    with pytest.raises(ValueError, match="one array takes samples of one shape"):
        samples = [{"image": np.zeros((size, 2, 3))} for size in (2, 4)]
        dump_movi_dataset.write(tmp_path, samples, {"image": "images"}, "training")
    assert "+dataset=movi_c_image" in program("dump_movi_dataset").stdout
