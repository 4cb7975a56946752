import argparse
import functools
import logging
import math
import os
import signal

import pytest
import pytorch_lightning as pl
import routed
import torch
from ocl import scheduling
from ocl.callbacks import (
    FreezeParameters,
    Interrupted,
    LogProgress,
    RestoreParameterSubset,
    SetEpochEnvironmentVariable,
    StopOnSignal,
    UpdateHyperparameterScheduling,
)
from ocl.combined_model import CombinedModel
from ocl.optimization import OptimizationWrapper
from ocl.utils.checkpoints import AtomicCheckpointIO, CheckpointError, load_checkpoint, load_weights
from torch import nn
from torch.utils.data import DataLoader


class Times(nn.Module):
    """A number times the input; calls `probe` first."""

    def __init__(self, start=2.0, probe=None):
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(start))
        self.probe = probe

    def forward(self, inputs):
        if self.probe:
            self.probe(self)
        return inputs["input"]["x"] * self.weight


class Mean(nn.Module):
    """The mean of an output times a schedule or number."""

    def __init__(self, name="a", weight=1.0, extra=None):
        super().__init__()
        self.name, self.weight, self.extra = name, weight, extra

    def forward(self, inputs):
        loss = inputs[self.name].mean() * self.weight
        return loss if self.extra is None else (loss, self.extra)


class Rows(pl.loggers.logger.Logger):
    """Keeps what is logged; the experiment can show single images only."""

    def __init__(self):
        super().__init__()
        self.rows, self.images = [], []

    name = version = "rows"

    @property
    def experiment(self):
        return argparse.Namespace(add_image=lambda **image: self.images.append(image))

    def log_hyperparams(self, *args, **kwargs):
        pass

    def log_metrics(self, metrics, step=None):
        self.rows.append(metrics)

    def values(self, name):
        return [row[name] for row in self.rows if name in row]


def batches(*values):
    return DataLoader([{"x": torch.full((n, 2), v), "batch_size": n} for n, v in values], batch_size=None)


def model(a=None, losses=None, lr=0.1, **options):
    return CombinedModel(
        {"a": Times() if a is None else a},
        {"sgd": functools.partial(torch.optim.SGD, lr=lr)},
        {"mean": Mean()} if losses is None else losses,
        **{"visualizations": {}, **options},
    )


@pytest.fixture
def trainer(tmp_path):
    def build(**options):
        defaults = dict(
            accelerator="cpu",
            devices=1,
            max_steps=2,
            logger=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            enable_checkpointing=False,
            num_sanity_val_steps=0,
            log_every_n_steps=1,
            default_root_dir=str(tmp_path),
            plugins=[AtomicCheckpointIO()],
        )
        return pl.Trainer(**{**defaults, **options})

    return build


# ------------------------------------------------------------------------------------------------ schedules


def rates(schedule, steps, **options):
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=2.0)
    scheduler = schedule(optimizer, **options)["lr_scheduler"]["scheduler"]
    for _ in range(steps):
        yield optimizer.param_groups[0]["lr"]
        optimizer.step()
        scheduler.step()


@pytest.mark.parametrize(
    "options, expected",
    [
        (
            {"T_max": 8, "eta_min": 0.5},
            lambda t: 2 * (t + 0.5) / 3 if t < 3 else 0.5 + 0.75 * (1 + math.cos(math.pi * (t - 3) / 4)) * (t < 8),
        ),
        ({"T_max": 4}, lambda t: 2 * (t + 0.5) / 3 if t < 3 else 2.0 * (t == 3)),  # a cosine of one step has no length
    ],
)
def test_cosine_annealing_after_a_warm_up(options, expected):
    schedule = scheduling.cosine_annealing_with_optional_warmup
    assert list(rates(schedule, 11, warmup_steps=3, **options)) == pytest.approx([expected(t) for t in range(11)])


