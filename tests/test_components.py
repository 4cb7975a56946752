"""Parts by name: every module of ours is a choice of a config group, and fits into an experiment."""

import importlib
import inspect
import pkgutil
from itertools import groupby, zip_longest

import hydra
import pytest
import torch
from hydra import initialize_config_module
from hydra.utils import get_class, instantiate
from hydra_plugins.ocl_msf.components import COMPONENTS
from ocl.cli.train import build_model_from_config
from omegaconf import OmegaConf

import ocl_msf
from ocl_msf.experiments.components import describe_components
from ocl_msf.feature_extractors import NaiveCNN

pytestmark = [pytest.mark.needs_host, pytest.mark.oclf]

# What only modules of ours are made of, or extend.
INNER = {
    *(
        "Attention",
        "Codebook",
        "CodebookQuantizer",
        "CodeDecoder",
        "Contrast",
        "ConvBlock",
        "DecoderBlock",
        "DilatedBlock",
    ),
    *(
        "Factor",
        "FactorMemory",
        "Frozen",
        "FrozenViT",
        "GuidanceTokens",
        "Instrument",
        "InvertibleProjection",
        "Mish",
        "PreciseCodebook",
        "PreheatingLoss",
        "Pretrained",
        "Quantizer",
        "SlotCompetition",
    ),
}
IN_TURN = [part for part in COMPONENTS if part.group != "fusion"]  # those have a pyramid around them
ROUNDS = zip_longest(*(list(parts) for _, parts in groupby(sorted(IN_TURN, key=lambda x: x.group), lambda x: x.group)))


def compose(*overrides):
    with initialize_config_module("configs", version_base="1.1"):
        return hydra.compose("training_config", overrides=list(overrides))


def targets(settings):
    """All classes that a config names."""
    found = {settings["_target_"].rpartition(".")[2]} if "_target_" in settings else set()
    return found.union(*(targets(value) for value in settings.values() if isinstance(value, dict)))


def test_every_module_is_a_part_or_inside_of_one():
    modules = set()
    for info in pkgutil.iter_modules(ocl_msf.__path__, "ocl_msf."):
        if info.ispkg or info.name.rpartition(".")[2].startswith("_"):
            continue
        for name, value in vars(importlib.import_module(info.name)).items():
            is_module = inspect.isclass(value) and issubclass(value, torch.nn.Module)
            if is_module and value.__module__ == info.name and not name.startswith("_"):
                modules.add(name)
    named = set().union(*(targets({"_target_": part.target, **part.settings}) for part in COMPONENTS))
    assert modules - INNER - named == set(), "new modules: give them a line in COMPONENTS, or in INNER"
    assert INNER <= modules and not INNER & named


@pytest.mark.parametrize("parts", [[part for part in turn if part] for turn in ROUNDS])
def test_every_part_fits_into_an_experiment(parts, monkeypatch):
    monkeypatch.setenv("DATASET_PREFIX", "data")
    chosen = [f"{'' if part.group == 'encoder' else '+'}msf/{part.group}={part.name}" for part in parts]
    config = compose("+experiment=msf/slate_clevrtex", "+msf/preset=cpu", *chosen)
    for part in parts:
        given = {"extractor": NaiveCNN(4)} if part.place == "models.pyramid" else {}
        module = instantiate(OmegaConf.select(config, part.place), _convert_="all", **given)
        assert isinstance(module, get_class(part.target.replace("routed.", "")))


def test_a_part_takes_the_place_of_what_is_there():
    config = compose("+experiment=slot_attention/clevr6", "+msf/encoder=naive_cnn", "+msf/grouping=blocks")
    assert "kvq_dim" not in config.models.perceptual_grouping and "video_path" not in config.models.feature_extractor
    assert list(config.models) == list(compose("+experiment=slot_attention/clevr6").models)  # they run in this order
    encoder = build_model_from_config(compose("+experiment=slot_attention/clevr6", "+msf/encoder=naive_cnn")).models
    assert isinstance(encoder["feature_extractor"], NaiveCNN)


def test_several_losses_and_scores_can_be_added():
    config = compose("+experiment=slot_attention/clevr6", "+msf/loss=[sparsity]", "+msf/score=[ari,samples]")
    assert {"mse", "sparsity"} <= set(config.losses) and {"ari", "samples"} <= set(config.evaluation_metrics)


def test_every_part_is_described_in_one_line():
    lines = describe_components()
    assert [x.choice for x in lines] == [f"msf/{part.group}={part.name}" for part in COMPONENTS]
    assert len({x.choice for x in lines}) == len(lines) and all(10 < len(x.line) < 160 for x in lines)
    assert all(get_class(x.target).__doc__.split()[0] in x.line for x in lines)
    assert [x.choice for x in describe_components("pyramid")] == ["msf/pyramid=images"]
    with pytest.raises(ValueError, match="There is no group decoders. Choose one of encoder, .*decoder"):
        describe_components("decoders")
