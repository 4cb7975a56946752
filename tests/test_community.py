"""MSF composed into the community's experiments: one override swaps what their slots reconstruct."""

import json
import math
import shlex

import hydra
import pytest
import torch
from hydra import initialize_config_module
from ocl.cli.train import build_model_from_config
from ocl.cli.train import train as train_config
from ocl.decoding import AutoregressivePatchDecoder, DVAEDecoder, SlotAttentionDecoder
from ocl.feature_extractors import DVAEFeatureExtractor
from omegaconf import OmegaConf

from ocl_msf.fusion import MultiScaleFusion
from ocl_msf.quantization import GroupedQuantizer

pytestmark = [pytest.mark.needs_host, pytest.mark.oclf]

VAE = "experiment.vae={dim:8,hidden_dim:8}"
TINY = [
    VAE,
    "experiment.encoder={dim:4,stride:4}",
    "experiment.decoder={dim:16,num_layers:1,num_heads:2,dropout:0,token_dropout:0}",
    "models.conditioning.n_slots=3",
    "dataset.batch_size=2",
    "dataset.num_workers=0",
    "trainer.accelerator=cpu",
    "trainer.devices=1",
    "trainer.max_steps=1",
    "trainer.num_sanity_val_steps=0",
    "trainer.val_check_interval=1",
    "trainer.log_every_n_steps=1",
    "training_vis_frequency=1",
    "seed=0",
]
DECODERS = ("experiment.encoder=", "experiment.decoder=")
MASKS = {
    "data_shapes": {"image": [40, 40, 3], "mask": [3, 40, 40, 1]},
    "data_types": {"image": "image", "mask": "mask"},
}
INSTANCES = {
    "data_shapes": {"image": [40, 40, 3], "instance_mask": [3, 40, 40, 1], "instance_category": [3]},
    "data_types": {"image": "image", "instance_mask": "mask", "instance_category": "categorical_1_9"},
}
VIDEOS = {
    "data_shapes": {"image": [8, 64, 64, 3], "mask": [8, 3, 64, 64, 1]},
    "data_types": {"image": "image", "mask": "binary"},
}
SLATE = {**{f"slate/{data}": MASKS for data in ("clevr6", "movi_c", "movi_e")}, "slate/coco": INSTANCES}
PIXELS = {"slot_attention/clevr10_lds": MASKS, "slot_attention/coco": INSTANCES, "SAVi/cater": VIDEOS}
FEATURES = {"projects/bridging/dinosaur/movi_c_feat_rec": MASKS}
FIELDS = {**SLATE, **PIXELS, **FEATURES}


def guided(experiment, *overrides, msf="guidance"):
    """The command that brings MSF to a community experiment on random samples."""
    fields = [f"+dataset.{name}={json.dumps(value)}".replace('"', "") for name, value in FIELDS[experiment].items()]
    return [f"+experiment={experiment}", f"+msf={msf}", "dataset=dummy_dataset", *fields, *TINY, *overrides]


def compose(*overrides):
    with initialize_config_module("configs", version_base="1.1"):
        return hydra.compose("training_config", overrides=list(overrides))


@pytest.fixture(scope="module")
def vae_checkpoint(tmp_path_factory, shards):
    """A checkpoint of stage 1, of one step."""
    folder = tmp_path_factory.mktemp("vae")
    steps = "{steps:1,warmup_steps:1,anneal_steps:1,validate_every:1,learning_rate:1e-3,clip_norm:1}"
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("DATASET_PREFIX", str(shards))
        small = ["+msf/preset=cpu", "dataset.batch_size=4", "dataset.num_workers=0", "experiment.image_size=32"]
        train_config(compose("+experiment=msf/vqvae_clevrtex", *small, VAE, f"experiment.pretraining={steps}"))
    (checkpoint,) = folder.glob("lightning_logs/version_0/checkpoints/*step0000001.ckpt")
    return checkpoint