@pytest.mark.parametrize(
    "schedule, values",
    [
        (scheduling.LinearHPScheduler(5.0, end_step=4, start_value=1.0, start_step=2), [1, 1, 1, 3, 5, 5]),
        (scheduling.LinearHPScheduler(5.0, end_step=2, start_step=2), [0, 0, 5, 5, 5, 5]),
        (scheduling.StepHPScheduler(5.0, switch_step=3, start_value=1.0), [1, 1, 1, 5, 5, 5]),
        (scheduling.CosineAnnealingHPScheduler(3.0, 1.0, start_step=1, end_step=3), [3, 3, 2, 1, 1, 1]),
    ],
)
def test_hyper_parameters_follow_their_curve(schedule, values):
    with pytest.raises(RuntimeError, match="UpdateHyperparameterScheduling"):
        float(schedule)
    for step, value in enumerate(values):
        schedule.update_global_step(step)
        assert float(schedule) == pytest.approx(value)
    assert not schedule.state_dict()


def test_schedules_are_numbers_on_both_sides_of_an_operator():
    s = scheduling.StepHPScheduler(4.0, switch_step=0)
    s.update_global_step(0)
    assert (s * 2, 2 * s, s + 1, 1 + s, s - 1, 1 - s, s / 2, 2 / s) == (8, 8, 5, 5, 3, -3, 2, 0.5)
    assert torch.equal(torch.ones(2) * s, s * torch.ones(2))


# ------------------------------------------------------------------------------------------------ the model


def test_training_minimises_the_sum_of_the_losses_and_logs_each(trainer):
    rows, module = Rows(), Times()
    losses = {"one": Mean(), "two": Mean(weight=3.0)}
    trainer(logger=rows, max_steps=1).fit(model(module, losses), batches((2, 1.0)))
    assert rows.values("train/one") == [2.0] and rows.values("train/two") == [6.0]
    assert rows.values("train/loss_total") == [8.0]
    assert module.weight.item() == pytest.approx(2.0 - 0.1 * 4)


def test_validation_averages_over_samples_and_offers_extra_loss_outputs_to_metrics(trainer):
    rows = Rows()
    metrics = {"extra": routed.ocl.metrics.TensorStatistic(tensor_path="losses.mean")}
    with_extra = model(losses={"mean": Mean(extra=torch.tensor(7.0))}, evaluation_metrics=metrics)
    data = batches((3, 1.0), (1, 5.0))
    trainer(logger=rows).validate(with_extra, data, verbose=False)
    assert rows.values("val/mean") == [pytest.approx((3 * 2 + 1 * 10) / 4)]
    assert rows.values("val/extra") == [7.0] and not rows.values("val/loss_total")
    with pytest.raises(ValueError, match="no losses"):
        trainer().validate(model(losses={}), data, verbose=False)


def test_visualizations_keep_their_frequency_and_skip_what_the_logger_cannot_show(trainer):
    class Pictures(nn.Module):
        def forward(self, inputs):
            return torch.rand(2, 3, 4, 4)

    image = functools.partial(routed.ocl.visualizations.Image, image_path="picture")
    visualizations = {"grid": image(), "list": image(as_grid=False)}  # needs add_images, which is missing
    rows = Rows()
    shown = model(visualizations=visualizations, vis_log_frequency=2)
    shown.models["picture"] = Pictures()
    trainer(logger=rows, max_steps=4).fit(shown, batches(*[(2, 1.0)] * 4), batches(*[(2, 1.0)] * 2))
    shown_at = [(call["tag"], call["global_step"]) for call in rows.images]
    assert shown_at == [("train/grid", 0), ("train/grid", 2), ("val/grid", 4)]


def test_loading_a_model_from_a_checkpoint(trainer, tmp_path):
    fit = trainer()
    fit.fit(model(), batches((2, 1.0), (2, 1.0)))
    fit.save_checkpoint(tmp_path / "a.ckpt", weights_only=False)
    parts = dict(models={"a": Times()}, optimizers={}, losses={}, visualizations={})
    loaded = CombinedModel.load_from_checkpoint(tmp_path / "a.ckpt", **parts)
    assert loaded.models["a"].weight.item() == pytest.approx(1.8)


# ------------------------------------------------------------------------------------- groups and callbacks


def test_parameter_groups_take_paths_predicates_and_options():
    layers = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    groups = [
        {"params": ["0", "0.weight"], "lr": 0.5},
        {"params": "1", "predicate": lambda name, parameter: name == "bias"},
    ]
    adam = functools.partial(torch.optim.Adam, lr=0.1)
    first, second = OptimizationWrapper(adam, parameter_groups=groups)(layers)["optimizer"].param_groups
    assert [id(p) for p in first["params"]] == [id(layers[0].weight), id(layers[0].bias)]
    assert [id(p) for p in second["params"]] == [id(layers[1].bias)]
    assert (first["lr"], second["lr"]) == (0.5, 0.1)
    with pytest.raises(ValueError, match="`2`"):
        OptimizationWrapper(adam, parameter_groups=[{"params": "2"}])(layers)
    for malformed in ({"lr": 1.0}, {"params": 3}, {"params": "0", "predicate": "name"}):
        with pytest.raises(ValueError):
            FreezeParameters([malformed])


