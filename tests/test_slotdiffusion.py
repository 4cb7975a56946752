"""The experiments of SlotDiffusion as a user runs them: both stages, the evaluation, other guidance."""

import json

import hydra
import pytest
from hydra import initialize_config_module
from ocl.cli.train import build_model_from_config
from ocl.cli.train import train as train_config
from PIL import Image

pytestmark = [pytest.mark.needs_host, pytest.mark.oclf]

TINY = [
    "+msf/preset=cpu",
    "dataset.batch_size=4",
    "dataset.eval_batch_size=4",
    "dataset.num_workers=0",
    "experiment.pretraining={steps:2,warmup_steps:0,anneal_steps:1,validate_every:2,learning_rate:1e-3,clip_norm:1}",
    "experiment.training={steps:2,warmup_steps:0,validate_every:2,learning_rate:1e-3,clip_norm:1}",
    "experiment.vae.hidden_dim=8",
    "experiment.slots={number:3,dim:8}",
    "experiment.encoder.dim=4",
    "experiment.diffusion={channels:[8,16],num_layers:1,num_heads:2}",
    "experiment.image_size=32",
    "seed=0",
]


@pytest.fixture
def compose(shards, tmp_path, monkeypatch):
    """Compose a training config in-process, launched from an empty folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DATASET_PREFIX", str(shards))
    with initialize_config_module("configs", version_base="1.1"):
        yield lambda experiment, *overrides: hydra.compose(
            "training_config", overrides=[f"+experiment=msf/{experiment}", *overrides]
        )


@pytest.mark.slow
def test_both_stages_run_and_are_scored_and_drawn(run_program, shards, tmp_path):
    """The second stage finds the first by itself."""

    def call(module, *overrides):
        done = run_program(module, *overrides, cwd=tmp_path, DATASET_PREFIX=str(shards))
        assert done.returncode == 0, done.stdout + done.stderr

    for experiment in ("vqvae_clevrtex_c4", "slotdiffusion_clevrtex"):
        call("ocl.cli.train", f"+experiment=msf/{experiment}", *TINY)
    (run,) = (tmp_path / "outputs/msf/slotdiffusion_clevrtex").iterdir()
    command = ["+evaluation=msf/slotdiffusion_clevrtex", f"train_config_path={run}/config/config.yaml"]
    call("ocl.cli.eval", *command)
    scores = json.loads((run / "metrics.json").read_text())["metrics"]["val"]
    assert {"ari", "ari_fg", "miou", "mbo", "noise", "image_gain_ari", "colour_mbo", "slot_gain"} <= set(scores)
    assert Image.open(run / "scenes.png").width > 200


@pytest.mark.parametrize("variant", ["msf", "vq", "gdr"])
def test_any_variant_guides(compose, variant, tmp_path):
    chosen = [*TINY, f"msf/variant={variant}"]
    train_config(compose("vqvae_clevrtex_c4", *chosen))
    (checkpoint,) = tmp_path.glob("lightning_logs/version_0/checkpoints/*.ckpt")
    train_config(compose("slotdiffusion_clevrtex", *chosen, f"experiment.vae_checkpoint='{checkpoint}'"))
    assert list(tmp_path.glob("lightning_logs/version_1/checkpoints/*step0000002.ckpt"))


@pytest.mark.parametrize("preset", [[], ["+msf/preset=cpu"]])
def test_a_preset_leaves_both_stages_their_four_channels(compose, preset):
    first, second = compose("vqvae_clevrtex_c4", *preset), compose("slotdiffusion_clevrtex", *preset)
    assert first.experiment.vae == second.experiment.vae and first.experiment.vae.dim == 4
    assert compose("vqvae_clevrtex", *preset).experiment.vae.dim == (64 if preset else 256)


def test_the_network_draws_at_the_resolution_of_the_scale_that_guides(compose):
    for scale, size in ((1, 16), (2, 8)):
        config = compose("slotdiffusion_clevrtex", "+msf/preset=cpu", f"msf/guidance=scale_{scale}")
        assert build_model_from_config(config).models.decoder.size == (size, size)


def test_without_a_vae_the_message_names_the_one_of_four_channels(compose):
    with pytest.raises(FileNotFoundError, match=r"\+experiment=msf/vqvae_clevrtex_c4 msf/variant=msf \+msf/preset=cpu"):
        train_config(compose("slotdiffusion_clevrtex", *TINY))
