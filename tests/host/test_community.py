"""Every community experiment trains a step, and is evaluated, on shards of a few tiny samples."""

import io
import json
import math
import tarfile
from pathlib import Path

import hydra
import numpy as np
import ocl.cli.eval
import ocl.cli.train
import pytest
import pytorch_lightning as pl
from hydra.core.global_hydra import GlobalHydra
from ocl.cli import cli_utils
from omegaconf import OmegaConf
from PIL import Image

import configs

CONFIGS = Path(configs.__file__).parent
FAMILIES = ("slate", "SAVi", "slot_attention", "projects/bridging/dinosaur")
DINOSAUR = "projects/bridging/dinosaur/coco_feat_rec_dino_base16_auto"

SMALL = {
    "slate": ["experiment.image_size=16", "experiment.dim=8", "experiment.vocab_size=12"],
    "slot_attention": [],
    "SAVi": ["experiment.dim=8", "experiment.n_frames=2"],
    "projects": [
        "experiment.encoder={name: vit_tiny_patch16_224, dim: 192, n_patches: 196}",
        "experiment.slots={number: 3, dim: 8, hidden_dim: 8}",
    ],
}
EXPERIMENTS = {  # and what its losses are called
    "slot_attention/clevr6": {"mse"},
    "slate/clevr6": {"vq_ce", "vq_mse"},
    "slate/coco": {"vq_ce", "vq_mse"},
    "slate/movi_c": {"vq_ce", "vq_mse"},
    "slate/movi_e": {"vq_ce", "vq_mse"},
    "SAVi/cater": {"mse"},
    DINOSAUR: {"mse"},
}
RNG = np.random.default_rng(0)


def one_hot(*shape):
    """Random masks (K, H, W, 1), or (T, K, H, W, 1), of which one is set in every pixel."""
    *lead, classes, height, width, _ = shape
    winners = RNG.integers(0, classes, (*lead, 1, height, width, 1))
    return (winners == np.arange(classes)[:, None, None, None]).astype(np.uint8)


def pixels(*shape):
    return RNG.integers(0, 256, shape, dtype=np.uint8)


def clevr(index):
    visibility = np.arange(11) < (5 if index else 9)  # the first scene has too many objects
    return {"image": pixels(240, 320, 3), "mask": one_hot(11, 240, 320, 1), "visibility": visibility}


def cater(index):
    return {"image": pixels(5, 24, 32, 3), "mask": one_hot(5, 11, 24, 32, 1)}


def movi(index):
    ids = RNG.integers(0, 11, (24, 16, 16, 1), dtype=np.uint8)
    return {"video": pixels(24, 16, 16, 3), "segmentations": ids}


def coco(index):
    if index == 0:  # an image without objects
        return {"image": pixels(30, 40, 3)}
    masks = RNG.integers(0, 2, (index, 30, 40, 1), dtype=np.uint8)
    return {"image": pixels(30, 40, 3), "instance_mask": masks, "instance_category": np.arange(index) + 1}


SAMPLES = {"clevr6": clevr, "cater": cater, "movi_c": movi, "movi_e": movi, "coco": coco}


def encode(name, value):
    """Return the name of a shard's member, and its bytes."""
    buffer = io.BytesIO()
    if name == "image" and value.ndim == 3:
        Image.fromarray(value).save(buffer, "png")
        return "image.png", buffer.getvalue()
    np.save(buffer, value)
    return f"{name}.npy", buffer.getvalue()


def write_shard(path, sample, count):
    with tarfile.open(path, "w") as archive:
        for index in range(count):
            for name, value in sample(index).items():
                member, content = encode(name, value)
                info = tarfile.TarInfo(f"{index:03}.{member}")
                info.size = len(content)
                archive.addfile(info, io.BytesIO(content))
    return str(path)


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    folder = tmp_path_factory.mktemp("shards")
    return {name: write_shard(folder / f"{name}.tar", make, 4) for name, make in SAMPLES.items()}