def test_frozen_parameters_stay_and_others_learn(trainer):
    # A distributed wrapper is built before fitting starts: gradients have to be off by then.
    seen = []

    class Spy(pl.Callback):
        def on_fit_start(self, trainer, pl_module):
            seen.append(pl_module.models["a"].weight.requires_grad)

    both = model(losses={"a": Mean("a"), "b": Mean("b")})
    both.models["b"] = Times()
    trainer(callbacks=[Spy(), FreezeParameters([{"params": "models.a"}])]).fit(both, batches((2, 1.0)))
    assert both.models["a"].weight.item() == 2.0 and both.models["b"].weight.item() < 2.0
    assert seen == [False]
    with pytest.raises(ValueError, match="models.c"):
        trainer(callbacks=[FreezeParameters([{"params": "models.c"}])]).fit(both, batches((2, 1.0)))


def test_parameters_can_be_frozen_without_a_trainer():
    layers = torch.nn.Sequential(torch.nn.Linear(1, 1), torch.nn.Linear(1, 1))
    FreezeParameters([{"params": "0"}]).on_fit_start(None, layers)
    assert [parameter.requires_grad for parameter in layers.parameters()] == [False, False, True, True]


def test_restoring_a_part_matches_whole_names_and_leaves_resumed_runs_alone(trainer, tmp_path):
    state = {"models.vae.weight": torch.tensor(5.0), "models.vae2.weight": torch.tensor(6.0)}
    torch.save({"state_dict": state}, tmp_path / "source.ckpt")
    restore = RestoreParameterSubset(str(tmp_path / "source.ckpt"), "models.a", "models.vae")
    fit = trainer(callbacks=[restore])
    fit.fit(model(lr=0.0), batches((2, 1.0), (2, 1.0)))
    assert fit.lightning_module.models["a"].weight.item() == 5.0

    fit.lightning_module.models["a"].weight.data.fill_(9.0)
    fit.save_checkpoint(tmp_path / "run.ckpt", weights_only=False)
    resumed = model(lr=0.0)
    fit = trainer(callbacks=[restore], max_steps=3)
    fit.fit(resumed, batches((2, 1.0), (2, 1.0)), ckpt_path=str(tmp_path / "run.ckpt"))
    assert resumed.models["a"].weight.item() == 9.0


def test_schedules_and_the_epoch_follow_training_also_after_resuming(trainer, monkeypatch):
    monkeypatch.setenv("EPOCH", "unset")

    def run(steps, **options):
        seen = []
        weight = scheduling.LinearHPScheduler(end_value=10.0, end_step=10)
        spy = Times(probe=lambda module: seen.append((module.training, float(weight), os.environ["EPOCH"])))
        fit = trainer(
            max_steps=steps,
            num_sanity_val_steps=1,
            enable_checkpointing=True,
            callbacks=[UpdateHyperparameterScheduling(), SetEpochEnvironmentVariable()],
        )
        data = batches((2, 1.0), (2, 1.0))
        fit.fit(model(spy, {"mean": Mean(weight=weight)}), data, batches((2, 1.0)), **options)
        return fit.checkpoint_callback.best_model_path, seen

    checkpoint, seen = run(2)
    assert seen == [(False, 0, "0"), (True, 0, "0"), (True, 1, "0"), (False, 1, "0")]
    _, seen = run(4, ckpt_path=checkpoint)
    assert [step for step in seen if step[0]] == [(True, 2, "1"), (True, 3, "1")]


def test_progress_is_told_in_lines(trainer, caplog):
    with caplog.at_level(logging.INFO, "ocl.callbacks"):
        trainer(max_steps=200, val_check_interval=200, callbacks=[LogProgress()], logger=Rows()).fit(
            model(lr=0.0), batches(*[(2, 1.0)] * 200), batches((2, 3.0))
        )
    lines = [record.getMessage() for record in caplog.records if record.name == "ocl.callbacks"]
    assert len(lines) == 21 and lines[0] == "step 10: train/mean 2" and lines[-1] == "step 200: val/mean 6"


