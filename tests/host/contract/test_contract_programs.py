"""Contract of the commands, and of what they do in this process."""

import json
import os
import pickle
from pathlib import Path

import numpy as np
import ocl.cli.eval
import ocl.cli.train
import pytest
import torch
import yaml
from ocl.cli import cli_utils, eval_utils
from ocl.combined_model import CombinedModel
from omegaconf import OmegaConf

SIZE = 16

TINY_EXPERIMENT = """
# @package _global_
defaults:
  - /experiment/_output_path
  - /training_config
  - _self_

trainer:
  accelerator: cpu
  devices: 1
  max_steps: 3
  max_epochs:
  num_sanity_val_steps: 0
  enable_progress_bar: false
  log_every_n_steps: 1
training_vis_frequency: 2
seed: 7

dataset:
  _target_: ocl.datasets.WebdatasetDataModule
  train_shards: "${oc.env:TINY_DATA}/train-{000000..000001}.tar"
  val_shards: "${oc.env:TINY_DATA}/val-{000000..000001}.tar"
  test_shards: "${oc.env:TINY_DATA}/val-{000000..000001}.tar"
  train_size: 6
  val_size: 5
  test_size: 5
  batch_size: 2
  eval_batch_size:
  num_workers: 0
  train_transforms:
    01_preprocessing:
      _target_: ocl.transforms.SimpleTransform
      transforms:
        image:
          _target_: torchvision.transforms.Compose
          transforms:
            - _target_: torchvision.transforms.ToTensor
            - "${lambda_fn:'lambda image: image.clamp(0.0, 1.0)'}"
        mask:
          _target_: ocl.preprocessing.MaskToTensor
      batch_transform: false
  eval_transforms: ${.train_transforms}

models:
  feature_extractor:
    _target_: routed.ocl.feature_extractors.SlotAttentionFeatureExtractor
    video_path: input.image
  conditioning:
    _target_: routed.ocl.conditioning.LearntConditioning
    object_dim: 8
    n_slots: 3
    batch_size_path: input.batch_size
  perceptual_grouping:
    _target_: routed.ocl.perceptual_grouping.SlotAttentionGrouping
    feature_dim: 8
    object_dim: ${..conditioning.object_dim}
    iters: 2
    positional_embedding:
      _target_: ocl.neural_networks.wrappers.Sequential
      _args_:
        - _target_: ocl.neural_networks.positional_embedding.SoftPositionEmbed
          n_spatial_dims: 2
          feature_dim: 64
        - _target_: ocl.neural_networks.build_two_layer_mlp
          input_dim: 64
          output_dim: 8
          hidden_dim: "${eval_lambda:'lambda d: 2 * d', ${models.conditioning.object_dim}}"
          initial_layer_norm: true
    feature_path: feature_extractor
    conditioning_path: conditioning
  object_decoder:
    _target_: routed.ocl.decoding.SlotAttentionDecoder
    object_features_path: perceptual_grouping.objects
    decoder:
      _target_: torch.nn.ConvTranspose2d
      in_channels: 8
      out_channels: 4
      kernel_size: 2
      stride: 2
    positional_embedding:
      _target_: ocl.neural_networks.positional_embedding.SoftPositionEmbed
      n_spatial_dims: 2
      feature_dim: 8
      cnn_channel_order: true

losses:
  mse:
    _target_: routed.ocl.losses.ReconstructionLoss
    loss_type: mse
    input_path: object_decoder.reconstruction
    target_path: input.image

visualizations:
  input:
    _target_: routed.ocl.visualizations.Image
    image_path: input.image
  objects:
    _target_: routed.ocl.visualizations.VisualObject
    object_path: object_decoder.object_reconstructions
    mask_path: object_decoder.masks

evaluation_metrics:
  ari:
    _target_: routed.ocl.metrics.ARIMetric
    prediction_path: object_decoder.masks
    target_path: input.mask

optimizers:
  opt0:
    _target_: ocl.optimization.OptimizationWrapper
    optimizer:
      _target_: torch.optim.Adam
      _partial_: true
      lr: 0.01
    lr_scheduler:
      _target_: ocl.scheduling.exponential_decay_after_optional_warmup
      _partial_: true
      warmup_steps: 1
"""

# The same with a scheduled loss weight: 1 in the first step, 4 from the second on.
SCHEDULED_EXPERIMENT = """
# @package _global_
defaults:
  - /experiment/tiny/autoencoder
  - _self_

experiment:
  callbacks:
    update_hps:
      _target_: ocl.callbacks.UpdateHyperparameterScheduling
losses:
  mse:
    weight:
      _target_: ocl.scheduling.StepHPScheduler
      start_value: 1.0
      end_value: 4.0
      switch_step: 1
"""