@pytest.fixture
def compose(shards, tmp_path, monkeypatch):
    """Compose an experiment on the shards of its data, at a tiny size, launched from an empty folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DATASET_PREFIX", "/unused")
    monkeypatch.setenv("RUNNING_TESTS", "true")

    def run(experiment, *overrides):
        data = "coco" if experiment == DINOSAUR else experiment.split("/")[1]
        command = [
            f"+experiment={experiment}",
            *(f"dataset.{split}_shards={shards[data]}" for split in ("train", "val", "test")),
            "dataset.batch_size=2",
            "dataset.num_workers=0",
            "trainer.accelerator=cpu",
            "trainer.max_steps=1",
            "trainer.limit_val_batches=1",
            "trainer.num_sanity_val_steps=0",
            "trainer.val_check_interval=1",
            "trainer.enable_model_summary=false",
            "training_vis_frequency=1",
            "seed=0",
            *SMALL[experiment.split("/")[0]],
            *overrides,
        ]
        return hydra_compose("training_config", command)

    return run


def hydra_compose(name, overrides):
    GlobalHydra.instance().clear()
    with cli_utils.hydra_1_1(), hydra.initialize_config_dir(str(CONFIGS), version_base="1.1"):
        return hydra.compose(name, overrides=list(overrides))


def watch(monkeypatch):
    """Add a callback that keeps the trainer after its last step; returns where it will be."""
    seen = {}

    class Keep(pl.Callback):
        def on_train_end(self, trainer, module):
            seen.update(steps=trainer.global_step, metrics=dict(trainer.callback_metrics))

    monkeypatch.setattr("ocl.callbacks.LogProgress", Keep)
    return seen


def test_every_community_experiment_is_tested():
    folder = CONFIGS / "experiment"
    files = [path for family in FAMILIES for path in (folder / family).glob("[!_]*.yaml")]
    assert {path.relative_to(folder).with_suffix("").as_posix() for path in files} == set(EXPERIMENTS)


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_a_community_experiment_trains_and_is_evaluated(experiment, compose, monkeypatch, tmp_path):
    config = compose(experiment)
    (tmp_path / "config").mkdir()
    OmegaConf.save(config, tmp_path / "config" / "config.yaml")
    seen = watch(monkeypatch)
    ocl.cli.train.train(config)
    losses = EXPERIMENTS[experiment]
    assert seen["steps"] == 1
    assert {f"{split}/{name}" for split in ("train", "val") for name in losses} <= set(seen["metrics"])
    scores = {f"val/{name}" for name in config.evaluation_metrics}
    assert scores <= set(seen["metrics"]) and len(scores) >= 4
    assert all(math.isfinite(value) for value in seen["metrics"].values()), seen["metrics"]

    overrides = [f"train_config_path={tmp_path}", "eval_batch_size=2"]
    evaluation = hydra_compose(f"evaluation/{experiment}", overrides)
    ocl.cli.eval.evaluate(evaluation)
    report = json.loads((tmp_path / "metrics.json").read_text())["metrics"]
    assert set(report) == ({"val", "test"} if evaluation.eval_test else {"val"})
    for metrics in report.values():
        assert {*losses, *config.evaluation_metrics} <= set(metrics)
        assert all(math.isfinite(value) for value in metrics.values())


@pytest.mark.parametrize(
    "experiment, size",
    [
        ("slot_attention/clevr6", 923_140),
        ("slate/clevr6", 7_651_267),
        ("slate/movi_e", 7_651_267),
        ("SAVi/cater", 721_956),
    ],
)
def test_community_models_are_shaped_as_in_oclf(experiment, size, monkeypatch):
    monkeypatch.setenv("DATASET_PREFIX", "/unused")
    config = hydra_compose("training_config", [f"+experiment={experiment}"])
    model = ocl.cli.train.build_model_from_config(config)
    assert sum(parameter.numel() for parameter in model.parameters()) == size
    assert all(buffer.shape == (8, 8, 2) for name, buffer in model.named_buffers() if name.endswith(".grid"))


def test_the_vision_transformer_is_pretrained_but_in_tests(compose, monkeypatch):
    assert compose(DINOSAUR).models.feature_extractor.pretrained is False
    monkeypatch.delenv("RUNNING_TESTS")
    assert compose(DINOSAUR).models.feature_extractor.pretrained is True
