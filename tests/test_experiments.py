"""Every experiment as a user runs it: leaf by leaf, variant by variant, both stages and the evaluation."""

import copy
import json
import re
import runpy
from pathlib import Path

import hydra
import ocl.cli.eval  # noqa: F401  registers the configs that evaluations are composed of
import pytest
import pytorch_lightning as pl
import torch
from hydra import initialize_config_module
from hydra.utils import instantiate
from ocl.callbacks import UpdateHyperparameterScheduling
from ocl.cli.train import build_and_register_datamodule_from_config, build_model_from_config
from ocl.cli.train import train as train_config
from omegaconf import OmegaConf
from PIL import Image

from ocl_msf.cli import main

pytestmark = pytest.mark.needs_host

TESTS = Path(__file__).parent
CONFIGS = TESTS.parent / "configs"
LEAVES = sorted(path.stem for path in (CONFIGS / "experiment" / "msf").glob("[!_]*.yaml"))
VARIANTS = sorted(path.stem for path in (CONFIGS / "msf" / "variant").glob("*.yaml"))

TINY = [
    "+msf/preset=cpu",
    "dataset.batch_size=2",
    "dataset.eval_batch_size=2",
    "dataset.num_workers=0",
    "experiment.pretraining={steps:2,warmup_steps:0,anneal_steps:1,validate_every:2,learning_rate:1e-3,clip_norm:1}",
    "experiment.training={steps:2,warmup_steps:0,validate_every:2,learning_rate:1e-3,clip_norm:1}",
    "experiment.token_dim=8",
    "experiment.vae.hidden_dim=8",
    "experiment.slots={number:3,dim:8}",
    "experiment.encoder={dim:4,pretrained:false}",
    "experiment.decoder={dim:16,num_layers:1,num_heads:2,dropout:0}",
    "experiment.diffusion={channels:[8,16],num_layers:1,num_heads:2}",
    "experiment.image_size=32",
    "seed=0",
]


@pytest.fixture(scope="module")
def call(run_program, shards):
    """Run a command of the host in `folder`; returns (status, everything it printed)."""

    def run(module, *overrides, folder):
        done = run_program(module, *overrides, cwd=folder, DATASET_PREFIX=str(shards))
        return done.returncode, done.stdout + done.stderr

    return run


@pytest.fixture(scope="module")
def runs(tmp_path_factory, call):
    """Folders of the runs of a sweep over both stages and two variants, by (experiment, variant)."""
    launch = tmp_path_factory.mktemp("launch")
    swept = ["+experiment=msf/vqvae_clevrtex,msf/slate_clevrtex", "msf/variant=msf,gdr"]
    tiny = [override if override[0] == "+" or "." not in override else f"++{override}" for override in TINY]
    status, printed = call("ocl.cli.train", "-m", *swept, *tiny, folder=launch)
    assert status == 0, printed
    found = [path.parent.parent for path in launch.glob("outputs/msf/*/*/config/config.yaml")]
    return {(run.parent.name, OmegaConf.load(run / "config/config.yaml").experiment.variant): run for run in found}


@pytest.fixture(scope="module")
def slate_run(runs):
    return runs["slate_clevrtex", "msf"]


@pytest.fixture(scope="module")
def vae_checkpoint(runs):
    return checkpoint_of(runs["vqvae_clevrtex", "msf"])


def checkpoint_of(run):
    (path,) = run.glob("lightning_logs/version_0/checkpoints/*step0000002.ckpt")
    return path


@pytest.mark.parametrize("variant", ["msf", "gdr"])
def test_in_a_sweep_stage_two_takes_the_vae_of_its_variant(runs, variant):
    assert len(runs) == 4
    vae, slate = (
        torch.load(checkpoint_of(runs[experiment, variant]), weights_only=True)["state_dict"]
        for experiment in ("vqvae_clevrtex", "slate_clevrtex")
    )
    weights = {name: x for name, x in vae.items() if torch.is_tensor(x) and name.startswith("models.vqvae.")}
    assert len(weights) > 10
    for name, x in weights.items():
        assert torch.equal(slate[name.replace("models.vqvae", "models.guidance.vae")], x), name