EVALUATION = """
# @package _global_
defaults:
  - /evaluation_config
  - _self_

modules:
  masks_resized:
    _target_: routed.ocl.utils.resizing.Resize
    input_path: object_decoder.masks
    size: 5
evaluation_metrics:
  share:
    _target_: routed.ocl.metrics.TensorStatistic
    tensor_path: masks_resized
"""


def scene(rng):
    ids = rng.randint(0, 3, (SIZE // 4, SIZE // 4)).repeat(4, axis=0).repeat(4, axis=1)
    image = (ids[..., None] * 80 + rng.randint(0, 40, (SIZE, SIZE, 3))).astype(np.uint8)
    mask = np.stack([ids == c for c in range(3)])[..., None].astype(np.uint8)
    return image, mask


@pytest.fixture(scope="module")
def workspace(tmp_path_factory, configs_dir, shard_tools):
    """Tiny data, a user config folder for it, and a merged folder for in-process composition."""
    root = tmp_path_factory.mktemp("workspace")
    rng, key = np.random.RandomState(0), 0
    for split, sizes in (("train", (3, 3)), ("val", (3, 2))):
        for shard, size in enumerate(sizes):
            members = []
            for _ in range(size):
                image, mask = scene(rng)
                stem = f"{key:05d}"
                if split == "train":
                    members.append((f"{stem}.image.npy", shard_tools.npy(image)))
                else:
                    members.append((f"{stem}.image.png", shard_tools.png(image)))
                members.append((f"{stem}.mask.npy.gz", shard_tools.gz(shard_tools.npy(mask))))
                members.append((f"{stem}.unused.npy", shard_tools.npy(np.zeros(100))))
                key += 1
            shard_tools.tar(root / "data" / f"{split}-{shard:06d}.tar", members)

    files = {
        "experiment/tiny/autoencoder.yaml": TINY_EXPERIMENT,
        "experiment/tiny/scheduled.yaml": SCHEDULED_EXPERIMENT,
        "evaluation/tiny.yaml": EVALUATION,
    }
    merged = root / "merged"
    for folder in (root / "user", merged):
        for name, text in files.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_text(text.strip() + "\n")
    (merged / "experiment" / "_output_path.yaml").write_text(
        (configs_dir / "experiment" / "_output_path.yaml").read_text()
    )
    return root


@pytest.fixture
def tiny_env(workspace, monkeypatch, tmp_path):
    monkeypatch.setenv("TINY_DATA", str(workspace / "data"))
    monkeypatch.chdir(tmp_path)
    return workspace


def only(paths):
    paths = sorted(paths)
    assert len(paths) == 1, paths
    return paths[0]


class Run:
    def __init__(self, folder, output):
        self.folder, self.output = folder, output

    @property
    def config(self):
        return self.folder / "config" / "config.yaml"

    @property
    def checkpoint(self):
        return only((self.folder / "lightning_logs").glob("version_*/checkpoints/*.ckpt"))


@pytest.fixture(scope="module")
def trained(workspace, cli):
    """One training run through the command line."""
    cwd = workspace / "train"
    cwd.mkdir()
    code, output = cli(
        "ocl_train",
        ["--config-dir", workspace / "user", "+experiment=tiny/autoencoder"],
        cwd,
        TINY_DATA=str(workspace / "data"),
    )
    assert code == 0, output[-4000:]
    return Run(only((cwd / "outputs" / "tiny" / "autoencoder").iterdir()), output)


def train_in_process(compose, workspace, folder, overrides=(), name="autoencoder"):
    """Train below `folder` and leave the same traces as the command line tool."""
    config = compose("training_config", [f"+experiment=tiny/{name}", *overrides], workspace / "merged")
    folder.mkdir(parents=True, exist_ok=True)
    previous = os.getcwd()
    os.chdir(folder)
    try:
        ocl.cli.train.train(config)
    finally:
        os.chdir(previous)
    (folder / "config").mkdir(exist_ok=True)
    OmegaConf.save(config, folder / "config" / "config.yaml")
    return Run(folder, "")


def quoted(path):
    return "'" + str(path) + "'"  # `=` in checkpoint names needs quoting in hydra's grammar


def evaluate(compose, workspace, overrides, name="eval"):
    folder = workspace / "merged" if name == "tiny" else None
    config = compose(f"evaluation/{name}", overrides, folder)
    ocl.cli.eval.evaluate(config)


def report(folder, name="metrics.json"):
    return json.loads((Path(folder) / name).read_text())


# -------------------------------------------------------------------------------------------------------------- helpers


@pytest.mark.core
def test_find_checkpoint(tmp_path):
    with pytest.raises(IndexError):
        cli_utils.find_checkpoint(str(tmp_path))
    folder = tmp_path / "lightning_logs" / "version_0" / "checkpoints"
    folder.mkdir(parents=True)
    (folder / "epoch=0-step=3.ckpt").write_text("")
    assert cli_utils.find_checkpoint(str(tmp_path)) == str(folder / "epoch=0-step=3.ckpt")


@pytest.mark.modern
@pytest.mark.core
def test_find_checkpoint_picks_the_newest(tmp_path):
    order = [(0, 5), (2, 3), (10, 4), (10, 20)]
    for age, (version, step) in enumerate(order):
        folder = tmp_path / "lightning_logs" / f"version_{version}" / "checkpoints"
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"epoch={step}-step={step * 10}.ckpt"
        path.write_text("")
        os.utime(path, (1000 + age, 1000 + age))
    found = cli_utils.find_checkpoint(str(tmp_path))
    assert found.endswith(os.path.join("version_10", "checkpoints", "epoch=20-step=200.ckpt"))


@pytest.mark.core
def test_save_outputs_writes_one_file_per_entry(tmp_path):
    outputs = [{"a.b": torch.full((2,), float(i)), "n": "text"} for i in range(11)]
    eval_utils.save_outputs(str(tmp_path / "o"), outputs)
    assert np.array_equal(np.load(tmp_path / "o" / "03.a.b.npy"), [3.0, 3.0])
    assert pickle.loads((tmp_path / "o" / "10.n.pkl").read_bytes()) == "text"
    assert len(list((tmp_path / "o").iterdir())) == 22


# ------------------------------------------------------------------------------------------------------------- training


@pytest.mark.core
def test_train_writes_its_run_folder(trained):
    folder = trained.folder
    assert (folder / "train.log").is_file()
    assert {p.name for p in (folder / "config").iterdir()} == {
        "config.yaml",
        "hydra.yaml",
        "overrides.yaml",
    }
    config = OmegaConf.load(trained.config)
    assert config.dataset._target_ == "ocl.datasets.WebdatasetDataModule"
    assert config.trainer.max_steps == 3 and config.seed == 7
    # Interpolations are stored unresolved.
    raw = yaml.safe_load(trained.config.read_text())
    assert raw["dataset"]["train_shards"].startswith("${oc.env:TINY_DATA}")
    assert OmegaConf.load(folder / "config" / "overrides.yaml") == ["+experiment=tiny/autoencoder"]
    assert (folder / "lightning_logs" / "version_0").is_dir()


@pytest.mark.core
def test_train_leaves_a_lightning_checkpoint(trained):
    assert trained.checkpoint.name == "epoch=0-step=3.ckpt"
    checkpoint = torch.load(str(trained.checkpoint), map_location="cpu")
    assert checkpoint["global_step"] == 3
    names = set(checkpoint["state_dict"])
    assert "models.feature_extractor.layers.0.weight" in names
    assert "models.conditioning.slots" in names
    assert "models.perceptual_grouping.slot_attention.gru.weight_ih" in names
    assert all(name.startswith("models.") for name in names)
    assert len(checkpoint["optimizer_states"]) == 1 and len(checkpoint["lr_schedulers"]) == 1


@pytest.fixture(scope="module")
def resumed(workspace, cli, compose):
    """Continue a run of its own: (state before, first run, resumed run)."""
    previous = os.environ.get("TINY_DATA")
    os.environ["TINY_DATA"] = str(workspace / "data")
    try:
        first = train_in_process(compose, workspace, workspace / "first")
    finally:
        os.environ.pop("TINY_DATA")
        if previous is not None:
            os.environ["TINY_DATA"] = previous
    before = torch.load(str(first.checkpoint), map_location="cpu")
    checkpoint = first.checkpoint
    cwd = workspace / "resume"
    cwd.mkdir()
    relative = os.path.relpath(checkpoint, cwd)  # relative to where the tool is started
    code, output = cli(
        "ocl_train",
        [
            f"--config-dir={workspace / 'user'}",
            "+experiment=tiny/autoencoder",
            f"load_checkpoint={quoted(relative)}",
            "trainer.max_steps=5",
            "+experiment.root_output_folder=elsewhere",
        ],
        cwd,
        TINY_DATA=str(workspace / "data"),
    )
    assert code == 0, output[-4000:]
    second = Run(only((cwd / "elsewhere" / "tiny" / "autoencoder").iterdir()), output)
    return before, checkpoint, second


@pytest.mark.core
def test_resuming_from_a_checkpoint(resumed):
    before, _, run = resumed
    checkpoint = torch.load(str(run.checkpoint), map_location="cpu")
    assert checkpoint["global_step"] == 5 and checkpoint["epoch"] == 1
    steps = [state["step"] for state in checkpoint["optimizer_states"][0]["state"].values()]
    assert all(int(step) == 5 for step in steps)  # optimizer state was continued, too
    assert checkpoint["lr_schedulers"][0]["last_epoch"] == 5
    old, new = before["state_dict"], checkpoint["state_dict"]
    assert set(old) == set(new) and any(not torch.equal(new[name], old[name]) for name in old)


@pytest.mark.modern
@pytest.mark.core
def test_resuming_never_deletes_the_checkpoint_it_started_from(resumed):
    assert resumed[1].is_file()


@pytest.mark.core
def test_train_needs_an_existing_checkpoint_to_resume(compose, tiny_env):
    config = compose(
        "training_config",
        ["+experiment=tiny/autoencoder", "load_checkpoint=/does/not/exist.ckpt"],
        tiny_env / "merged",
    )
    with pytest.raises(FileNotFoundError):
        ocl.cli.train.train(config)


@pytest.mark.core
def test_training_is_reproducible_for_a_seed(compose, tiny_env, tmp_path):
    weights = []
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        run = train_in_process(compose, tiny_env, tmp_path / name, [f"seed={seed}", "trainer.max_steps=2"])
        state = torch.load(str(run.checkpoint), map_location="cpu")["state_dict"]
        weights.append(state["models.feature_extractor.layers.0.weight"])
    assert torch.equal(weights[0], weights[1]) and not torch.equal(weights[0], weights[2])


@pytest.mark.core
def test_models_are_built_from_the_config(compose, tiny_env, trained):
    config = compose("training_config", ["+experiment=tiny/autoencoder"], tiny_env / "merged")
    model = ocl.cli.train.build_model_from_config(config)
    assert isinstance(model, CombinedModel) and model.vis_log_frequency == 2
    assert list(model.models) == list(config.models)
    assert set(model.losses) == {"mse"} and set(model.evaluation_metrics) == {"ari"}
    loaded = ocl.cli.train.build_model_from_config(config, str(trained.checkpoint))
    state = torch.load(str(trained.checkpoint), map_location="cpu")["state_dict"]
    assert all(torch.equal(value, state[name]) for name, value in loaded.state_dict().items())
    datamodule = ocl.cli.train.build_and_register_datamodule_from_config(config)
    batch = next(iter(datamodule.train_dataloader()))
    assert set(batch) == {"__key__", "image", "mask", "batch_size"}
    assert batch["image"].shape == (2, 3, SIZE, SIZE) and batch["mask"].shape == (2, 3, SIZE, SIZE)


@pytest.mark.core
def test_search_path_plugins_add_configurations(workspace, cli, tmp_path):
    plugin = tmp_path / "site" / "hydra_plugins" / "contract_searchpath" / "__init__.py"
    plugin.parent.mkdir(parents=True)
    plugin.write_text(
        "from hydra.plugins.search_path_plugin import SearchPathPlugin\n\n\n"
        "class ContractSearchPath(SearchPathPlugin):\n"
        "    def manipulate_search_path(self, search_path):\n"
        f"        search_path.append('contract', 'file://{workspace / 'user'}')\n"
    )
    arguments = ["+experiment=tiny/autoencoder", "+dataset@experiment.other=clevr", "--cfg", "job"]
    variables = {"python_path": [tmp_path / "site"], "TINY_DATA": "x", "DATASET_PREFIX": "y"}
    code, output = cli("ocl_train", arguments, tmp_path, **variables)
    assert code == 0, output[-4000:]
    assert "routed.ocl.decoding.SlotAttentionDecoder" in output and "clevr_with_masks" in output
    assert not (tmp_path / "outputs").exists()


@pytest.mark.core
def test_distributed_training_uses_one_run_folder(workspace, cli, tmp_path):
    """Lightning starts the other rank by repeating the command with overrides appended.

    Appended overrides only parse if options such as --config-dir come before all overrides.
    """
    code, output = cli(
        "ocl_train",
        [
            "--config-dir",
            workspace / "user",
            "+experiment=tiny/autoencoder",
            "trainer.devices=2",
            "trainer.strategy=ddp",
            "trainer.max_steps=3",
            "dataset.batch_size=1",
        ],
        tmp_path,
        TINY_DATA=str(workspace / "data"),
    )
    assert code == 0, output[-4000:]
    run = Run(only((tmp_path / "outputs" / "tiny" / "autoencoder").iterdir()), output)
    assert torch.load(str(run.checkpoint), map_location="cpu")["global_step"] == 3


# ----------------------------------------------------------------------------------------------------------- evaluation


@pytest.mark.core
def test_evaluation_of_a_run_folder(trained, workspace, cli, compose, monkeypatch):
    cwd = workspace / "evaluate"
    cwd.mkdir()
    code, output = cli(
        "ocl_eval",
        ["+evaluation=eval", f"train_config_path={os.path.relpath(trained.config, cwd)}"],
        cwd,
        TINY_DATA=str(workspace / "data"),
    )
    assert code == 0, output[-4000:]
    result = report(trained.folder)
    assert list(result) == ["train_config_path", "checkpoint_path", "metrics"]
    assert os.path.isabs(result["train_config_path"])
    assert os.path.samefile(result["train_config_path"], trained.config)
    assert os.path.samefile(result["checkpoint_path"], trained.checkpoint)
    assert set(result["metrics"]) == {"val"}
    assert set(result["metrics"]["val"]) == {"mse", "ari"}
    assert all(isinstance(v, float) for v in result["metrics"]["val"].values())

    # The same numbers by hand.
    monkeypatch.setenv("TINY_DATA", str(workspace / "data"))
    config = OmegaConf.load(trained.config)
    model = ocl.cli.train.build_model_from_config(config, str(trained.checkpoint)).eval()
    data = ocl.cli.train.build_and_register_datamodule_from_config(config)
    errors = []
    with torch.no_grad():
        for batch in data.val_dataloader():
            difference = model(batch)["object_decoder"].reconstruction - batch["image"]
            errors += difference.pow(2).flatten(1).mean(1).tolist()
    assert len(errors) == 5
    assert result["metrics"]["val"]["mse"] == pytest.approx(np.mean(errors), abs=1e-5)


@pytest.mark.core
def test_evaluation_with_own_modules_metrics_and_outputs(trained, compose, tiny_env, tmp_path):
    (tmp_path / "out").mkdir()
    evaluate(
        compose,
        tiny_env,
        [
            f"train_config_path={trained.folder / 'config'}",
            "train_config_name=config",
            f"checkpoint_path={quoted(trained.checkpoint)}",
            f"output_dir={tmp_path / 'out'}",
            "report_filename=own.json",
            "eval_batch_size=2",
            "save_outputs=true",
            "outputs_to_store=[masks_resized,input.mask]",
            "n_samples_to_store=4",
            "outputs_dirname=saved",
        ],
        name="tiny",
    )
    values = report(tmp_path / "out", "own.json")["metrics"]["val"]
    assert set(values) == {"mse", "share"}
    assert values["share"] == pytest.approx(1 / 3, abs=1e-5)  # three exclusive masks
    files = sorted((tmp_path / "out" / "saved" / "val").iterdir())
    assert [f.name for f in files] == sorted(
        f"{i}.{name}.npy" for i in range(4) for name in ("input.mask", "masks_resized")
    )
    assert np.load(files[0]).shape == (3, SIZE, SIZE) and np.load(files[1]).shape == (3, 5, 5)


@pytest.mark.core
def test_evaluation_can_skip_metrics_and_override_the_training_config(trained, compose, tiny_env, tmp_path):
    evaluate(
        compose,
        tiny_env,
        [
            f"train_config_path={trained.config}",
            f"checkpoint_path={quoted(trained.checkpoint)}",
            f"output_dir={tmp_path}",
            "skip_metrics=true",
            "train_config_overrides=['+losses.mse.weight=0.0']",
        ],
    )
    assert report(tmp_path)["metrics"] == {"val": {"mse": 0.0}}


@pytest.mark.core
def test_evaluation_on_another_dataset(trained, compose, tiny_env, tmp_path):
    evaluate(
        compose,
        tiny_env,
        [
            f"train_config_path={trained.config}",
            f"checkpoint_path={quoted(trained.checkpoint)}",
            f"output_dir={tmp_path}",
            "dataset={_target_: ocl.datasets.WebdatasetDataModule, val_size: 3, num_workers: 0}",
            "+dataset.val_shards=" + quoted(tiny_env / "data" / "val-000000.tar"),
            "+dataset.eval_transforms.t._target_=ocl.transforms.SimpleTransform",
            "+dataset.eval_transforms.t.batch_transform=false",
            "+dataset.eval_transforms.t.transforms.image._target_=torchvision.transforms.ToTensor",
            "+dataset.eval_transforms.t.transforms.mask._target_=ocl.preprocessing.MaskToTensor",
            "eval_batch_size=3",
        ],
    )
    assert set(report(tmp_path)["metrics"]["val"]) == {"mse", "ari"}


@pytest.mark.core
def test_evaluation_errors(trained, compose, tiny_env, tmp_path):
    with pytest.raises(ValueError, match="does not exist"):
        evaluate(compose, tiny_env, [f"train_config_path={tmp_path}/nowhere/config.yaml"])
    with pytest.raises(ValueError, match="does not exist"):
        evaluate(
            compose,
            tiny_env,
            [f"train_config_path={trained.config}", "checkpoint_path=/missing.ckpt", "output_dir=."],
        )
    # A run folder without any checkpoint.
    (tmp_path / "bare" / "config").mkdir(parents=True)
    (tmp_path / "bare" / "config" / "config.yaml").write_text(trained.config.read_text())
    with pytest.raises(ValueError, match="checkpoint"):
        evaluate(compose, tiny_env, [f"train_config_path={tmp_path}/bare/config/config.yaml"])
    with pytest.raises(ValueError, match="outputs_to_store"):
        evaluate(compose, tiny_env, [f"train_config_path={trained.config}", "save_outputs=true"])


@pytest.mark.core
def test_failing_evaluation_has_an_exit_code(cli, tmp_path):
    code, output = cli("ocl_eval", [f"train_config_path={tmp_path}/none/config.yaml"], tmp_path)
    assert code != 0 and "does not exist" in output
    assert not list(tmp_path.rglob("metrics.json"))


@pytest.mark.modern
@pytest.mark.core
def test_evaluation_of_scheduled_models(compose, tiny_env, tmp_path):
    """Schedules are evaluated at the step of the checkpoint."""
    run = train_in_process(compose, tiny_env, tmp_path / "run", name="scheduled")
    evaluate(compose, tiny_env, [f"train_config_path={run.config}"])
    scheduled = report(run.folder)["metrics"]["val"]["mse"]
    evaluate(
        compose,
        tiny_env,
        [
            f"train_config_path={run.config}",
            "train_config_overrides=['losses.mse.weight=1.0']",
            "report_filename=plain.json",
        ],
    )
    plain = report(run.folder, "plain.json")["metrics"]["val"]["mse"]
    assert scheduled == pytest.approx(4 * plain, rel=1e-4)


@pytest.mark.modern
@pytest.mark.core
def test_evaluation_defaults_to_the_run_folder(trained, compose, tiny_env):
    evaluate(
        compose,
        tiny_env,
        [
            f"train_config_path={trained.config}",
            f"checkpoint_path={quoted(trained.checkpoint)}",
            "report_filename=explicit.json",
        ],
    )
    assert set(report(trained.folder, "explicit.json")["metrics"]["val"]) == {"mse", "ari"}


@pytest.mark.modern
@pytest.mark.core
def test_evaluation_of_all_splits(trained, compose, tiny_env, tmp_path):
    evaluate(
        compose,
        tiny_env,
        [
            f"train_config_path={trained.config}",
            f"checkpoint_path={quoted(trained.checkpoint)}",
            f"output_dir={tmp_path}",
            "eval_train=true",
            "eval_test=true",
            "eval_batch_size=2",
        ],
    )
    metrics = report(tmp_path)["metrics"]
    assert set(metrics) == {"train", "val", "test"}
    assert all(set(values) == {"mse", "ari"} for values in metrics.values())
    assert metrics["test"] == pytest.approx(metrics["val"])  # the same shards here


@pytest.mark.modern
@pytest.mark.core
def test_evaluation_needs_no_batch_size_in_the_training_config(trained, compose, tiny_env, tmp_path):
    config = yaml.safe_load(trained.config.read_text())
    del config["dataset"]["eval_batch_size"]
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    evaluate(
        compose,
        tiny_env,
        [
            f"train_config_path={tmp_path / 'config.yaml'}",
            f"checkpoint_path={quoted(trained.checkpoint)}",
            f"output_dir={tmp_path}",
        ],
    )
    assert set(report(tmp_path)["metrics"]["val"]) == {"mse", "ari"}


@pytest.mark.modern
@pytest.mark.compat
def test_compute_dataset_size(compose, tiny_env, caplog):
    from ocl.cli.compute_dataset_size import compute_size

    dataset = compose("training_config", ["+experiment=tiny/autoencoder"], tiny_env / "merged").dataset
    config = OmegaConf.create({"dataset": OmegaConf.to_container(dataset)})
    with caplog.at_level("INFO"):
        compute_size(config)
    for message in ("Train split size: 6", "Validation split size: 5", "Test split size: 5"):
        assert message in caplog.text


# ------------------------------------------------------------------------------------------------------- model families

SLATE = """
dataset:
  _target_: ocl.datasets.DummyDataModule
  data_shapes: {image: [16, 16, 3], mask: [3, 16, 16, 1]}
  data_types: {image: image, mask: mask}
  batch_size: 2
  train_size: 4
  val_size: 2
  train_transforms:
    01:
      _target_: ocl.transforms.SimpleTransform
      transforms:
        image: {_target_: torchvision.transforms.ToTensor}
        mask: {_target_: ocl.preprocessing.MultiMaskToTensor}
      batch_transform: false
  eval_transforms: ${.train_transforms}
experiment:
  callbacks:
    update_hps: {_target_: ocl.callbacks.UpdateHyperparameterScheduling}
models:
  feature_extractor:
    _target_: routed.ocl.feature_extractors.DVAEFeatureExtractor
    encoder: {_target_: ocl.decoding.get_dvae_encoder, patch_size: 4, vocab_size: 12}
    tau:
      _target_: ocl.scheduling.CosineAnnealingHPScheduler
      start_value: 1.0
      end_value: 0.1
      start_step: 0
      end_step: 3
    dictionary:
      _target_: ocl.neural_networks.slate.OneHotDictionary
      vocab_size: "${eval_lambda:'lambda dim: dim + 1', ${..encoder.vocab_size}}"
      emb_size: 8
    positional_encoder:
      _target_: ocl.neural_networks.positional_embedding.LearnedAdditivePositionalEmbed
      max_len: 17
      d_model: 8
      dropout: 0.1
    video_path: input.image
  conditioning:
    _target_: routed.ocl.conditioning.RandomConditioning
    object_dim: 8
    n_slots: 3
    batch_size_path: input.batch_size
  perceptual_grouping:
    _target_: routed.ocl.perceptual_grouping.SlotAttentionGrouping
    feature_dim: 8
    object_dim: ${..conditioning.object_dim}
    ff_mlp:
      _target_: ocl.neural_networks.build_two_layer_mlp
      input_dim: ${..object_dim}
      output_dim: ${..object_dim}
      hidden_dim: ${..object_dim}
      initial_layer_norm: true
      residual: true
    feature_path: feature_extractor
    conditioning_path: conditioning
  decoder_dvae:
    _target_: routed.ocl.decoding.DVAEDecoder
    features_path: feature_extractor.aux_features.z
    decoder: {_target_: ocl.decoding.get_dvae_decoder, vocab_size: 12}
  object_decoder:
    _target_: routed.ocl.decoding.AutoregressivePatchDecoder
    object_dim: 8
    decoder_dim: 8
    decoder_cond_dim: 8
    output_dim: 12
    num_patches: 16
    use_bos_token: false
    use_output_transform: true
    use_input_norm: true
    decoder:
      _target_: ocl.neural_networks.build_transformer_decoder
      _partial_: true
      n_layers: 2
      n_heads: 2
    object_features_path: perceptual_grouping.objects
    target_path: feature_extractor.aux_features.targets
    masks_path: perceptual_grouping.feature_attributions
    image_path: input.image
losses:
  vq_ce:
    _target_: routed.ocl.losses.ReconstructionLoss
    loss_type: cross_entropy_sum
    input_path: object_decoder.reconstruction
    target_path: feature_extractor.aux_features.z_hard
  vq_mse:
    _target_: routed.ocl.losses.ReconstructionLoss
    loss_type: mse_sum
    input_path: decoder_dvae.reconstruction
    target_path: input.image
visualizations:
  masks: {_target_: routed.ocl.visualizations.Mask, mask_path: object_decoder.masks_as_image}
evaluation_metrics:
  ari:
    _target_: routed.ocl.metrics.ARIMetric
    prediction_path: object_decoder.masks_as_image
    target_path: input.mask
"""

VIDEO = """
dataset:
  _target_: ocl.datasets.DummyDataModule
  data_shapes: {image: [7, 16, 16, 3], mask: [7, 16, 16, 1]}
  data_types: {image: image, mask: categorical_3}
  batch_size: 2
  train_size: 4
  val_size: 2
  train_transforms:
    01_window:
      _target_: ocl.transforms.SampleConsecutive
      fields: [image]
      n_consecutive: 3
    02_tensor:
      _target_: ocl.transforms.SimpleTransform
      transforms:
        image: {_target_: ocl.preprocessing.VideoToTensor}
      batch_transform: false
  eval_transforms:
    01_masks:
      _target_: ocl.transforms.SimpleTransform
      transforms:
        mask:
          _target_: ocl.preprocessing.IntegerToOneHotMask
          ignore_typical_background: false
          max_instances: 2
      batch_transform: false
    02_tensor:
      _target_: ocl.transforms.SimpleTransform
      transforms:
        image: {_target_: ocl.preprocessing.VideoToTensor}
        mask: {_target_: ocl.preprocessing.MultiMaskToTensor}
      batch_transform: false
models:
  conditioning:
    _target_: routed.ocl.conditioning.RandomConditioning
    object_dim: 8
    n_slots: 3
    batch_size_path: input.batch_size
  feature_extractor:
    _target_: routed.ocl.feature_extractors.SAViFeatureExtractor
    video_path: input.image
  video:
    _target_: ocl.utils.routing.Recurrent
    inputs_to_split: [feature_extractor.features]
    initial_input_mapping: {predictor: conditioning}
    module:
      _target_: ocl.utils.routing.Combined
      corrector:
        _target_: routed.ocl.perceptual_grouping.SlotAttentionGrouping
        feature_dim: 32
        object_dim: ${models.conditioning.object_dim}
        iters: 1
        feature_path: feature_extractor
        conditioning_path: previous_output.predictor
      predictor:
        _target_: routed.torch.nn.TransformerEncoderLayer
        d_model: 8
        nhead: 2
        dim_feedforward: 16
        batch_first: true
        src_path: video.corrector.objects
  object_decoder:
    _target_: routed.ocl.decoding.SlotAttentionDecoder
    decoder: {_target_: torch.nn.ConvTranspose2d, in_channels: 8, out_channels: 4, kernel_size: 2, stride: 2}
    object_features_path: video.corrector.objects
losses:
  mse:
    _target_: routed.ocl.losses.ReconstructionLoss
    loss_type: mse_sum
    input_path: object_decoder.reconstruction
    target_path: input.image
visualizations:
  input: {_target_: routed.ocl.visualizations.Video, video_path: input.image}
  objects:
    _target_: routed.ocl.visualizations.VisualObject
    object_path: object_decoder.object_reconstructions
    mask_path: object_decoder.masks
evaluation_metrics:
  ari:
    _target_: routed.ocl.metrics.ARIMetric
    prediction_path: object_decoder.masks
    target_path: input.mask
    foreground: false
"""

COMMON = """
trainer:
  accelerator: cpu
  devices: 1
  max_steps: 2
  num_sanity_val_steps: 1
  enable_progress_bar: false
  gradient_clip_val: 1.0
  log_every_n_steps: 1
  logger: {_target_: pytorch_lightning.loggers.CSVLogger, save_dir: .}
seed: 0
training_vis_frequency: 1
optimizers:
  opt0:
    _target_: ocl.optimization.OptimizationWrapper
    optimizer: {_target_: torch.optim.Adam, _partial_: true, lr: 0.001}
    lr_scheduler:
      _target_: ocl.scheduling.cosine_annealing_with_optional_warmup
      _partial_: true
      T_max: 10
      warmup_steps: 1
"""


@pytest.mark.core
@pytest.mark.parametrize(
    "text, losses", [(SLATE, {"vq_ce", "vq_mse", "loss_total"}), (VIDEO, {"mse"})], ids=["slate", "video"]
)
def test_typical_experiments_train(compose, tiny_env, tmp_path, text, losses):
    config = compose("training_config")
    OmegaConf.set_struct(config, False)
    for part in (COMMON, text):
        config = OmegaConf.merge(config, yaml.safe_load(part))
    ocl.cli.train.train(config)
    header = (tmp_path / "lightning_logs" / "version_0" / "metrics.csv").read_text().splitlines()[0]
    columns = set(header.split(","))
    expected = {f"train/{name}" for name in losses} | {f"val/{name}" for name in losses}
    assert expected | {"val/ari", "lr-Adam", "epoch", "step"} <= columns
    assert cli_utils.find_checkpoint(str(tmp_path)).endswith("step=2.ckpt")
