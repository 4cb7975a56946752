"""`--cfg job --resolve` prints the config of every experiment, in either host."""

from pathlib import Path

import hydra
import ocl.cli.train  # noqa: F401  registers the config that all are composed of
import pytest
from hydra import initialize_config_module
from omegaconf import OmegaConf

pytestmark = [pytest.mark.needs_host, pytest.mark.oclf]

CONFIGS = Path(__file__).parent.parent / "configs"
LEAVES = sorted(path.stem for path in (CONFIGS / "experiment" / "msf").glob("[!_]*.yaml"))


@pytest.mark.parametrize("experiment", LEAVES)
@pytest.mark.parametrize("chosen", [[], ["+msf/preset=cpu"]], ids=["full", "cpu"])
def test_every_leaf_resolves(experiment, chosen):
    with initialize_config_module("configs", version_base="1.1"):
        config = hydra.compose("training_config", overrides=[f"+experiment=msf/{experiment}", *chosen])
    OmegaConf.resolve(config)
    assert config.experiment.model in experiment and "${" not in OmegaConf.to_yaml(config)
