"""A training whose loss is not finite stops at that step, and says what was not finite first."""

from typing import NamedTuple

import pytest
import pytorch_lightning as pl
import torch
from torch import nn
from torch.utils.data import DataLoader

from ocl_msf.training.divergence import StopDiverged


class Output(NamedTuple):
    features: torch.Tensor
    number: int = 0


class Encoder(nn.Module):
    """A line; `spoiled` is a number added to its outputs."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))
        self.spoiled = 0.0

    def forward(self, image):
        return {"of": [Output(self.weight * image + self.spoiled)]}


class Error(nn.Module):
    """A loss, with something to show beside; `degree` 0.5 has an infinite gradient at 0."""

    def __init__(self, degree=2.0, offset=0.0):
        super().__init__()
        self.degree, self.offset = degree, offset

    def forward(self, features):
        error = (features.abs() ** self.degree).mean() + self.offset
        return error, {"shown": error}


class Model(pl.LightningModule):
    """Three modules and a loss as in the framework. `spoil(model, step)` is called before each batch."""

    def __init__(self, spoil=None, loss=None, accumulate=1):
        super().__init__()
        self.models = nn.ModuleDict({name: Encoder() for name in ("encoder", "slots", "decoder")})
        self.losses = nn.ModuleDict({"tokens": loss or Error(), "other": Error()})
        self.spoil = spoil

    def training_step(self, batch, index):
        if self.spoil:
            self.spoil(self, index + 1)
        x = batch["image"]
        for module in self.models.values():
            x = module(x)["of"][0].features
        return sum(loss(x)[0] for loss in self.losses.values())

    def validation_step(self, batch, index):
        self.losses["tokens"](torch.full((2,), torch.nan))  # not of a step of training

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=1e-3)


def fit(model, folder, images=None, steps=4, watched=True, **options):
    """Train on batches of two numbers; returns the callback."""
    images = torch.linspace(0.5, 1, 2 * 8) if images is None else images
    batches = DataLoader([{"image": image, "batch_size": 1} for image in images], batch_size=2)
    torch.manual_seed(0)
    callback = StopDiverged()
    save = pl.callbacks.ModelCheckpoint(
        dirpath=folder, monitor="step", mode="max", every_n_train_steps=2, save_top_k=-1
    )
    settings = {"accelerator": "cpu", "logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    callbacks = [callback, save] if watched else [save]
    trainer = pl.Trainer(max_steps=steps, callbacks=callbacks, num_sanity_val_steps=1, **settings, **options)
    trainer.fit(model, batches, batches)
    return callback


def spoil_decoder(value):
    def spoil(model, step):
        model.models["decoder"].spoiled = value if step == 3 else 0.0

    return spoil


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_the_step_and_the_first_module_are_named_and_the_weights_stay(tmp_path, value):
    model = Model(spoil_decoder(value))
    expected = r"diverged at step 3: NaN or infinity in losses\.tokens, losses\.other\. First, models\.decoder is not"
    with pytest.raises(ValueError, match=expected):
        fit(model, tmp_path)
    assert all(parameter.isfinite().all() for parameter in model.parameters())
    sound = Model()
    fit(sound, tmp_path / "sound", steps=2)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), sound.parameters()))


def test_data_that_are_not_finite_are_named(tmp_path):
    images = torch.linspace(0.5, 1, 16)
    images[3] = torch.nan  # in the second batch
    with pytest.raises(ValueError, match=r"step 2: .* First, input\.image is not finite.*, check the data"):
        fit(Model(), tmp_path, images)


def test_a_loss_that_is_not_finite_by_itself_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"step 1: .* in losses\.tokens\. The outputs of all modules are finite"):
        fit(Model(loss=Error(offset=float("inf"))), tmp_path)


def test_batches_whose_gradients_are_added_up_are_one_step(tmp_path):
    with pytest.raises(ValueError, match="diverged at step 2:"):  # the third batch is the first half of it
        fit(Model(spoil_decoder(float("nan"))), tmp_path, accumulate_grad_batches=2)


def test_weights_that_gradients_have_spoiled_are_not_saved(tmp_path):
    """The loss of the last step is finite, its gradient is not."""
    model = Model(loss=Error(degree=0.5))
    images = torch.ones(16)
    images[2:4] = 0
    with pytest.raises(ValueError, match=r"diverged by step 2: the weights models\.encoder\.weight hold NaN"):
        fit(model, tmp_path, images, steps=2)
    assert not list(tmp_path.iterdir())


def test_what_is_sound_trains_as_without_it(tmp_path):
    watched, alone = Model(), Model()
    callback = fit(watched, tmp_path / "a")
    fit(alone, tmp_path / "b", watched=False)
    assert all(torch.equal(a, b) for a, b in zip(watched.parameters(), alone.parameters()))
    assert not callback.hooks and not watched.models["encoder"]._forward_hooks
