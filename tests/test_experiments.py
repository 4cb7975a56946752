"""Every experiment as a user runs it: leaf by leaf, variant by variant, both stages and the evaluation."""

import json
import os
import subprocess
import sys
from pathlib import Path

import hydra
import pytest
from hydra import initialize_config_module
from ocl.cli.train import build_model_from_config
from ocl.cli.train import train as train_config
from PIL import Image

CONFIGS = Path(__file__).parent.parent / "configs"
LEAVES = sorted(path.stem for path in (CONFIGS / "experiment" / "msf").glob("[!_]*.yaml"))
VARIANTS = sorted(path.stem for path in (CONFIGS / "msf" / "variant").glob("*.yaml"))

TINY = [
    "+msf/preset=cpu",
    "dataset.batch_size=4",
    "dataset.eval_batch_size=4",
    "dataset.num_workers=0",
    "experiment.pretraining={steps:2,warmup_steps:1,anneal_steps:1,validate_every:2,learning_rate:1e-3,clip_norm:1}",
    "experiment.training={steps:2,warmup_steps:1,validate_every:2,learning_rate:1e-3,clip_norm:1}",
    "experiment.vae={dim:8,hidden_dim:8}",
    "experiment.slots={number:3,dim:8}",
    "experiment.encoder.dim=4",
    "experiment.decoder={dim:16,num_layers:1,num_heads:2,dropout:0}",
    "experiment.image_size=32",
    "seed=0",
]


