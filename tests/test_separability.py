"""The evaluations of stage 1 on every variant of the quantizer, by their configs."""

from pathlib import Path

import hydra
import pytest
import torch
from hydra.utils import instantiate
from ocl.cli.eval import extend_model
from ocl.cli.train import build_model_from_config

from ocl_msf.metrics import object_separability

pytestmark = pytest.mark.needs_host

VARIANTS = sorted(path.stem for path in (Path(__file__).parent.parent / "configs/msf/variant").glob("*.yaml"))
TINY = ["+msf/preset=cpu", "experiment.vae={dim:8,hidden_dim:8}", "experiment.image_size=64", "seed=0"]


def compose(schema, *overrides):
    with hydra.initialize_config_module("configs", version_base="1.3"):
        return hydra.compose(schema, overrides=list(overrides))


@pytest.fixture(scope="module")
def evaluations():
    names = ("separability", "separability_set")
    return {name: compose("evaluation_config", f"+evaluation=msf/{name}") for name in names}


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_variant_has_its_separability_and_its_guidance_drawn(variant, evaluations, tmp_path):
    torch.manual_seed(0)
    model = build_model_from_config(
        compose("training_config", "+experiment=msf/vqvae_clevrtex", f"msf/variant={variant}", *TINY)
    ).eval()
    config = evaluations["separability"].copy()
    config.output_dir = str(tmp_path)
    extend_model(model, config)
    batch = {"image": torch.rand(2, 3, 64, 64) * 2 - 1, "batch_size": 2, "__key__": ["a", "b"]}
    with torch.no_grad():
        outputs = model(batch)
    found = {}
    for name, metric in model.evaluation_metrics.items():
        metric.update(**outputs)
        found[name] = metric.compute().item()
    expected = object_separability(outputs["vqvae"].quantized[0], 11)
    assert (found["inter"], found["intra"]) == pytest.approx(expected, rel=1e-6) and found["inter"] > 0
    assert (tmp_path / "guidance_2.png").is_file()


def test_over_the_set_some_super_pixels_of_every_image_are_clustered_together(evaluations):
    config = evaluations["separability_set"]
    assert config.report_filename == "separability_set.json"
    maps = torch.randn(3, 4, 16, 16, generator=torch.Generator().manual_seed(0))
    places = torch.linspace(0, 255, 64, dtype=torch.float64).round().long()
    expected = object_separability(maps.flatten(2)[..., places].unsqueeze(2), 11, over="set")
    for name, value in zip(("inter", "intra"), expected):
        metric = instantiate(config.evaluation_metrics[name])
        metric.update(vqvae={"quantized": [maps]})
        assert metric.compute().item() == pytest.approx(value, rel=1e-6)
