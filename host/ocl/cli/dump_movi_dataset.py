"""Write a MOVi data set as three arrays: `ocl_dump_movi_dataset +dataset=movi_c_image output_dir=DIR`.

`train_images.npy` and `val_images.npy` hold all images (n, h, w, 3), `val_labels.npy` their masks, uint8.
"""

import logging
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from hydra.core.config_store import ConfigStore
from hydra.utils import to_absolute_path
from omegaconf import MISSING, DictConfig

from ocl.cli.cli_utils import hydra_main
from ocl.cli.train import build_and_register_datamodule_from_config

log = logging.getLogger(__name__)


@dataclass
class DumpMoviConfig:
    """The data set, and where its arrays go."""

    dataset: Any = MISSING
    output_dir: str = "data"


ConfigStore.instance().store(name="dump_movi_config", node=DumpMoviConfig)


@hydra_main("dump_movi_config")
def dump(config: DictConfig) -> None:
    """Write images of both splits, and masks of validation.

    Raises:
        ValueError: if no data set is chosen, or its samples lack a field, differ in shape or are none.
    """
    if "dataset" not in config:
        raise ValueError("Choose a data set: +dataset=movi_c_image.")
    data: Any = build_and_register_datamodule_from_config(config, batch_size=1, eval_batch_size=1, num_workers=0)
    folder = Path(to_absolute_path(config.output_dir))
    folder.mkdir(parents=True, exist_ok=True)
    write(folder, data.train_data_iterator(), {"image": "train_images"}, "training")
    write(folder, data.val_data_iterator(), {"image": "val_images", "mask": "val_labels"}, "validation")


def write(folder: Path, samples: Iterable[dict[str, Any]], names: dict[str, str], split: str) -> None:
    """Write fields of all samples of a split, each as one array, whole or not at all.

    Args:
        folder: where they go.
        samples: of the split.
        names: the name of the file by field; masks become uint8.
        split: its name, for messages.
    """
    arrays: dict[str, list[np.ndarray]] = {field: [] for field in names}
    for sample in samples:
        for field, content in arrays.items():
            if field not in sample:
                raise ValueError(f"Samples for {split} have no field `{field}`: is this a data set of MOVi's images?")
            value = np.asarray(sample[field])
            content.append(value.astype(np.uint8) if field == "mask" else value)
            if value.shape != content[0].shape:
                raise ValueError(
                    f"`{field}` of {split} has shapes {content[0].shape} and {value.shape}: "
                    "one array takes samples of one shape."
                )
    for field, content in arrays.items():
        if not content:
            raise ValueError(f"There is no sample for {split}.")
        temporary = folder / f"{names[field]}.tmp"
        with open(temporary, "wb") as file:
            np.save(file, np.stack(content))
        temporary.replace(folder / f"{names[field]}.npy")
        log.info("%s: %d samples", folder / f"{names[field]}.npy", len(content))


if __name__ == "__main__":
    dump()
