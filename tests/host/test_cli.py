import functools
import json
import os
import pickle
import sys
from pathlib import Path

import hydra
import numpy as np
import ocl.cli.eval
import ocl.cli.train
import pytest
import torch
import yaml
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from ocl.cli import cli_utils, eval_utils
from ocl.metrics.means import MeanMetric
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

import configs

CONFIGS = Path(configs.__file__).parent

TINY = """
# @package _global_
defaults:
  - /experiment/_output_path
  - /training_config
  - _self_
trainer:
  accelerator: cpu
  devices: 1
  max_steps: 3
  num_sanity_val_steps: 0
  enable_model_summary: false
  log_every_n_steps: 1
seed: 5
experiment:
  callbacks:
    update_hps: {_target_: ocl.callbacks.UpdateHyperparameterScheduling}
dataset:
  _target_: ocl.datasets.DummyDataModule
  data_shapes: {x: [4]}
  data_types: {x: uniform}
  batch_size: 2
  train_size: 6
  val_size: 5
  test_size: 3
models:
  net: {_target_: routed.torch.nn.Linear, in_features: 4, out_features: 4, input_path: input.x}
losses:
  mse:
    _target_: routed.ocl.losses.ReconstructionLoss
    loss_type: mse
    weight: {_target_: ocl.scheduling.StepHPScheduler, start_value: 1.0, end_value: 4.0, switch_step: 3}
    input_path: net
    target_path: input.x
evaluation_metrics:
  mean: {_target_: routed.ocl.metrics.TensorStatistic, tensor_path: net}
optimizers:
  adam:
    _target_: ocl.optimization.OptimizationWrapper
    optimizer: {_target_: torch.optim.Adam, _partial_: true, lr: 0.01}
"""


def compose(name, overrides=(), folder=CONFIGS):
    GlobalHydra.instance().clear()
    with cli_utils.hydra_1_1(), hydra.initialize_config_dir(str(folder), version_base="1.1"):
        return hydra.compose(name, overrides=list(overrides))


@pytest.fixture(scope="module")
def user_configs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("user")
    (folder / "experiment").mkdir()
    (folder / "experiment" / "tiny.yaml").write_text(TINY.lstrip())
    return folder


@pytest.fixture(scope="module")
def ocl_train(run_program):
    # The suite's own HYDRA_FULL_ERROR would change what is printed.
    return functools.partial(run_program, "ocl.cli.train", HYDRA_FULL_ERROR="0")


@pytest.fixture(scope="module")
def run(ocl_train, user_configs, tmp_path_factory):
    """The folder of a run started from the command line."""
    cwd = tmp_path_factory.mktemp("train")
    result = ocl_train("--config-dir", user_configs, "+experiment=tiny", cwd=cwd)
    assert result.returncode == 0, result.stderr
    (folder,) = (cwd / "outputs" / "tiny").iterdir()
    (folder / "stdout.txt").write_text(result.stdout)
    (folder / "stderr.txt").write_text(result.stderr)
    return folder


@pytest.fixture
def evaluate(tmp_path, monkeypatch):
    """Evaluate in this process, and return the metrics of the report."""
    monkeypatch.chdir(tmp_path)

    def call(*overrides, modules=None):
        config = compose("evaluation/eval", [f"output_dir={tmp_path}", *overrides])
        if modules:
            config.modules = modules
        ocl.cli.eval.evaluate(config)
        return json.loads((tmp_path / config.report_filename).read_text())["metrics"]

    return call


# --------------------------------------------------------------------------------------- schemas and configs


DATASETS = sorted(path.stem for path in (CONFIGS / "dataset").glob("*.yaml") if path.stem != "dummy_dataset")


