"""The evaluations of stage 1 on every variant of the quantizer, by their configs."""

from pathlib import Path
from types import SimpleNamespace

import hydra
import pytest
import torch
from hydra.utils import instantiate
from ocl.cli.eval import extend_model
from ocl.cli.train import build_model_from_config
from omegaconf import OmegaConf

from ocl_msf.metrics import object_separability

pytestmark = pytest.mark.needs_host

VARIANTS = sorted(path.stem for path in (Path(__file__).parent.parent / "configs/msf/variant").glob("*.yaml"))
TINY = ["+msf/preset=cpu", "experiment.vae={dim:8,hidden_dim:8}", "experiment.image_size=64", "seed=0"]


def compose(schema, *overrides):
    with hydra.initialize_config_module("configs", version_base="1.3"):
        return hydra.compose(schema, overrides=list(overrides))


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_variant_is_measured_and_its_guidance_drawn(variant, tmp_path):
    torch.manual_seed(0)
    training = compose("training_config", "+experiment=msf/vqvae_clevrtex", f"msf/variant={variant}", *TINY)
    OmegaConf.save(training, tmp_path / "config.yaml")
    model = build_model_from_config(training).eval()
    trainer = SimpleNamespace(callbacks=[], is_global_zero=True)
    model.trainer = trainer  # which keeps no more than a weak reference
    chosen = ["+evaluation=msf/separability", f"train_config_path={tmp_path}", f"output_dir={tmp_path}"]
    extend_model(model, compose("evaluation_config", *chosen))
    mask = torch.nn.functional.one_hot(torch.randint(3, (2, 64, 64)), 3).movedim(-1, 1)
    batch = {"image": torch.rand(2, 3, 64, 64) * 2 - 1, "mask": mask, "batch_size": 2, "__key__": ["a", "b"]}
    with torch.no_grad():
        outputs = model(batch)
    found = {}
    for name, metric in model.evaluation_metrics.items():
        metric.update(**outputs)
        found[name] = metric.compute().item()
    expected = object_separability(outputs["vqvae"].quantized[0], 11)
    assert (found["inter"], found["intra"]) == pytest.approx(expected, rel=1e-6) and found["inter"] > 0
    assert (tmp_path / "guidance_2.png").is_file()
    absent = set() if "unfused" in outputs["vqvae"].diagnostics else {"before_vote"}
    absent |= {"fsq": {"confidence", "missed"}, "no_inter": {"before_vote"}, "no_fusion": {"before_vote"}}.get(
        variant, set()
    )
    assert set(outputs["instruments"]) == {name for name in found if "/" in name and not absent & set(name.split("/"))}


def test_over_the_set_some_super_pixels_of_every_image_are_clustered_together():
    config = compose("evaluation_config", "+evaluation=msf/separability_set")
    assert config.report_filename == "separability_set.json"
    maps = torch.randn(3, 4, 16, 16, generator=torch.Generator().manual_seed(0))
    places = torch.linspace(0, 255, 64, dtype=torch.float64).round().long()
    expected = object_separability(maps.flatten(2)[..., places].unsqueeze(2), 11, over="set")
    for name, value in zip(("inter", "intra"), expected):
        metric = instantiate(config.evaluation_metrics[name])
        metric.update(vqvae={"quantized": [maps]})
        assert metric.compute().item() == pytest.approx(value, rel=1e-6)