def call(module, *overrides, folder, shards):
    """Run a command of the host in `folder`; returns (status, everything it printed)."""
    environment = dict(os.environ, DATASET_PREFIX=str(shards), OMP_NUM_THREADS="1")
    done = subprocess.run(
        [sys.executable, "-m", module, *overrides],
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    return done.returncode, done.stdout


def train(experiment, *overrides, folder, shards):
    command = [f"+experiment=msf/{experiment}", *TINY, *overrides]
    status, printed = call("ocl.cli.train", *command, folder=folder, shards=shards)
    assert status == 0, printed
    (run,) = sorted((folder / "outputs" / "msf" / experiment).iterdir())[-1:]
    return run


@pytest.fixture(scope="module")
def vae_folder(tmp_path_factory, shards):
    """A launch folder in which stage 1 has been run."""
    folder = tmp_path_factory.mktemp("launch")
    train("vqvae_clevrtex", folder=folder, shards=shards)
    return folder


@pytest.fixture(scope="module")
def slate_run(vae_folder, shards):
    return train("slate_clevrtex", folder=vae_folder, shards=shards)


def test_stage_two_trains_against_the_newest_vae_and_is_scored_without_it(vae_folder, slate_run, shards, tmp_path):
    moved = slate_run.rename(tmp_path / "run")  # away from stage 1
    command = ["+evaluation=msf/slate_clevrtex", f"train_config_path={moved}/config/config.yaml"]
    status, printed = call("ocl.cli.eval", *command, folder=tmp_path, shards=shards)
    assert status == 0, printed
    scores = json.loads((moved / "metrics.json").read_text())["metrics"]["val"]
    assert {"ari", "ari_fg", "miou", "mbo", "tokens"} <= set(scores)
    assert Image.open(moved / "scenes.png").width > 200
    moved.rename(slate_run)


@pytest.fixture
def compose(shards, tmp_path, monkeypatch):
    """Compose a training config in-process, launched from an empty folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DATASET_PREFIX", str(shards))
    with initialize_config_module("configs", version_base="1.1"):
        yield lambda experiment, *overrides: hydra.compose("training_config", overrides=[experiment, *TINY, *overrides])


@pytest.mark.parametrize("experiment", LEAVES)
@pytest.mark.parametrize("preset", [[], ["+msf/preset=cpu"]])
def test_every_leaf_composes_and_builds_at_its_own_size(compose, experiment, preset):
    config = hydra.compose("training_config", overrides=[f"+experiment=msf/{experiment}", *preset])
    model = build_model_from_config(config)
    assert sum(p.numel() for p in model.parameters()) > 1e4
    steps = (1200, 30000) if experiment.startswith("vqvae") else (5000, 50000)
    assert config.trainer.max_steps == steps[preset == []]


def test_every_model_of_stage_two_has_its_evaluation():
    evaluations = {path.stem for path in (CONFIGS / "evaluation" / "msf").glob("[!_]*.yaml")}
    assert {name for name in LEAVES if not name.startswith("vqvae")} <= evaluations


@pytest.mark.parametrize("variant", [name for name in VARIANTS if name != "msf"])
def test_every_variant_trains_both_stages(compose, variant, tmp_path):
    chosen = [f"msf/variant={variant}"] + (["experiment.image_size=64"] if variant == "msf_n5" else [])
    train_config(compose("+experiment=msf/vqvae_clevrtex", *chosen))
    (checkpoint,) = tmp_path.glob("lightning_logs/version_0/checkpoints/*.ckpt")
    guided = ["+experiment=msf/slate_clevrtex", f"experiment.vae_checkpoint='{checkpoint}'"]
    train_config(compose(*guided, *chosen))
    assert list(tmp_path.glob("lightning_logs/version_1/checkpoints/*step=2.ckpt"))


@pytest.mark.parametrize("guidance, losses", [("scale_2", {"tokens"}), ("both", {"tokens", "tokens_2"})])
def test_any_scale_may_guide(compose, vae_folder, guidance, losses):
    (checkpoint,) = vae_folder.glob("outputs/msf/vqvae_clevrtex/*/lightning_logs/version_0/checkpoints/*.ckpt")
    slate = ["+experiment=msf/slate_clevrtex", f"experiment.vae_checkpoint='{checkpoint}'"]
    config = compose(*slate, f"msf/guidance={guidance}")
    train_config(config)
    assert set(config.losses) == losses


@pytest.mark.parametrize("guidance", ["scale_2", "both"])
def test_a_scale_that_the_vae_lacks_cannot_guide(compose, guidance):
    with pytest.raises(Exception, match="needs a VAE with as many scales.*'gdr' has 1"):
        train_config(compose("+experiment=msf/slate_clevrtex", "msf/variant=gdr", f"msf/guidance={guidance}"))


def test_stage_one_logs_how_its_codebooks_are_used(vae_folder):
    (events,) = vae_folder.glob("outputs/msf/vqvae_clevrtex/*/lightning_logs/version_0/events*")
    written = events.read_bytes()
    for name in (b"codebooks/codebooks.0.perplexity", b"codebooks/codebooks.3.dead", b"codebooks/won.scale_2"):
        assert name in written


def test_without_a_trained_vae_stage_two_stops_and_says_how_to_make_one(compose):
    with pytest.raises(FileNotFoundError, match=r"vqvae_clevrtex msf/variant=msf \+msf/preset=cpu"):
        train_config(compose("+experiment=msf/slate_clevrtex"))


@pytest.mark.parametrize(
    "override, message",
    [("msf/variant=gdr", "'msf'.*'gdr'"), ("experiment.vae.dim=16", "size mismatch")],
)
def test_a_vae_of_another_variant_or_shape_is_named(compose, vae_folder, override, message):
    (checkpoint,) = vae_folder.glob("outputs/msf/vqvae_clevrtex/*/lightning_logs/version_0/checkpoints/*.ckpt")
    slate = ["+experiment=msf/slate_clevrtex", f"experiment.vae_checkpoint='{checkpoint}'"]
    with pytest.raises(ValueError, match=rf"(?s)\.ckpt does not fit.*{message}"):
        train_config(compose(*slate, override))


@pytest.mark.parametrize(
    "override, message",
    [
        ("experiment.image_size=40", "divisible by 16"),
        ("msf/variant=nonsense", "msf/variant/nonsense"),
        ("dataset.prefix=null", "DATASET_PREFIX is not set"),
        ("dataset.prefix=/nowhere", "/nowhere/clevrtex"),
    ],
)
def test_impossible_settings_are_named(compose, override, message):
    with pytest.raises(Exception, match=message):
        train_config(compose("+experiment=msf/vqvae_clevrtex", override))


def test_training_goes_on_from_a_checkpoint(slate_run, vae_folder, shards):
    """Stage 1 is not needed for it, and the last step is kept though it is no multiple of the interval."""
    (checkpoint,) = slate_run.glob("lightning_logs/version_0/checkpoints/*step=2.ckpt")
    overrides = [f"load_checkpoint='{checkpoint}'", "experiment.training.steps=5"]
    vae_runs = (vae_folder / "outputs/msf/vqvae_clevrtex").rename(vae_folder / "moved")
    run = train("slate_clevrtex", *overrides, folder=vae_folder, shards=shards)
    vae_runs.rename(vae_folder / "outputs/msf/vqvae_clevrtex")
    saved = [path.name.split("-")[1] for path in run.glob("lightning_logs/version_0/checkpoints/*")]
    assert sorted(saved) == ["step=4.ckpt", "step=5.ckpt"]


def test_a_user_without_a_vae_reads_one_message_and_no_traceback(shards, tmp_path):
    command = ["+experiment=msf/slate_clevrtex", *TINY]
    status, printed = call("ocl.cli.train", *command, folder=tmp_path, shards=shards)
    assert status != 0
    assert "Train stage 1 first" in printed and "Traceback" not in printed
