"""Runs of an earlier version: their command is composed anew, and their weights take the names of today."""

import re

import hydra
import ocl.cli.train  # noqa: F401  registers the configs that experiments are composed of
import pytest
import torch
from ocl.cli.train import build_model_from_config
from omegaconf import OmegaConf
from omegaconf.errors import InterpolationResolutionError

from ocl_msf.cli import main
from ocl_msf.experiments.runs import Run
from ocl_msf.experiments.upgrade import rename_override, upgrade_run
from ocl_msf.files import DataError

pytestmark = pytest.mark.needs_host

COMMAND = ["+experiment=msf/slate_clevrtex", "+msf/preset=cpu", "experiment.image_size=32", "experiment.token_dim=8"]
VIT = ["experiment.encoder={vit:vit_tiny_patch16_224,pretrained:false}"]


@pytest.fixture
def former(tmp_path):
    """The folder of a run as an earlier version left it, and the weights of its model under their names of today."""
    overrides = [*COMMAND, *VIT, "experiment.vit.weights=none.pth"]
    with hydra.initialize_config_module("configs", version_base="1.3"):
        weights = build_model_from_config(hydra.compose("training_config", overrides=overrides)).state_dict()
    config = tmp_path / "config"
    config.mkdir()
    OmegaConf.save({"losses": {"codebook": {"_target_": "routed.ocl_msf.losses.Weighted"}}}, config / "config.yaml")
    recorded = [*COMMAND, *VIT, "experiment.dino_weights=none.pth", "dataset=clevrtex_lmdb"]
    OmegaConf.save(OmegaConf.create(recorded), config / "overrides.yaml")
    names = {name: re.sub(r"\.vit\.(network)?", lambda m: ".dino.vit" if m[1] else ".dino.", name) for name in weights}
    path = tmp_path / "lightning_logs" / "version_0" / "checkpoints" / "epoch=0-step=5.ckpt"
    path.parent.mkdir(parents=True)
    torch.save({"global_step": 5, "state_dict": {names[name]: x for name, x in weights.items()}}, path)
    return tmp_path, path, weights


def contents(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_converted_run_is_like_a_new_one(former):
    folder, path, weights = former
    before = (folder / "config" / "config.yaml").read_bytes()
    assert upgrade_run(folder)
    run = Run.open(folder)
    assert (run.stage, run.evaluation, run.setting("model")) == (2, "msf/scores", "slate")
    assert (run.config.dataset.name, run.setting("vit.weights")) == ("clevrtex_lmdb", "none.pth")
    assert run.override("dataset") == "clevrtex"
    assert (folder / "config" / "config.before-upgrade.yaml").read_bytes() == before
    checkpoint = torch.load(path, weights_only=True)
    assert checkpoint["global_step"] == 5 and set(checkpoint["state_dict"]) == set(weights)
    build_model_from_config(run.config, str(path))  # strictly
    assert not upgrade_run(folder)


FORMER_PARTS = [
    ("slate_clevrtex", {"models.decoder.start": "plain"}),
    ("steve_movi_c", {"models.recurrence.module.predictor.normalize": False}),
    ("sysbinder_clevrtex", {"models.perceptual_grouping.normalize_memory": False}),
    ("sysbinder_movi_c", {"models.recurrence.module.corrector.normalize_memory": False}),
    ("slotdiffusion_clevrtex", {"models.decoder.beta_schedule": "linear", "models.decoder.dropout": 0.0}),
]


@pytest.mark.parametrize("experiment, settings", FORMER_PARTS, ids=[experiment for experiment, _ in FORMER_PARTS])
def test_parts_stay_what_they_were_in_the_version_of_the_run(tmp_path, experiment, settings):
    command = [f"+experiment=msf/{experiment}", "+msf/preset=cpu"]
    former = [f"{key}={value}" for key, value in settings.items()]
    with hydra.initialize_config_module("configs", version_base="1.3"):
        config = hydra.compose("training_config", overrides=[*command, *former])
    weights = build_model_from_config(config).state_dict()
    for key in settings:
        OmegaConf.update(config, key, None)
    del config.experiment.stage
    (tmp_path / "config").mkdir()
    OmegaConf.save(config, tmp_path / "config" / "config.yaml")
    OmegaConf.save(OmegaConf.create(command), tmp_path / "config" / "overrides.yaml")
    path = tmp_path / "lightning_logs" / "version_0" / "checkpoints" / "epoch=0-step=5.ckpt"
    path.parent.mkdir(parents=True)
    torch.save({"global_step": 5, "state_dict": weights}, path)
    assert upgrade_run(tmp_path)
    run = Run.open(tmp_path)
    assert {key: OmegaConf.select(run.config, key) for key in settings} == settings
    build_model_from_config(run.config, str(path))  # strictly


def test_a_run_whose_weights_do_not_fit_stays_as_it_was(former):
    folder, path, _ = former
    checkpoint = torch.load(path, weights_only=True)
    checkpoint["state_dict"]["models.decoder.begin"] = torch.zeros(1, 1, 7)
    torch.save(checkpoint, path)
    before = contents(folder)
    with pytest.raises(DataError, match=r"step=5\.ckpt does not fit .*models\.decoder\.begin"):
        upgrade_run(folder)
    assert contents(folder) == before


def test_a_command_that_is_none_any_more_is_shown(former):
    folder, _, _ = former
    OmegaConf.save(OmegaConf.create(["+experiment=msf/gone_clevrtex"]), folder / "config" / "overrides.yaml")
    before = contents(folder)
    with pytest.raises(DataError, match=r"its command, ocl_train \+experiment=msf/gone_clevrtex, fails"):
        upgrade_run(folder)
    assert contents(folder) == before


@pytest.mark.parametrize(
    ("override", "today"),
    [
        ("experiment.dino=vit_base_patch16_224.dino", ["experiment.vit.name=vit_base_patch16_224.dino"]),
        ("++experiment.dino_weights='a=b.pth'", ["++experiment.vit.weights='a=b.pth'"]),
        ("dataset=movi_e_boxes_lmdb", ["dataset=movi", "dataset.name=movi_e_lmdb"]),
        ("seed=0", ["seed=0"]),
        ("~models.masks", ["~models.masks"]),
    ],
)
def test_overrides_are_written_as_those_of_today(override, today):
    assert rename_override(override) == today


def test_the_command_says_what_it_did(former, capsys):
    folder, *_ = former
    main(["upgrade", str(folder)])
    main(["upgrade", str(folder)])
    assert capsys.readouterr().out == f"{folder}: converted\n{folder}: up to date\n"


@pytest.mark.parametrize("former", ["experiment.dino=vit_base_patch8_224.dino", "+experiment.dino_weights=PATH"])
def test_a_former_setting_is_refused_with_its_name_of_today(former):
    with hydra.initialize_config_module("configs", version_base="1.3"):
        config = hydra.compose("training_config", overrides=[*COMMAND, former])
    with pytest.raises(InterpolationResolutionError, match=r"experiment\.dino\w* is called experiment\.vit\.\w+ now"):
        OmegaConf.to_container(config.experiment.callbacks, resolve=True)
