"""The line that a training shows: a bar on a terminal, a line for each validation in a log."""

import io
import logging
import re
import sys

import pytest
import torch
from pytorch_lightning import LightningModule, Trainer
from torch.utils.data import DataLoader

from ocl_msf.training.progress import ShowProgress


class Model(LightningModule):
    """Learns nothing, and scores the name that it is given."""

    def __init__(self, name="ari_fg"):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.name = name

    def training_step(self, batch, index):
        return self.weight.sum()

    def validation_step(self, batch, index):
        self.log(f"val/{self.name}", torch.tensor(0.3125))

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture
def train(tmp_path, monkeypatch, caplog):
    """Trains 6 steps in a run's folder, validating after every second; gives back the trainer and the lines logged."""
    folder = tmp_path / "slate_clevrtex" / "now"
    folder.mkdir(parents=True)

    def run(model, stream=None, path=None, **options):
        monkeypatch.setattr(sys, "stderr", stream or io.StringIO())
        caplog.set_level(logging.INFO, "ocl_msf.training.progress")
        caplog.clear()
        settings = dict(max_steps=6, val_check_interval=2, check_val_every_n_epoch=None, default_root_dir=folder)
        settings.update(accelerator="cpu", logger=False, enable_checkpointing=False, enable_model_summary=False)
        trainer = Trainer(callbacks=[ShowProgress()], **{**settings, **options})
        data = DataLoader(torch.zeros(4, 1))
        trainer.fit(model, data, data, ckpt_path=path)
        return trainer, [record.getMessage() for record in caplog.records if record.name == "ocl_msf.training.progress"]

    return run


def test_a_log_has_a_line_for_each_validation(train):
    _, lines = train(Model(), enable_progress_bar=False)
    assert [re.match(r"slate_clevrtex: step (\d) of 6, ", line).group(1) for line in lines] == ["2", "4", "6"]
    assert all(re.search(r", [\d.e+]+ steps/s, \d\d:\d\d left, ARI_fg 31\.2$", line) for line in lines)


@pytest.mark.parametrize("name, words", [("loss_total", "loss 0.3125"), ("tokens", "loss 0.3125"), ("other", "left")])
def test_without_slots_it_is_the_loss(train, name, words):
    assert train(Model(name), enable_progress_bar=False)[1][0].endswith(words)


def test_a_terminal_has_one_bar_for_the_whole_training_and_no_other(train):
    stream = Terminal()
    trainer, lines = train(Model(), stream, enable_progress_bar=True)
    shown = stream.getvalue()
    assert lines == [] and "Epoch" not in shown and not trainer.progress_bar_callback.is_enabled
    last = shown.rstrip().split("\r")[-1]
    assert "slate_clevrtex: 100%" in last and " 6/6 " in last and "ARI_fg 31.2" in last and "step/s" in last


def test_a_run_that_goes_on_starts_where_it_is(train, tmp_path):
    trainer, _ = train(Model(), enable_progress_bar=False)
    trainer.save_checkpoint(tmp_path / "six.ckpt")
    stream = Terminal()
    train(Model(), stream, path=tmp_path / "six.ckpt", max_steps=8, enable_progress_bar=False)
    assert "75%" in stream.getvalue().split("\r")[1] and " 8/8 " in stream.getvalue()
    lines = train(Model(), path=tmp_path / "six.ckpt", max_steps=8, enable_progress_bar=False)[1]
    assert lines and lines[-1].startswith("slate_clevrtex: step 8 of 8, ")


def test_an_evaluation_says_nothing(train, caplog):
    trainer, _ = train(Model(), enable_progress_bar=False)
    caplog.clear()
    trainer.validate(Model(), DataLoader(torch.zeros(4, 1)), verbose=False)
    assert not [record for record in caplog.records if record.name == "ocl_msf.training.progress"]