@pytest.mark.parametrize("name", DATASETS)
def test_every_dataset_config_builds(name, monkeypatch):
    monkeypatch.setenv("DATASET_PREFIX", "/prefix")
    config = compose("training_config", [f"+dataset={name}"])
    data = ocl.cli.train.build_and_register_datamodule_from_config(config, batch_size=3)
    shards = [data.train_shards, data.val_shards, data.test_shards]
    assert "/prefix/" in str(shards) and data.batch_size == data.eval_batch_size == 3
    for split in ("train", "val", "test"):
        if getattr(data, f"{split}_shards") is not None:
            assert getattr(data, f"{split}_size") > 1000 or name.startswith("movi")
    pickle.dumps(data)  # filters have to reach data workers


def test_the_path_of_a_yaml_file_starts_where_the_program_was_started(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("numbers.yaml").write_text("a: [1, 2]")
    assert OmegaConf.create({"value": "${read_yaml:numbers.yaml}"}).value == {"a": [1, 2]}


def test_lambdas_of_configs_pickle_and_see_builtins_only():
    function = OmegaConf.create({"f": "${lambda_fn:'lambda a, b=2: max(a * b, 1)'}"}).f
    assert pickle.loads(pickle.dumps(function))(3) == 6
    mode = OmegaConf.create({"m": "${torchvision_interpolation_mode:Bicubic}"}).m
    assert mode.name == "BICUBIC"
    with pytest.raises(NameError):
        OmegaConf.create({"f": "${lambda_fn:'lambda: os.getcwd()'}"}).f()
    with pytest.raises(OmegaConfBaseException, match="lambda"):
        _ = OmegaConf.create({"f": "${lambda_fn:'3 + 4'}"}).f


# -------------------------------------------------------------------------------------------------- training


def test_a_run_folder_tells_what_was_run(run):
    assert {path.name for path in (run / "config").iterdir()} == {
        "config.yaml",
        "hydra.yaml",
        "overrides.yaml",
    }
    stored = yaml.safe_load((run / "config" / "config.yaml").read_text())
    assert stored["seed"] == 5 and stored["trainer"]["callbacks"] == "${oc.dict.values:experiment.callbacks}"
    assert list(stored["dataset"])[:3] == ["_target_", "data_shapes", "data_types"]
    checkpoint = torch.load(cli_utils.find_checkpoint(str(run)), weights_only=True)
    assert checkpoint["global_step"] == 3
    assert set(checkpoint["state_dict"]) == {"models.net.weight", "models.net.bias"}


def test_a_log_file_gets_lines_instead_of_a_progress_bar(run):
    log = (run / "train.log").read_text()
    assert "step 3: train/mse" in log and "step 3: val/mean" in log
    output = (run / "stdout.txt").read_text() + (run / "stderr.txt").read_text()
    assert "it/s" not in output and "Hydra" not in output  # neither progress bars nor advice about versions


def test_wrong_input_ends_with_one_message(ocl_train, user_configs, tmp_path):
    result = ocl_train("--config-dir", user_configs, "+experiment=tiny", "load_checkpoint=none.ckpt", cwd=tmp_path)
    assert result.returncode == 1
    assert f"Checkpoint {tmp_path}/none.ckpt does not exist." in result.stdout + result.stderr
    assert "Traceback" not in result.stdout + result.stderr and "HYDRA_FULL_ERROR=1" in result.stdout


def test_sigterm_becomes_the_exit_status_and_leaves_a_checkpoint(ocl_train, user_configs, tmp_path):
    (tmp_path / "terminating.py").write_text(
        "import os, signal\n"
        "import pytorch_lightning as pl\n\n\n"
        "class Terminate(pl.Callback):\n"
        "    def on_train_batch_start(self, trainer, *_):\n"
        "        if trainer.global_step == 1:\n"
        "            os.kill(os.getpid(), signal.SIGTERM)\n"
    )
    path = os.pathsep.join([str(tmp_path), *sys.path])
    terminate = "+experiment.callbacks.terminate._target_=terminating.Terminate"
    result = ocl_train("--config-dir", user_configs, "+experiment=tiny", terminate, cwd=tmp_path, PYTHONPATH=path)
    assert result.returncode == 143
    (folder,) = (tmp_path / "outputs" / "tiny").iterdir()
    checkpoint = cli_utils.find_checkpoint(str(folder))
    assert checkpoint.endswith("step=2.ckpt") and f"load_checkpoint='{checkpoint}'" in result.stdout


def test_an_interrupted_run_names_its_checkpoint_as_it_names_all(ocl_train, user_configs, tmp_path):
    """Without quotes in the command to continue, if Hydra needs none."""
    (tmp_path / "stopping.py").write_text(
        "import os, signal\n"
        "import pytorch_lightning as pl\n\n\n"
        "class Stop(pl.Callback):\n"
        "    def on_train_batch_start(self, trainer, *_):\n"
        "        if trainer.global_step == 1:\n"
        "            os.kill(os.getpid(), signal.SIGTERM)\n"
    )
    path = os.pathsep.join([str(tmp_path), *sys.path])
    saving = "_target_:pytorch_lightning.callbacks.ModelCheckpoint,auto_insert_metric_name:false,filename:%s"
    for pattern, name in {"at{step:03}": "at002.ckpt", "best": "epoch=0-step=2.ckpt"}.items():
        chosen = ["+experiment.callbacks.stop._target_=stopping.Stop", f"hydra.run.dir={pattern[:2]}"]
        chosen.append(f"+experiment.callbacks.saving={{{saving % repr(pattern)}}}")
        result = ocl_train("--config-dir", user_configs, "+experiment=tiny", *chosen, cwd=tmp_path, PYTHONPATH=path)
        (checkpoint,) = (tmp_path / pattern[:2]).glob("lightning_logs/version_0/checkpoints/*")
        quote = "'" if "=" in name else ""
        assert result.returncode == 143 and checkpoint.name == name
        assert f"load_checkpoint={quote}{checkpoint}{quote}" in result.stdout


def test_resuming_continues_in_a_new_folder(run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    checkpoint = cli_utils.find_checkpoint(str(run))
    config = OmegaConf.load(run / "config" / "config.yaml")
    config.load_checkpoint = os.path.relpath(checkpoint, tmp_path)
    config.trainer.max_steps = 5
    ocl.cli.train.train(config)
    resumed = torch.load(cli_utils.find_checkpoint(str(tmp_path)), weights_only=True)
    assert resumed["global_step"] == 5 and os.path.exists(checkpoint)
    assert resumed["optimizer_states"][0]["state"][0]["step"] == 5
    config.models.net.out_features = 3
    with pytest.raises(cli_utils.CheckpointError, match=r"models.net.weight \(4, 4\) instead of \(3, 4\)"):
        ocl.cli.train.train(config)


def test_training_needs_an_experiment():
    with pytest.raises(ValueError, match=r"no dataset, models, losses, optimizers.*\+experiment="):
        ocl.cli.train.train(compose("training_config"))


# ------------------------------------------------------------------------------------------------ evaluation


def test_evaluating_a_run_folder_file_or_name_reports_the_same_splits(run, evaluate):
    metrics = evaluate(f"train_config_path={run}", "eval_train=true", "eval_test=true")
    assert {split: set(values) for split, values in metrics.items()} == {
        split: {"mse", "mean"} for split in ("train", "val", "test")
    }
    alone = evaluate(f"train_config_path={run}/config/config.yaml", "eval_batch_size=5")
    assert alone["val"] == pytest.approx(metrics["val"])
    alone = evaluate(f"train_config_path={run}/config", "train_config_name=config", "skip_metrics=true")
    assert alone == {"val": {"mse": pytest.approx(metrics["val"]["mse"])}}


def test_the_config_of_a_run_comes_before_other_files_in_its_folder(run, tmp_path):
    (tmp_path / "config").mkdir()
    for place in ("config/config.yaml", "config.yaml"):
        (tmp_path / place).write_text("")
    config = compose("evaluation/eval", [f"train_config_path={tmp_path}"])
    assert ocl.cli.eval.find_train_config(config) == str(tmp_path / "config" / "config.yaml")
    (tmp_path / "config" / "config.yaml").unlink()
    assert ocl.cli.eval.find_train_config(config) == str(tmp_path / "config.yaml")


def test_sizes_that_a_dataset_leaves_open_come_from_training(run, evaluate):
    override = "train_config_overrides=['+dataset.eval_batch_size=???']"
    dataset = "dataset={_target_: ocl.datasets.DummyDataModule, data_shapes: {x: [4]}, data_types: {x: uniform}"
    dataset += ", batch_size: ???}"
    assert "mse" in evaluate(f"train_config_path={run}", override, dataset)["val"]


def test_schedules_are_evaluated_at_the_step_of_the_checkpoint(run, evaluate):
    scheduled = evaluate(f"train_config_path={run}")["val"]["mse"]
    plain = evaluate(f"train_config_path={run}", "train_config_overrides=['losses.mse.weight=1.0']")
    assert scheduled == pytest.approx(4 * plain["val"]["mse"])


def test_the_report_and_outputs_default_to_the_run_folder(run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = compose("evaluation/eval", [f"train_config_path={run}"])
    ocl.cli.eval.evaluate(config)
    report = json.loads((run / "metrics.json").read_text())
    assert list(report) == ["train_config_path", "checkpoint_path", "metrics"]
    assert os.path.isabs(report["checkpoint_path"]) and os.path.isfile(report["train_config_path"])
    assert not list(tmp_path.iterdir())


def test_modules_metrics_and_stored_outputs(run, evaluate, tmp_path):
    # Identity takes any argument: this one only exists in the config of the evaluation.
    identity = {"_target_": "routed.torch.nn.Identity", "input_path": "net", "folder": "${output_dir}"}
    metrics = evaluate(
        f"train_config_path={run}",
        "evaluation_metrics={top: {_target_: routed.ocl.metrics.TensorStatistic, tensor_path: copy}}",
        "save_outputs=true",
        "outputs_to_store=[net,input.__key__]",
        "n_samples_to_store=3",  # one and a half batches
        modules={"copy": identity},
    )
    assert set(metrics["val"]) == {"mse", "top"}
    files = sorted(path.name for path in (tmp_path / "outputs" / "val").iterdir())
    assert files == [f"{i}.{name}" for i in range(3) for name in ("input.__key__.pkl", "net.npy")]
    assert np.load(tmp_path / "outputs" / "val" / "2.net.npy").shape == (4,)
    with pytest.raises(ValueError, match="`net` cannot be added"):
        evaluate(f"train_config_path={run}", modules={"net": identity})


def strictly(text):
    """Parse JSON, which has no NaN and no infinity."""

    def refuse(name):
        raise AssertionError(f"{name} is no JSON")

    return json.loads(text, parse_constant=refuse)


class Undefined(MeanMetric):
    """A score of nothing."""

    def __init__(self, value):
        super().__init__()
        self.value = value

    def update(self, **outputs):
        pass

    def compute(self):
        return torch.tensor(self.value)


def test_a_score_that_is_not_defined_is_null(run, evaluate, tmp_path, monkeypatch):
    monkeypatch.setattr(sys.modules["ocl.metrics"], "Undefined", Undefined, raising=False)
    named = ", ".join(
        f"{name}: {{_target_: routed.ocl.metrics.Undefined, value: {value}}}"
        for name, value in {"nothing": "nan", "much": "inf", "some": 0.5}.items()
    )
    evaluate(f"train_config_path={run}", f"evaluation_metrics={{{named}}}", "report_filename=other.json")
    scores = strictly((tmp_path / "other.json").read_text())["metrics"]["val"]
    assert (scores["nothing"], scores["much"], scores["some"]) == (None, None, 0.5) and scores["mse"] > 0


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_model_that_has_diverged_is_not_scored(run, evaluate, tmp_path, value):
    checkpoint = torch.load(cli_utils.find_checkpoint(str(run)), weights_only=True)
    checkpoint["state_dict"]["models.net.bias"][:] = value
    torch.save(checkpoint, tmp_path / "spoiled.ckpt")
    spoiled = [f"train_config_path={run}", "checkpoint_path=spoiled.ckpt"]
    with pytest.raises(ValueError, match=r"The loss `mse` is (nan|inf) on val.*checkpoint_path=PATH"):
        evaluate(*spoiled, "skip_metrics=true")
    assert not (tmp_path / "metrics.json").exists()


def test_evaluation_says_what_is_missing(run, evaluate, tmp_path):
    with pytest.raises(ValueError, match="nowhere.*does not exist"):
        evaluate("train_config_path=nowhere")
    with pytest.raises(ValueError, match="none.ckpt does not exist"):
        evaluate(f"train_config_path={run}", "checkpoint_path=none.ckpt")
    with pytest.raises(ValueError, match="`outputs_to_store`"):
        evaluate(f"train_config_path={run}", "save_outputs=true")
    with pytest.raises(ValueError, match=r"leave \+trainer.devices out"):
        store = ["save_outputs=true", "outputs_to_store=[net]"]  # files are numbered one after another
        evaluate(f"train_config_path={run}", *store, "+trainer.devices=2")
    (tmp_path / "config").mkdir()
    (tmp_path / "config" / "config.yaml").write_text((run / "config" / "config.yaml").read_text())
    with pytest.raises(ValueError, match="No checkpoint"):
        evaluate(f"train_config_path={tmp_path}")


# --------------------------------------------------------------------------------------------------- helpers


def test_the_newest_checkpoint_is_found(tmp_path):
    def write(version, name, age):
        path = tmp_path / "lightning_logs" / f"version_{version}" / "checkpoints" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("")
        os.utime(path, (age, age))
        return str(path)

    with pytest.raises(IndexError):
        cli_utils.find_checkpoint(str(tmp_path))
    write(9, "epoch=0-step=500.ckpt", 900)
    newest = write(10, "epoch=10-step=100.ckpt", 100)
    write(10, "epoch=9-step=90.ckpt", 200)  # copying a run changes its times
    assert cli_utils.find_checkpoint(str(tmp_path)) == newest
    newest = write(10, "epoch0011-step0000110.ckpt", 50)  # of an experiment that names them without =
    assert cli_utils.find_checkpoint(str(tmp_path)) == newest
    newest = write(10, "last.ckpt", 300)
    assert cli_utils.find_checkpoint(str(tmp_path)) == newest


def test_errors_of_data_workers_are_told_in_a_sentence():
    text = (
        "Caught ShardError in DataLoader worker process 0.\nOriginal Traceback (most recent call last):\n"
        '  File "shards.py", line 3, in read\n    unpack()\nShardError: shard a is\ndamaged\n'
    )
    assert cli_utils.describe(ValueError(text)) == "ShardError: shard a is\ndamaged"


def test_the_config_folder_of_the_command_line_is_known_inside_a_job(monkeypatch):
    assert cli_utils.get_commandline_config_path() is None
    sources = [{"path": "configs", "provider": "main"}, {"path": "/mine", "provider": "command-line"}]
    monkeypatch.setattr(HydraConfig, "initialized", lambda: True)
    monkeypatch.setattr(HydraConfig, "get", lambda: OmegaConf.create({"runtime": {"config_sources": sources}}))
    assert cli_utils.get_commandline_config_path() == "/mine"


def test_extracting_outputs_by_sample():
    paths, names = ["a.b", "c"], ["b", "c"]
    extract = eval_utils.ExtractDataFromPredictions(paths, names, max_samples=3, flatten_batches=True)
    for start in (0, 2):
        outputs = {"a": {"b": torch.arange(start, start + 2)}, "c": ["x", "y"]}
        extract.on_predict_batch_end(None, None, outputs, {"batch_size": 2}, 0)
    assert extract.get_outputs() == [{"b": 0, "c": "x"}, {"b": 1, "c": "y"}, {"b": 2, "c": "x"}]