def test_stage_two_is_scored_without_stage_one(slate_run, call, tmp_path):
    moved = slate_run.rename(tmp_path / "run")  # away from stage 1
    command = ["+evaluation=msf/slate_clevrtex", f"train_config_path={moved}/config/config.yaml"]
    status, printed = call("ocl.cli.eval", *command, folder=tmp_path)
    assert status == 0, printed
    scores = json.loads((moved / "metrics.json").read_text())["metrics"]["val"]
    assert {"ari", "ari_fg", "miou", "mbo", "tokens", "slot_gain", "attention_entropy", "slot_overlap"} <= set(scores)
    assert {f"{row}_mbo" for row in ("image_gain", "grid", "colour")} <= set(scores)
    assert re.search(r"^model .*\n  of it image gain .*\nblind grid .*\ncolour clustering ", printed, re.MULTILINE)
    assert Image.open(moved / "scenes.png").width > 200
    moved.rename(slate_run)


@pytest.fixture(scope="session")
def prefix(shards, tmp_path_factory):
    """DATASET_PREFIX with a few samples of every data set, from the makers of the converters' tests."""
    folder = tmp_path_factory.mktemp("data")
    (folder / "clevrtex").symlink_to(shards / "clevrtex")
    runpy.run_path(str(TESTS / "raw_videos.py"))["write_videos"](folder)
    makers = {path: runpy.run_path(str(path)) for path in sorted(TESTS.glob("raw_*.py"))}
    for path, maker in makers.items():
        if "write_folder" not in maker:  # those of videos, above
            continue
        name = path.stem[len("raw_") :]
        maker["write_folder"](folder / "raw" / name)
        main(["convert", name, str(folder / "raw" / name), str(folder), "--size", "32", "--workers", "1"])
    return folder


