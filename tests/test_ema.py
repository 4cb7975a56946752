from pathlib import Path

import pytest
import pytorch_lightning as pl
import torch
import yaml

from ocl_msf.training.ema import AverageWeights

pytestmark = [
    pytest.mark.oclf,
    pytest.mark.filterwarnings("ignore:.*:UserWarning"),  # Lightning's advice on so small a run
]
TARGETS = torch.arange(12.0)


class Line(pl.LightningModule):
    """Weight w, pulled towards the next target in each step, beside a frozen weight and a buffer."""

    def __init__(self):
        super().__init__()
        self.w = torch.nn.Parameter(torch.zeros(1))
        self.frozen = torch.nn.Parameter(torch.ones(1), requires_grad=False)
        self.register_buffer("seen", torch.zeros(1))
        self.after, self.validated = [], []

    def training_step(self, batch, index):
        self.seen += 1
        return ((self.w - batch) ** 2).sum()

    def on_train_batch_end(self, *_):
        self.after.append(self.w.item())

    def validation_step(self, batch, index):
        self.validated.append(self.w.item())

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)


def fit(folder, decay=None, steps=12, resume=None, accumulate=1, every=4, more=()):
    """Train the line; returns it and the checkpoint of its last step."""
    line = Line()
    callbacks = [] if decay is None else [AverageWeights(decay)]
    trainer = pl.Trainer(
        max_steps=steps,
        max_epochs=-1,
        accelerator="cpu",
        callbacks=[*callbacks, *more],
        default_root_dir=folder,
        logger=False,
        enable_checkpointing=bool(more),
        enable_progress_bar=False,
        enable_model_summary=False,
        accumulate_grad_batches=accumulate,
        val_check_interval=every,
        num_sanity_val_steps=1,
        log_every_n_steps=1,
    )
    data = torch.utils.data.DataLoader(TARGETS.repeat(accumulate), batch_size=1)
    trainer.fit(line, data, torch.utils.data.DataLoader(TARGETS[:1]), ckpt_path=resume)
    trainer.save_checkpoint(folder / f"{steps}.ckpt")
    return line, folder / f"{steps}.ckpt"


def averages(weights, decay):
    """The average after each step: an exponential one, whose decay is n / (9 + n) in the beginning."""
    average, done = weights[0], [weights[0]]
    for n, weight in enumerate(weights[1:], 1):
        now = min(decay, (1 + n) / (10 + n))
        average = now * average + (1 - now) * weight
        done.append(average)
    return done


def read(path):
    return torch.load(path, map_location="cpu", weights_only=True)


@pytest.mark.parametrize("decay", [0.0, 0.3, 0.9999])
def test_averages_are_validated_and_saved_and_training_does_not_notice(tmp_path, decay):
    plain, _ = fit(tmp_path)
    line, path = fit(tmp_path, decay)
    assert line.after == plain.after and line.w.item() == plain.w.item()
    expected = averages(line.after, decay)
    assert line.validated == pytest.approx([0, expected[3], expected[7], expected[11]])
    state = read(path)["state_dict"]
    assert state["w"].item() == pytest.approx(expected[-1])
    assert state["frozen"].item() == 1 and state["seen"].item() == 12


def test_a_run_resumes_where_it_stopped(tmp_path):
    whole, last = fit(tmp_path, 0.9, steps=24)
    _, middle = fit(tmp_path, 0.9, steps=12)  # an epoch
    resumed, again = fit(tmp_path / "resumed", 0.9, steps=24, resume=middle)
    assert resumed.after == whole.after[12:]
    for saved in ("state_dict", "averaging"):
        assert read(again)[saved] == read(last)[saved]


def test_a_run_that_begins_to_average_starts_from_the_weights_it_finds(tmp_path):
    line, middle = fit(tmp_path, steps=6)
    resumed, last = fit(tmp_path, 0.9, resume=middle)
    assert read(last)["state_dict"]["w"].item() == pytest.approx(averages(resumed.after, 0.9)[-1])


def test_a_step_of_several_batches_is_one_step_of_the_average(tmp_path):
    line, path = fit(tmp_path, 0.5, steps=4, accumulate=3)
    assert read(path)["state_dict"]["w"].item() == pytest.approx(averages(line.after[2::3], 0.5)[-1])


class SaveWithin(pl.Callback):
    """Save a checkpoint in the middle of a validation, as a run does that is asked to stop."""

    def on_validation_batch_end(self, trainer, *_):
        if trainer.global_step == 4:
            trainer.save_checkpoint(self.path)


def test_a_checkpoint_of_a_validation_is_like_any_other(tmp_path):
    saving = SaveWithin()
    saving.path = tmp_path / "within.ckpt"
    whole, _ = fit(tmp_path, 0.9, more=[saving])
    _, path = fit(tmp_path, 0.9, steps=4, every=12)
    for saved in ("state_dict", "averaging"):
        assert read(saving.path)[saved] == read(path)[saved]
    assert whole.after == fit(tmp_path)[0].after


def test_any_model_loads_the_averages_as_its_weights(tmp_path):
    line, path = fit(tmp_path, 0.9)
    other = Line()
    other.load_state_dict(read(path)["state_dict"])
    assert other.w.item() == pytest.approx(averages(line.after, 0.9)[-1]) and other.w.item() != line.w.item()


@pytest.mark.parametrize("decay", [-0.1, 1.0])
def test_a_decay_out_of_range_is_named(decay):
    with pytest.raises(ValueError, match=f"decay must be at least 0 and below 1, got {decay}"):
        AverageWeights(decay)


def test_the_override_adds_the_callback():
    path = Path(__file__).parent.parent / "configs" / "msf" / "ema" / "diffusion.yaml"
    (callback,) = yaml.safe_load(path.read_text())["experiment"]["callbacks"].values()
    assert callback.pop("_target_") == "ocl_msf.training.ema.AverageWeights"
    assert AverageWeights(**callback).decay == 0.9999
