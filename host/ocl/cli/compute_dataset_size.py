"""Count the samples of a data set after its transforms: `ocl_compute_dataset_size +dataset=<name>`."""

import logging
from dataclasses import dataclass
from typing import Any

from hydra.core.config_store import ConfigStore
from omegaconf import MISSING, DictConfig

from ocl.cli.cli_utils import hydra_main
from ocl.cli.train import build_and_register_datamodule_from_config

log = logging.getLogger(__name__)


@dataclass
class ComputeSizeConfig:
    """The data set to count."""

    dataset: Any = MISSING


ConfigStore.instance().store(name="compute_size_config", node=ComputeSizeConfig)


@hydra_main("compute_size_config")
def compute_size(config: DictConfig) -> None:
    """Log the number of samples of every split that the data set has."""
    datamodule = build_and_register_datamodule_from_config(config)
    for name, split in (("Train", "train"), ("Validation", "val"), ("Test", "test")):
        try:
            samples = getattr(datamodule, f"{split}_data_iterator")()
        except ValueError as error:  # there is no such split
            log.info("%s split: %s", name, error)
        else:
            log.info("%s split size: %d", name, sum(1 for _ in samples))


if __name__ == "__main__":
    compute_size()