@pytest.fixture
def launch(tmp_path, monkeypatch):
    """An empty folder to launch from."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("experiment", [*SLATE, *PIXELS])
def test_msf_guides_a_community_experiment(experiment, vae_checkpoint, launch):
    config = compose(*guided(experiment, "experiment.data=any", f"experiment.vae_checkpoint={vae_checkpoint}"))
    config.trainer.logger = OmegaConf.create({"_target_": "pytorch_lightning.loggers.CSVLogger", "save_dir": "."})
    train_config(config)

    run = launch / "lightning_logs/version_0"
    header, *rows = (run / "metrics.csv").read_text().splitlines()
    logged = {name: x for row in rows for name, x in zip(header.split(","), row.split(",")) if x}
    scores = {f"val/{name}" for name in config.evaluation_metrics}
    others = {"train/lds"} if "lds" in experiment else set()
    assert {"train/tokens", "val/tokens", *scores, *others} <= set(logged)
    assert not {"train/mse", "train/vq_ce", "train/vq_mse"} & set(logged)
    assert all(math.isfinite(float(x)) for x in logged.values())

    (path,) = run.glob("checkpoints/*step=1.ckpt")
    trained = torch.load(path, weights_only=True)["state_dict"]
    stage_one = torch.load(vae_checkpoint, weights_only=True)["state_dict"]
    frozen = {name: x for name, x in stage_one.items() if name.startswith("models.vqvae.") and torch.is_tensor(x)}
    assert frozen
    for name, x in frozen.items():
        assert torch.equal(trained[name.replace("models.vqvae", "models.guidance.vae")], x), name


@pytest.mark.parametrize("experiment", SLATE)
def test_nothing_of_the_discrete_vae_is_left(experiment):
    model = build_model_from_config(compose(*guided(experiment)))
    assert not [name for name, _ in model.named_modules() if "dvae" in name]
    theirs = (DVAEFeatureExtractor, DVAEDecoder, AutoregressivePatchDecoder)
    assert not [module for module in model.modules() if isinstance(module, theirs)]
    assert set(model.losses) == {"tokens"}
    assert not any(p.requires_grad for p in model.models["guidance"].parameters())
    assert isinstance(model.models["guidance"].vae.quantizer, MultiScaleFusion)


@pytest.mark.parametrize("experiment", PIXELS)
def test_nothing_of_the_pixel_decoder_is_left_and_the_encoder_stays(experiment):
    plain = build_model_from_config(compose(f"+experiment={experiment}", "models.conditioning.n_slots=3"))
    model = build_model_from_config(compose(*guided(experiment)))
    theirs = (SlotAttentionDecoder,)
    assert [module for module in plain.modules() if isinstance(module, theirs)]
    assert not [module for module in model.modules() if isinstance(module, theirs)]
    assert set(model.losses) == {"tokens"} | (set(plain.losses) - {"mse"})
    states = [it.models.state_dict().items() for it in (plain, model)]
    shapes = [{name: x.shape for name, x in state if torch.is_tensor(x)} for state in states]
    kept = {name for name in shapes[0] if not name.startswith("object_decoder.")}
    assert kept and all(shapes[1][name] == shapes[0][name] for name in kept)
    added = {name.split(".")[0] for name in set(shapes[1]) - kept}
    assert added == {"guidance", "decoder"}


@pytest.mark.parametrize("experiment", ["slate/movi_c", *PIXELS])
def test_slots_data_scores_and_optimiser_stay_the_communitys(experiment):
    plain = compose(f"+experiment={experiment}")
    swapped = compose(f"+experiment={experiment}", "+msf=guidance")
    assert swapped.models.conditioning == plain.models.conditioning
    assert swapped.models.perceptual_grouping == plain.models.perceptual_grouping
    for part in ("dataset", "trainer", "evaluation_metrics"):
        assert OmegaConf.to_container(swapped[part]) == OmegaConf.to_container(plain[part])
    assert swapped.optimizers.opt0.lr_scheduler == plain.optimizers.opt0.lr_scheduler
    assert swapped.optimizers.opt0.optimizer == plain.optimizers.opt0.optimizer


def test_sizes_are_found(launch):
    sizes = {
        "SAVi/cater": (64, 16, 128),
        "slot_attention/clevr10_lds": (128, 32, 64),
        "slot_attention/coco": (128, 32, 256),
    }
    for experiment, expected in sizes.items():
        found = compose(f"+experiment={experiment}", "+msf=guidance", "experiment.data=any").experiment
        assert (found.guidance_image_size, found.guidance_size, found.slots.dim) == expected, experiment


SMALL_VIT = [  # of 4 x 4 patches of 16 x 16
    "models.feature_extractor.model_name=vit_tiny_patch16_224",
    "models.perceptual_grouping.positional_embedding._args_.1.input_dim=192",
    "models.object_decoder.decoder.features=[8]",
]


@pytest.mark.parametrize("beside", [False, True])
def test_dinosaur_reconstructs_codes_of_msf(beside, vae_checkpoint, launch, monkeypatch):
    (experiment,) = FEATURES
    monkeypatch.setenv("RUNNING_TESTS", "true")
    sizes = ["models.object_decoder.num_patches=196", "models.object_decoder.output_dim=192", *SMALL_VIT]
    overrides = [*sizes, "experiment.data=any", f"experiment.vae_checkpoint={vae_checkpoint}", "trainer.logger=false"]
    overrides += ["experiment.targets_beside=feature_extractor.features"] if beside else []
    plain = compose(f"+experiment={experiment}")
    config = compose(*(x for x in guided(experiment, *overrides, msf="targets") if not x.startswith(DECODERS)))
    assert (config.experiment.guidance_scale, config.experiment.guidance_image_size) == (3, 224)
    assert config.models.conditioning.object_dim == plain.models.conditioning.object_dim
    assert config.losses.mse == plain.losses.mse and config.evaluation_metrics == plain.evaluation_metrics
    model = build_model_from_config(config)
    assert list(model.models["object_decoder"].parameters())
    train_config(config)

    model.models["guidance"].load({k: v for k, v in model.models["guidance"].vae.state_dict().items()})
    tree = {"input": {"image": torch.randn(2, 3, 224, 224), "batch_size": 2}}
    output = model.eval().models(inputs=tree)
    output = output if "targets" in output else tree
    codes = output["guidance"].features.flatten(2).transpose(1, 2)
    features = output["feature_extractor"].features
    expected = torch.cat([features, codes], -1) if beside else codes
    torch.testing.assert_close(output["object_decoder"].target, expected)
    assert output["object_decoder"].reconstruction.shape == expected.shape
    pixels = output["normalized_image"] * 0.5 + 0.5
    mean, std = (torch.tensor(x).view(3, 1, 1) for x in ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]))
    torch.testing.assert_close(pixels, tree["input"]["image"] * std + mean)


def test_targets_are_refused_where_pixels_are_reconstructed():
    with pytest.raises(Exception, match=r"take \+msf=guidance"):
        build_model_from_config(compose("+experiment=slot_attention/clevr6", "+msf=targets", "experiment.data=any"))


def test_variants_and_scales_can_still_be_chosen():
    model = build_model_from_config(compose(*guided("slate/movi_c", "msf/variant=gdr")))
    assert isinstance(model.models["guidance"].vae.quantizer, GroupedQuantizer)
    model = build_model_from_config(compose(*guided("slate/movi_c", "msf/guidance=both")))
    assert set(model.losses) == {"tokens", "tokens_2"}


def test_a_preset_behind_the_guidance_keeps_the_communitys_slots_and_images(launch):
    plain = compose(*guided("slate/movi_c", "experiment.data=any"))
    config = compose("+experiment=slate/movi_c", "+msf=guidance", "+msf/preset=cpu", "experiment.data=any")
    assert config.trainer.devices == 1
    assert (config.experiment.token_dim, config.dataset.eval_batch_size) == (64, 8)
    for name in ("experiment.slots.dim", "experiment.guidance_image_size", "experiment.guidance_size"):
        assert OmegaConf.select(config, name) == OmegaConf.select(plain, name), name
    decoder = build_model_from_config(config).models["decoder"].eval()
    tree = {"perceptual_grouping": {"objects": torch.randn(2, 11, 192), "is_empty": None}}
    tree["guidance"] = {"features": torch.randn(2, 64, 32, 32)}
    assert all(logits.shape[:2] == (2, 32 * 32) for logits in decoder(inputs=tree).logits)


def test_a_preset_before_the_guidance_is_refused_in_a_sentence():
    config = compose("+experiment=slate/movi_c", "+msf/preset=cpu", "+msf=guidance", "experiment.data=any")
    with pytest.raises(Exception, match=r"\+msf/preset=cpu must stand behind \+msf=guidance"):
        build_model_from_config(config)


def test_the_shards_of_a_small_conversion_are_those_of_its_summary(shards, monkeypatch):
    monkeypatch.setenv("DATASET_PREFIX", str(shards))
    chosen = ["+experiment=slate/movi_c", "+msf=guidance", "+msf/shards=converted", "experiment.data=clevrtex"]
    dataset = compose(*chosen).dataset
    assert sorted(dataset.train_shards) == sorted(map(str, (shards / "clevrtex/train").glob("*.tar")))
    validation = sorted(map(str, (shards / "clevrtex/val").glob("*.tar")))
    assert sorted(dataset.test_shards) == sorted(dataset.val_shards) == validation
    missing = compose(*chosen[:3], "experiment.data=movi_c").dataset
    with pytest.raises(Exception, match="movi_c has no summary.json. Set DATASET_PREFIX"):
        list(missing.train_shards)


def test_one_override_trains_and_is_scored_from_the_command_line(vae_checkpoint, run_program, tmp_path):
    checkpoint = f"experiment.vae_checkpoint={vae_checkpoint}"
    command = guided("slate/movi_c", checkpoint, "+dataset.eval_batch_size=2")
    done = run_program("ocl.cli.train", *command, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    (run,) = tmp_path.glob("outputs/slate/movi_c/*")
    command = ["+evaluation=eval", "eval_batch_size=2", f"train_config_path={run}/config/config.yaml"]
    done = run_program("ocl.cli.eval", *command, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    scores = json.loads((run / "metrics.json").read_text())["metrics"]["val"]
    assert {"tokens", "ari", "abo"} <= set(scores)


def test_without_a_vae_the_message_is_a_command_that_trains_one(run_program, tmp_path):
    command = guided("SAVi/cater", "+dataset.eval_batch_size=2")
    done = run_program("ocl.cli.train", *command, cwd=tmp_path)
    (line,) = [line for line in (done.stdout + done.stderr).splitlines() if "ocl_train" in line]
    program, *stage_one = shlex.split(line[line.index("ocl_train") :])
    assert {"+experiment=SAVi/cater", "+msf=vqvae", VAE} < set(stage_one)
    assert not any("trainer" in word or "decoder" in word for word in stage_one)

    steps = "experiment.pretraining={steps:1,warmup_steps:1,anneal_steps:1,validate_every:1}"
    small = ["dataset.batch_size=1", "trainer.num_sanity_val_steps=0", "trainer.precision=32-true"]
    done = run_program("ocl.cli.train", *stage_one, steps, *small, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert len(list(tmp_path.glob("outputs/msf/vqvae_cater/*"))) == 1
    done = run_program("ocl.cli.train", *command, cwd=tmp_path)
    assert done.returncode == 0, done.stderr


VIT = "projects/bridging/dinosaur/movi_c_feat_rec"


@pytest.mark.parametrize("experiment", ["SAVi/cater", "slot_attention/clevr10_lds", "slate/movi_c", VIT])
def test_stage_one_of_a_community_experiment_has_its_data_and_no_other_model(experiment, monkeypatch):
    monkeypatch.setenv("RUNNING_TESTS", "true")
    monkeypatch.setenv("DATASET_PREFIX", "/unused")
    plain, config = compose(f"+experiment={experiment}"), compose(f"+experiment={experiment}", "+msf=vqvae", VAE)
    assert {**config.dataset, "batch_size": plain.dataset.batch_size} == plain.dataset
    model = build_model_from_config(config)
    is_video = experiment.startswith("SAVi")
    assert list(model.models) == ["frames"] * is_video + ["normalized_image", "vqvae"]
    assert set(model.losses) == {"reconstruction", "codebook", "commitment", "utilization", "norm"}
    assert list(hydra.utils.instantiate(config.optimizers)) == ["vae"]
    images = torch.randn(*([2, 3] if is_video else [2]), 3, 64, 64)
    model.eval().models(inputs=(tree := {"input": {"image": images, "batch_size": 2}}))
    assert tree["vqvae"].reconstructions[0].shape == (6 if is_video else 2, 3, 64, 64)
    size = config.experiment.guidance_image_size
    assert size == compose(f"+experiment={experiment}", "+msf=guidance").experiment.guidance_image_size
