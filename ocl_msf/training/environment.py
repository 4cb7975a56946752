"""The versions and devices of a training, written into the run's folder when it starts."""

import importlib.metadata
import os
import platform
import re
from pathlib import Path
from typing import Dict

import torch
from pytorch_lightning import Callback, LightningModule, Trainer

from ocl_msf.files import encode_json, replacing

FILE = Path("config") / "environment.json"
PACKAGES = (
    *("ocl-msf", "ocl", "torch", "torchvision", "pytorch-lightning", "torchmetrics", "hydra-core"),
    *("timm", "diffusers", "numpy"),
)


class RecordEnvironment(Callback):
    """Write versions and devices beside the run's configuration, `config/environment.json`, before the first step.

    A run that is resumed in the same folder overwrites them.
    """

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the file, on rank 0.

        Raises:
            DataError: it cannot be written.
        """
        if trainer.is_global_zero:
            device = f"{trainer.world_size} x {device_name(trainer.strategy.root_device)}"
            with replacing(Path(trainer.default_root_dir) / FILE) as file:
                file.write(encode_json({"device": device, **software()}, 2) + b"\n")


def device_name(device: torch.device) -> str:
    """The model of a GPU and the CUDA version, or the model of the CPU."""
    if device.type == "cuda":
        return f"{torch.cuda.get_device_name(device)}, CUDA {torch.version.cuda}"
    return processor_name() if device.type == "cpu" else device.type


def processor_name() -> str:
    """The model of the CPU, and the number of cores."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        lines = ""  # not Linux
    match = re.search(r"^model name\s*: (.+)$", lines, re.MULTILINE)
    name = match.group(1).strip() if match else platform.processor() or platform.machine()
    return f"{name}, {os.cpu_count()} cores"


def software() -> Dict[str, str]:
    """The operating system, and the versions of Python and of the packages that results depend on."""
    system = f"{platform.system()} {platform.release()} {platform.machine()}"
    versions = {"system": system, "Python": platform.python_version()}
    for name in PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = "not installed"
    return versions