@pytest.mark.parametrize("number, during", [(signal.SIGINT, "training"), (signal.SIGTERM, "validation")])
def test_a_signal_ends_training_with_a_checkpoint_to_continue_from(trainer, caplog, number, during):
    before = {s: signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)}
    steps = []

    def press(module):
        steps.append(module.training)
        if during == ("training" if module.training else "validation") and len(steps) >= 3:
            os.kill(os.getpid(), number)

    fit = trainer(max_steps=100, val_check_interval=5, enable_checkpointing=True, callbacks=[StopOnSignal()])
    with pytest.raises(Interrupted) as stop:
        fit.fit(model(Times(probe=press)), batches(*[(2, 1.0)] * 10), batches(*[(2, 1.0)] * 3))
    assert stop.value.code == 128 + number
    done = 3 if during == "training" else 5
    (path,) = [p for p in os.listdir(fit.checkpoint_callback.dirpath) if p.endswith(f"step={done}.ckpt")]
    assert f"load_checkpoint='{os.path.join(fit.checkpoint_callback.dirpath, path)}'" in caplog.text
    assert {s: signal.getsignal(s) for s in before} == before

    resumed = trainer(max_steps=done + 1)
    resumed.fit(model(), batches(*[(2, 1.0)] * 10), ckpt_path=f"{fit.checkpoint_callback.dirpath}/{path}")
    assert resumed.global_step == done + 1


# ---------------------------------------------------------------------------------------------- checkpoints


def test_checkpoints_that_do_not_fit_are_named_with_the_first_differences(tmp_path):
    path = str(tmp_path / "other.ckpt")
    torch.save({"state_dict": {"models.a.weight": torch.zeros(3), "models.b": torch.zeros(1)}}, path)
    with pytest.raises(CheckpointError, match=r"other\.ckpt.*unexpected \(models\.b\).*weight \(3,\) in"):
        load_weights(model(), path)
    with pytest.raises(CheckpointError, match=r"other\.ckpt has no weights below `models\.c`"):
        load_weights(model(), path, "models.a", "models.c")
    with pytest.raises(ValueError, match="no module `models.c`"):
        load_weights(model(), path, "models.c", "models.a")


def test_checkpoints_are_never_unpickled_and_damage_is_told(trainer, tmp_path):
    torch.save({"state_dict": {}, "options": argparse.Namespace(lr=1)}, tmp_path / "pickle.ckpt")
    with pytest.raises(CheckpointError, match="pickle.ckpt is refused.*argparse.Namespace"):
        trainer().fit(model(), batches((2, 1.0)), ckpt_path=str(tmp_path / "pickle.ckpt"))
    whole = (tmp_path / "pickle.ckpt").read_bytes()
    for content in (whole[: len(whole) // 2], b"", b"hello"):
        (tmp_path / "cut.ckpt").write_bytes(content)
        with pytest.raises(CheckpointError, match="cut.ckpt is damaged"):
            load_checkpoint(str(tmp_path / "cut.ckpt"))
    with pytest.raises(FileNotFoundError, match="none.ckpt"):
        load_checkpoint(str(tmp_path / "none.ckpt"))


def test_a_failed_write_leaves_the_old_checkpoint_and_nothing_else(tmp_path, monkeypatch):
    io, path = AtomicCheckpointIO(), str(tmp_path / "run" / "a.ckpt")
    io.save_checkpoint({"step": 1}, path)

    def full_disk(checkpoint, file):
        file.write(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full_disk)
    with pytest.raises(CheckpointError, match="a.ckpt could not be written.*No space left"):
        io.save_checkpoint({"step": 2}, path)
    assert os.listdir(tmp_path / "run") == ["a.ckpt"] and io.load_checkpoint(path) == {"step": 1}


def test_only_own_checkpoints_are_removed(tmp_path):
    io, own, foreign = AtomicCheckpointIO(), tmp_path / "own.ckpt", tmp_path / "foreign.ckpt"
    io.save_checkpoint({}, str(own))
    foreign.write_bytes(b"")
    io.remove_checkpoint(str(own))
    io.remove_checkpoint(str(foreign))
    assert os.listdir(tmp_path) == ["foreign.ckpt"]
