import json
import os
import platform
from pathlib import Path
from types import SimpleNamespace

import pytest
import pytorch_lightning as pl
import torch
import yaml
from hydra.utils import instantiate

from ocl_msf.training.environment import FILE, PACKAGES, RecordEnvironment, device_name

CONFIGS = Path(__file__).parent.parent / "configs"


class Line(pl.LightningModule):
    """One weight, and what lies in the run's folder when its training starts."""

    def __init__(self):
        super().__init__()
        self.w = torch.nn.Parameter(torch.zeros(1))

    def on_train_start(self):
        self.there = sorted(path.name for path in (Path(self.trainer.default_root_dir) / "config").iterdir())

    def training_step(self, batch, index):
        return ((self.w - batch) ** 2).sum()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)


def of_an_experiment():
    """The callback as the experiments have it."""
    config = yaml.safe_load((CONFIGS / "experiment/msf/_optimization.yaml").read_text(encoding="utf-8"))
    return instantiate(config["experiment"]["callbacks"]["environment"])


@pytest.mark.filterwarnings("ignore:.*:UserWarning")  # Lightning's advice on so small a run
def test_a_training_records_its_environment_before_the_first_step(tmp_path):
    line = Line()
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    trainer = pl.Trainer(
        max_steps=1,
        accelerator="cpu",
        callbacks=[of_an_experiment()],
        default_root_dir=tmp_path,
        enable_model_summary=False,
        **quiet,
    )
    trainer.fit(line, torch.utils.data.DataLoader(torch.ones(1), batch_size=1))
    assert line.there == ["environment.json"]
    recorded = json.loads((tmp_path / FILE).read_text(encoding="utf-8"))
    assert recorded["Python"] == platform.python_version() and platform.release() in recorded["system"]
    assert recorded["torch"].split("+")[0] == torch.__version__.split("+")[0]
    assert recorded["device"].startswith("1 x ") and recorded["device"].endswith(f", {os.cpu_count()} cores")
    assert set(recorded) == {"device", "system", "Python", *PACKAGES} and all(recorded.values())


def test_a_package_that_is_not_there_is_said_not_to_be(tmp_path, monkeypatch):
    monkeypatch.setattr("ocl_msf.training.environment.PACKAGES", ("no-such-package",))
    strategy = SimpleNamespace(root_device=torch.device("cpu"))
    trainer = SimpleNamespace(is_global_zero=True, world_size=2, default_root_dir=str(tmp_path), strategy=strategy)
    RecordEnvironment().on_fit_start(trainer, None)
    recorded = json.loads((tmp_path / FILE).read_text(encoding="utf-8"))
    assert recorded["no-such-package"] == "not installed" and recorded["device"].startswith("2 x ")


def test_one_process_of_several_writes(tmp_path):
    RecordEnvironment().on_fit_start(SimpleNamespace(is_global_zero=False, default_root_dir=str(tmp_path)), None)
    assert not list(tmp_path.iterdir())


def test_a_gpu_is_named(monkeypatch):
    monkeypatch.setattr("torch.cuda.get_device_name", lambda device: f"GPU {device.index}")
    monkeypatch.setattr("torch.version.cuda", "12.8")
    assert device_name(torch.device("cuda", 1)) == "GPU 1, CUDA 12.8"