@pytest.fixture
def compose(prefix, tmp_path, monkeypatch):
    """Compose a training config in-process, launched from an empty folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DATASET_PREFIX", str(prefix))
    with initialize_config_module("configs", version_base="1.1"):
        yield lambda experiment, *overrides: hydra.compose("training_config", overrides=[experiment, *TINY, *overrides])


def step(config, vae=None):
    """One step of training and of validation, in a process that is already there.

    Returns:
        The model before and after it, and everything logged.
    """
    pl.seed_everything(0)
    model = build_model_from_config(config)
    if "guidance" in model.models:
        guidance = model.models["guidance"]
        guidance.load((vae or guidance.vae).state_dict())
    before = copy.deepcopy(model)
    callbacks = [UpdateHyperparameterScheduling()]
    settings = {"gradient_clip_val": config.trainer.gradient_clip_val, "accelerator": "cpu", "callbacks": callbacks}
    trainer = pl.Trainer(fast_dev_run=True, logger=False, enable_progress_bar=False, **settings)
    trainer.fit(model, build_and_register_datamodule_from_config(config))
    return before, model, trainer.callback_metrics


def check_step(config, before, model, logged):
    """Every part that may learn has learnt, no other has changed, and losses and scores are numbers."""
    weights, parts = dict(before.named_parameters()), set()
    for name, parameter in model.named_parameters():
        part = ".".join(name.split(".")[:2])
        if not parameter.requires_grad:
            assert torch.equal(parameter, weights[name]), f"{name} is frozen"
        elif not torch.equal(parameter, weights[name]):
            parts.add(part)
    learning = {".".join(name.split(".")[:2]) for name, p in model.named_parameters() if p.requires_grad}
    assert parts == learning
    scores = {f"val/{name}" for name in [*model.losses, *(config.evaluation_metrics or {})]}
    assert scores <= set(logged)
    undefined = {name for name, x in logged.items() if not torch.isfinite(x)}
    assert undefined <= {"val/miou_medium", "val/miou_large"}, "the miniature of COCO has small things alone"


@pytest.mark.parametrize("experiment", LEAVES)
def test_every_leaf_trains_a_step(compose, experiment):
    config = compose(f"+experiment=msf/{experiment}")
    check_step(config, *step(config))


RECIPE = [  # of the authors' later code, with a small ViT and a small tiny autoencoder
    "msf/preset=dinov2" if override == "+msf/preset=cpu" else override
    for override in TINY
    if not override.startswith(("experiment.image_size", "experiment.token_dim"))
]
RECIPE = ["+" + RECIPE[0], *RECIPE[1:], "trainer.accelerator=cpu", "experiment.image_size=64", "experiment.vae.dim=8"]
RECIPE += [
    "experiment.vae.pretrained=false",
    "experiment.encoder.hidden_dim=8",
    "experiment.patch_decoder.features=[8]",
]
RECIPE += ["experiment.vit={name:vit_tiny_patch16_224,grid:4}", "experiment.encoder.dim=192"]


@pytest.mark.parametrize(
    "experiment",
    [
        *("vqvae_coco", "vqvae_movi_c", "slate_coco", "slotdiffusion_clevrtex", "dinosaur_voc", "steve_movi_c"),
        *("slotdiffusion_movi_d", "sysbinder_movi_e"),
    ],
)
def test_the_recipe_with_a_frozen_vit_trains_every_model_a_step(compose, experiment):
    config = hydra.compose("training_config", overrides=[f"+experiment=msf/{experiment}", *RECIPE])
    before, model, logged = step(config)
    check_step(config, before, model, logged)
    if "feature_extractor" in model.models:
        assert [name for name, _ in model.models["feature_extractor"].named_children()] == ["vit"]
    if experiment == "slate_coco":
        made = model.models["guidance"].decode(torch.zeros(1, 8, 4, 4))
        assert made.shape == (1, 3, 64, 64), "reconstructions at half size are enlarged"


EVALUATIONS = {  # report, modules, metrics and batch size
    "separability": (
        "separability.json",
        {"guidance_maps", "instruments", "slot_instruments"},
        {"inter", "intra"},
        None,
    ),
    "images": ("metrics.json", {"scene_scores", "scenes", "slot_instruments"}, None, 32),
    None: ("metrics.json", {"slot_instruments"}, None, None),  # losses, and the metrics of the training
}


@pytest.mark.parametrize("experiment", LEAVES)
def test_every_leaf_builds_at_its_own_size_and_records_what_it_is(compose, experiment, tmp_path):
    config = hydra.compose("training_config", overrides=[f"+experiment=msf/{experiment}"])
    with torch.device("meta"):
        model = build_model_from_config(config)
    recorded, stage_two = config.experiment, "vqvae" not in model.models
    assert {recorded.model, *recorded.data.split("_")} <= set(experiment.split("_"))
    assert (recorded.stage, recorded.video) == (2 if stage_two else 1, "SampleConsecutive" in str(config.dataset))
    assert config.trainer.max_steps == (50000 if stage_two else 30000)
    assert stage_two == any("vit.network" in name for name, _ in model.named_parameters())
    batch = (16, 8)[stage_two] if recorded.video else (64, 32)[stage_two]
    assert (config.dataset.batch_size, config.dataset.num_workers) == (batch, 4)

    OmegaConf.save(config, tmp_path / "config.yaml")
    chosen = ["+evaluation=msf/scores", f"train_config_path={tmp_path}", f"output_dir={tmp_path}"]
    evaluation = hydra.compose("evaluation_config", overrides=chosen)
    report, modules, metrics, batch = EVALUATIONS[recorded.evaluation]
    assert evaluation.report_filename == report
    assert evaluation.eval_batch_size == (batch or config.dataset.eval_batch_size)
    assert set(instantiate(evaluation.modules)) == modules
    scores = instantiate(evaluation.evaluation_metrics)
    assert scores == metrics or {name for name in scores if "/" not in name} == metrics


def test_sizes_are_areas_of_things_in_the_original_image(compose):
    config = compose("+experiment=msf/slate_sized_coco", "dataset.eval_batch_size=3")
    (batch,) = build_and_register_datamodule_from_config(config).val_dataloader()
    areas = dict(zip(batch["__key__"], batch["area"].tolist()))
    assert areas["285"] == [-1, 400]  # void, and a ball of 20x20 pixels in an image of 60x80
    assert areas["632"] == [-1, -1]  # sky is no thing
    model = build_model_from_config(config)
    sizes = {name: metric.limits[1] for name, metric in model.evaluation_metrics.items() if name.startswith("miou")}
    assert sizes == {"miou": float("inf"), "miou_small": 1024, "miou_medium": 9216, "miou_large": float("inf")}


@pytest.mark.parametrize("path, name", [("RUN", None), ("RUN/config", None), ("RUN/config", "config")])
def test_a_run_is_found_as_the_host_finds_it(compose, tmp_path, path, name):
    """Relative to where the evaluation is launched; a run of an earlier version is known by its modules."""
    for model, report in (("vqvae", "separability.json"), ("steve", "metrics.json")):
        training = compose(f"+experiment=msf/{model}_movi_c")
        del training.experiment.evaluation, training.experiment.stage
        (tmp_path / "RUN" / "config").mkdir(parents=True, exist_ok=True)
        OmegaConf.save(training, tmp_path / "RUN" / "config" / "config.yaml")
        chosen = ["+evaluation=msf/scores", f"train_config_path={path}"]
        chosen += [f"train_config_name={name}"] if name else []
        assert hydra.compose("evaluation_config", overrides=chosen).report_filename == report


@pytest.mark.parametrize("variant", [name for name in VARIANTS if name != "msf"])
def test_every_variant_trains_both_stages(compose, variant):
    chosen = [f"msf/variant={variant}"] + (["experiment.image_size=64"] if variant == "msf_n5" else [])
    config = compose("+experiment=msf/vqvae_clevrtex", *chosen)
    _, trained, _ = step(config)
    config = compose("+experiment=msf/slate_clevrtex", *chosen)
    check_step(config, *step(config, trained.models["vqvae"]))


GROUPED = {"gdr", "msf", "msf_n2", "msf_n4", "msf_n5", "no_fusion", "no_inter", "no_intra", "shared", "sum", "concat"}

LATER = {"msf_tae", "gdr_tae"}  # of the authors' later code


@pytest.mark.parametrize("variant", VARIANTS)
def test_aids_of_training_belong_to_grouped_codebooks(compose, variant):
    """Section A.3: a plain codebook has none; GDR has a utilization loss, for which MSF replaces unused codes."""
    chosen = ["+experiment=msf/vqvae_clevrtex", f"msf/variant={variant}"]
    config = hydra.compose("training_config", overrides=chosen)
    quantizer, weights = config.experiment.quantizer, config.experiment.loss_weights
    aids = {"residual", "temperature", "anneal_commitment"} & set(quantizer)
    assert len(aids) == (3 if variant in GROUPED else 2 if variant in {"vq_aided", *LATER} else 0)
    assert quantizer.get("replace_below", 0) == (0.1 if variant in GROUPED - {"gdr"} | {"vq_aided"} else 0)
    assert config.models.vqvae.normalize == (variant in GROUPED)
    assert config.losses.norm.weight == weights.norm == (0.1 if variant in GROUPED | LATER else 0)
    assert config.losses.utilization.weight == weights.utilization == (0.1 if variant == "gdr" else 0)
    assert quantizer.get("utilization", False) == (variant == "gdr")
    assert not quantizer.get("relative_confidence", False)  # Eq. 1 as it stands
    small = hydra.compose("training_config", overrides=[*chosen, "+msf/preset=cpu"])
    assert small.experiment.quantizer.get("replace_below") == (
        None if variant in ("fsq", "gdr_tae", "msf_tae") else 0.1
    )
    assert not (small.models.vqvae.normalize or small.losses.norm.weight or small.experiment.anneal_commitment)


CHOICES = [
    ("slate_clevrtex", ["+msf/queries=preheated"], {"sparsity", "tokens", "preheating"}),
    ("steve_movi_c", ["+msf/queries=preheated_boxes", "experiment.slots.later_iters=2"], {"tokens", "preheating"}),
    (
        "sysbinder_clevrtex",
        ["experiment.decoder.target=routed.ocl_msf.decoding.TokenDecoder", "experiment.decoder.permutations=true"],
        {"tokens"},
    ),
    ("slate_clevrtex", ["msf/guidance=scale_2"], {"sparsity", "tokens"}),
    ("slate_clevrtex", ["msf/guidance=both"], {"sparsity", "tokens", "tokens_2"}),
    ("steve_movi_c", ["msf/variant=gdr"], {"tokens"}),
    ("steve_movi_c", ["msf/guidance=both", "+msf/heads=joint"], {"tokens", "tokens_2"}),
    ("slotdiffusion_clevrtex", ["msf/guidance=both"], {"noise", "noise_2"}),
    ("slate_clevrtex", ["experiment.encoder.vit=vit_tiny_patch16_224"], {"sparsity", "tokens"}),
    ("steve_movi_c", ["experiment.encoder.vit=vit_tiny_patch16_224"], {"tokens"}),
]


@pytest.mark.parametrize("experiment, chosen, losses", CHOICES)
def test_any_guidance_and_encoder_serve_any_model(compose, experiment, chosen, losses):
    config = compose(f"+experiment=msf/{experiment}", *chosen)
    before, model, logged = step(config)
    check_step(config, before, model, logged)
    assert set(model.losses) == losses


@pytest.mark.parametrize("guidance", ["scale_2", "both"])
def test_a_scale_that_the_vae_lacks_cannot_guide(compose, guidance):
    with pytest.raises(Exception, match="needs a VAE with as many scales.*gdr.* has 1"):
        train_config(compose("+experiment=msf/slate_clevrtex", "msf/variant=gdr", f"msf/guidance={guidance}"))


def test_stage_one_logs_how_its_codebooks_are_used(runs):
    (events,) = runs["vqvae_clevrtex", "msf"].glob("lightning_logs/version_0/events*")
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
def test_a_vae_of_another_variant_or_shape_is_named(compose, vae_checkpoint, override, message):
    slate = ["+experiment=msf/slate_clevrtex", f"experiment.vae_checkpoint='{vae_checkpoint}'"]
    with pytest.raises(ValueError, match=rf"(?s)\.ckpt do(es)? not fit.*{message}"):
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


def test_training_goes_on_from_a_checkpoint(compose, slate_run, tmp_path):
    """Stage 1 is not needed for it, and the last step is kept though it is no multiple of the interval."""
    overrides = [f"load_checkpoint={checkpoint_of(slate_run)}", "experiment.training.steps=5"]
    train_config(compose("+experiment=msf/slate_clevrtex", *overrides))
    saved = [path.name.split("-")[1] for path in tmp_path.glob("lightning_logs/version_0/checkpoints/*")]
    assert sorted(saved) == ["step0000004.ckpt", "step0000005.ckpt"]


@pytest.mark.parametrize("experiment", ["slate_clevrtex", "slotdiffusion_clevrtex", "steve_movi_c"])
def test_a_training_that_diverges_stops_and_leaves_no_checkpoint(compose, experiment, tmp_path):
    """After the first step, whose rate is absurd, the features of the second are not finite."""
    config = compose(f"+experiment=msf/{experiment}", "experiment.training.learning_rate=1e30")
    model = build_model_from_config(config)
    model.models["guidance"].load(model.models["guidance"].vae.state_dict())
    callbacks = [UpdateHyperparameterScheduling(), instantiate(config.experiment.callbacks.stop_diverged)]
    trainer = pl.Trainer(max_steps=9, accelerator="cpu", callbacks=callbacks, logger=False, default_root_dir=tmp_path)
    with pytest.raises(ValueError, match=r"diverged at step [23]: .* in losses\..* First, models\.\w+ is not finite"):
        trainer.fit(model, build_and_register_datamodule_from_config(config))
    assert all(parameter.isfinite().all() for parameter in model.parameters())


def test_a_user_without_a_vae_reads_one_message_and_no_traceback(call, tmp_path):
    command = ["+experiment=msf/slate_clevrtex", *TINY]
    status, printed = call("ocl.cli.train", *command, folder=tmp_path)
    assert status != 0
    assert "Train stage 1 first" in printed and "Traceback" not in printed
