"""DINOSAUR, and models with the frozen ViT, as a user runs them."""

import json

import pytest
import timm
import torch

pytestmark = pytest.mark.needs_host

TINY = [
    "+msf/preset=cpu",
    "dataset.batch_size=4",
    "dataset.eval_batch_size=4",
    "dataset.num_workers=0",
    "experiment.training={steps:2,warmup_steps:1,validate_every:2,learning_rate:1e-3,clip_norm:1}",
    "experiment.slots={number:3,dim:8}",
    "experiment.encoder.dim=4",
    "experiment.patch_decoder.features=[8]",
    "experiment.image_size=32",
    "seed=0",
]


@pytest.fixture
def call(run_program, shards, tmp_path):
    """Run a command of the host; returns (status, everything it printed)."""

    def run(module, *overrides):
        done = run_program(module, *overrides, cwd=tmp_path, DATASET_PREFIX=str(shards), HF_HUB_OFFLINE="1")
        return done.returncode, done.stdout + done.stderr

    return run


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """A random ViT-S/8 in the layout of the DINO release."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("dino") / "dino_deitsmall8_pretrain.pth"
    torch.save(timm.create_model("vit_small_patch8_224_dino", num_classes=0).state_dict(), path)
    return path


def test_it_trains_on_a_file_and_is_scored_without_it(weights, call, tmp_path):
    command = ["+experiment=msf/dinosaur_clevrtex", *TINY]
    status, printed = call("ocl.cli.train", *command, f"experiment.vit.weights='{weights}'")
    assert status == 0, printed
    (run,) = tmp_path.glob("outputs/msf/dinosaur_clevrtex/*")
    (checkpoint,) = run.glob("lightning_logs/version_0/checkpoints/*step0000002.ckpt")
    trained = torch.load(checkpoint, weights_only=True)["state_dict"]
    for name, x in torch.load(weights, weights_only=True).items():
        assert torch.equal(trained[f"models.feature_extractor.vit.network.{name}"], x), name

    weights.rename(weights.with_suffix(".gone"))
    command = ["+evaluation=msf/dinosaur_clevrtex", f"train_config_path={run}/config/config.yaml"]
    status, printed = call("ocl.cli.eval", *command)
    weights.with_suffix(".gone").rename(weights)
    assert status == 0, printed
    scores = json.loads((run / "metrics.json").read_text())["metrics"]["val"]
    assert {"ari", "ari_fg", "miou", "mbo", "tokens", "image_gain_ari", "colour_mbo", "slot_gain"} <= set(scores)
    assert {f"decoder_{name}" for name in ("ari", "ari_fg", "miou", "mbo")} <= set(scores)
    assert scores["decoder_mbo"] != scores["mbo"], "those of the decoder's masks are scores of their own"


def test_without_the_file_the_message_says_what_to_do(call):
    command = ["+experiment=msf/dinosaur_clevrtex", *TINY, "experiment.vit.weights=none.pth"]
    status, printed = call("ocl.cli.train", *command)
    assert status != 0
    assert "dino_deitsmall8_pretrain.pth" in printed and "experiment.vit.weights=PATH" in printed
