"""Contract of `ocl.combined_model`, `ocl.optimization`, `ocl.scheduling` and `ocl.callbacks`."""

import functools
import math
import os

import pytest
import pytorch_lightning as pl
import routed
import torch
from ocl import callbacks, scheduling
from ocl.combined_model import CombinedModel
from ocl.optimization import OptimizationWrapper
from ocl.scheduling import HPScheduler
from ocl.utils.routing import Combined
from ocl.utils.trees import get_tree_element
from torch import nn


class Batches(torch.utils.data.Dataset):
    """Ready made batches, like a data module yields them."""

    def __init__(self, *xs):
        self.batches = [{"x": x, "batch_size": len(x)} for x in xs]

    def __len__(self):
        return len(self.batches)

    def __getitem__(self, index):
        return self.batches[index]


def loader(*xs):
    return torch.utils.data.DataLoader(Batches(*xs), batch_size=None)


class Scale(nn.Module):
    def __init__(self, path="input.x", start=2.0):
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(start))
        self.path = path

    def forward(self, inputs):
        return get_tree_element(inputs, self.path.split(".")) * self.weight


class MeanLoss(nn.Module):
    """Mean of a tensor, optionally with additional outputs, counting its calls."""

    def __init__(self, path, extra=False):
        super().__init__()
        self.path, self.extra = path, extra

    def forward(self, inputs):
        value = get_tree_element(inputs, self.path.split(".")).mean()
        return (value, {"double": 2 * value.detach()}) if self.extra else value


def sgd(lr=0.1):
    return functools.partial(torch.optim.SGD, lr=lr)


def build(models=None, losses=None, **kwargs):
    options = dict(
        models={"a": Scale(), "b": Scale("a", 3.0)} if models is None else models,
        optimizers={"opt": sgd()},
        losses={"first": MeanLoss("a")} if losses is None else losses,
        visualizations={},
    )
    options.update(kwargs)
    return CombinedModel(**options)


ONES = torch.ones(2, 3)


# ---------------------------------------------------------------------------------------------------------------- model


@pytest.mark.core
def test_dict_of_models_becomes_a_combined_module():
    model = build()
    assert isinstance(model, pl.LightningModule) and isinstance(model.models, Combined)
    assert {n for n, _ in model.named_parameters()} == {"models.a.weight", "models.b.weight"}
    batch = {"x": ONES, "batch_size": 2}
    outputs = model(batch)
    assert outputs["input"] is batch and outputs["model"] is model
    assert torch.equal(outputs["a"], 2 * ONES) and torch.equal(outputs["b"], 6 * ONES)


@pytest.mark.core
def test_single_module_is_called_with_the_input_dict():
    class Whole(nn.Module):
        def forward(self, inputs):
            return {**inputs, "out": inputs["input"]["x"] + 1}

    model = build(models=Whole(), losses={"l": MeanLoss("out")})
    assert isinstance(model.models, Whole)
    assert torch.equal(model({"x": ONES, "batch_size": 2})["out"], 2 * ONES)


@pytest.mark.core
def test_training_logs_losses_and_optimizes_their_sum(make_trainer, recording_logger):
    logger = recording_logger()
    model = build(losses={"first": MeanLoss("a"), "second": MeanLoss("b")})
    make_trainer(max_steps=1, logger=logger).fit(model, loader(ONES))
    assert logger.values("train/first") == [2.0] and logger.values("train/second") == [6.0]
    assert logger.values("train/loss_total") == [8.0]
    # d(sum)/da = mean(x) + mean(x) * b = 4, d(sum)/db = mean(a * x) = 2
    assert model.models["a"].weight.item() == pytest.approx(2.0 - 0.1 * 4)
    assert model.models["b"].weight.item() == pytest.approx(3.0 - 0.1 * 2)


@pytest.mark.core
def test_single_loss_is_not_logged_twice(make_trainer, recording_logger):
    logger = recording_logger()
    make_trainer(max_steps=2, logger=logger).fit(build(), loader(ONES, 2 * ONES))
    assert len(logger.values("train/first")) == 2
    assert not any("loss_total" in name for name in logger.names())


@pytest.mark.core
def test_validation_logs_epoch_averages_and_metrics(make_trainer, recording_logger):
    logger = recording_logger()
    metric = routed.ocl.metrics.TensorStatistic(tensor_path="a")
    model = build(evaluation_metrics={"stat": metric}, losses={"l": MeanLoss("a"), "m": MeanLoss("b")})
    batches = loader(torch.ones(3, 2), 5 * torch.ones(1, 2))
    make_trainer(logger=logger).validate(model, dataloaders=batches, verbose=False)
    # Weighted by batch size: (3 * 2 + 1 * 10) / 4
    assert logger.values("val/l") == [pytest.approx(4.0)]
    assert logger.values("val/m") == [pytest.approx(12.0)]
    assert logger.values("val/loss_total") == [pytest.approx(16.0)]
    assert logger.values("val/stat") == [pytest.approx(4.0)]


@pytest.mark.core
def test_training_metrics_are_logged_per_step(make_trainer, recording_logger):
    logger = recording_logger()
    metric = routed.ocl.metrics.TensorStatistic(tensor_path="input.x")
    model = build(training_metrics={"stat": metric})
    make_trainer(max_steps=2, logger=logger).fit(model, loader(ONES, 3 * ONES))
    assert len(logger.values("train/stat")) == 2 and logger.values("train/stat")[0] == 1.0


@pytest.mark.core
def test_training_and_validation_in_one_run(make_trainer, recording_logger):
    logger = recording_logger()
    model = build(evaluation_metrics={"m": routed.ocl.metrics.TensorStatistic(tensor_path="a")})
    trainer = make_trainer(max_steps=-1, max_epochs=2, logger=logger)
    trainer.fit(model, loader(ONES, ONES), loader(ONES))
    assert len(logger.values("train/first")) == 4
    assert len(logger.values("val/first")) == 2 and len(logger.values("val/m")) == 2
    assert {"val/first", "val/m"} <= set(trainer.callback_metrics)  # checkpoints can monitor them


@pytest.mark.core
def test_extra_loss_outputs_are_kept_for_metrics_and_visualizations(make_trainer, recording_logger):
    logger = recording_logger()
    metric = routed.ocl.metrics.TensorStatistic(tensor_path="losses.rich.double")
    model = build(
        losses={"rich": MeanLoss("a", extra=True), "plain": MeanLoss("a")},
        evaluation_metrics={"doubled": metric},
    )
    make_trainer(logger=logger).validate(model, dataloaders=loader(ONES), verbose=False)
    assert logger.values("val/rich") == [2.0] and logger.values("val/loss_total") == [4.0]
    assert logger.values("val/doubled") == [4.0]


@pytest.mark.core
def test_predict_returns_outputs_without_the_model(make_trainer):
    predictions = make_trainer().predict(build(), dataloaders=loader(ONES, 2 * ONES))
    assert len(predictions) == 2 and "model" not in predictions[0]
    assert torch.equal(predictions[1]["b"], 12 * ONES)
    assert predictions[0]["input"]["batch_size"] == 2


class OutputSpy(pl.Callback):
    def __init__(self):
        self.outputs = []

    def on_validation_batch_end(self, trainer, pl_module, outputs, batch, batch_idx, dataloader_idx=0):
        self.outputs.append(outputs)


@pytest.mark.core
@pytest.mark.parametrize("enabled", [False, True])
def test_validation_outputs_on_request(make_trainer, enabled):
    spy, model = OutputSpy(), build()
    model.return_outputs_on_validation = enabled
    make_trainer(callbacks=[spy]).validate(model, dataloaders=loader(ONES), verbose=False)
    if enabled:
        assert torch.equal(spy.outputs[0]["a"], 2 * ONES) and "input" in spy.outputs[0]
    else:
        assert not spy.outputs[0]


@pytest.mark.core
def test_visualizations_follow_their_frequency(make_trainer, recording_logger):
    visualizations = {
        "input": routed.ocl.visualizations.Image(image_path="input.x"),
        "objects": routed.ocl.visualizations.VisualObject(object_path="obj", mask_path="mask"),
    }

    class Images(nn.Module):
        def forward(self, inputs):
            inputs["obj"] = torch.rand(2, 3, 3, 4, 4)
            inputs["mask"] = torch.rand(2, 3, 4, 4)
            return inputs["input"]["x"]

    logger = recording_logger()
    model = build(models={"img": Images(), "a": Scale()}, visualizations=visualizations, vis_log_frequency=2)
    image = torch.rand(2, 3, 4, 4)
    trainer = make_trainer(max_steps=5, logger=logger, val_check_interval=5)
    trainer.fit(model, loader(*[image] * 5), loader(image, image))
    steps = {}
    for kind, call in logger.experiment.calls:
        assert kind == "image" and call["img_tensor"].dim() == 3
        steps.setdefault(call["tag"], []).append(call["global_step"])
    assert set(steps) == {
        f"{phase}/{name}" for phase in ("train", "val") for name in ("input", "objects.reconstruction", "objects.mask")
    }
    assert all(steps[tag] == [0, 2, 4] for tag in steps if tag.startswith("train/"))
    assert all(len(steps[tag]) == 1 for tag in steps if tag.startswith("val/"))  # first batch only


@pytest.mark.core
def test_visualizations_are_skipped_without_suitable_logger(make_trainer, recording_logger):
    visualizations = {"input": routed.ocl.visualizations.Image(image_path="input.x")}
    image = torch.rand(2, 3, 4, 4)
    for logger in (False, recording_logger(object())):  # no `add_image` at all
        model = build(visualizations=visualizations, vis_log_frequency=1)
        make_trainer(max_steps=1, logger=logger).fit(model, loader(image))


@pytest.mark.core
def test_default_visualization_frequency():
    assert build().vis_log_frequency == 100
    assert build().return_outputs_on_validation is False


@pytest.mark.core
def test_optimizers_are_built_from_partials_or_wrappers():
    model = build(
        optimizers={
            "z": sgd(0.3),
            "m": OptimizationWrapper(
                sgd(0.2),
                lr_scheduler=functools.partial(scheduling.exponential_decay_with_optional_warmup, decay_rate=0.5),
                parameter_groups=[{"params": "models.b"}],
            ),
        }
    )
    wrapped, plain = model.configure_optimizers()  # sorted by name
    assert isinstance(plain, torch.optim.SGD) and len(plain.param_groups[0]["params"]) == 2
    assert set(wrapped) == {"optimizer", "lr_scheduler"}
    assert wrapped["optimizer"].param_groups[0]["params"][0] is model.models["b"].weight


@pytest.mark.core
def test_checkpoints_restore_weights(make_trainer, tmp_path):
    trainer = make_trainer(max_steps=2)
    model = build()
    trainer.fit(model, loader(ONES, ONES))
    trainer.save_checkpoint(str(tmp_path / "c.ckpt"))
    fresh = dict(models={"a": Scale(), "b": Scale("a", 3.0)}, losses={}, optimizers={}, visualizations={})
    restored = CombinedModel.load_from_checkpoint(str(tmp_path / "c.ckpt"), **fresh)
    for name, value in model.state_dict().items():
        assert torch.equal(restored.state_dict()[name], value)
    assert restored.models["a"].weight.item() != 2.0


# --------------------------------------------------------------------------------------------------------- optimization


def two_layers():
    return nn.Sequential(nn.Linear(2, 2), nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2)))


@pytest.mark.core
def test_wrapper_without_groups_takes_all_parameters():
    model = two_layers()
    result = OptimizationWrapper(functools.partial(torch.optim.Adam, lr=0.5))(model)
    assert set(result) == {"optimizer"} and isinstance(result["optimizer"], torch.optim.Adam)
    (group,) = result["optimizer"].param_groups
    assert group["lr"] == 0.5 and len(group["params"]) == 6


@pytest.mark.core
def test_wrapper_parameter_groups():
    model = two_layers()
    wrapper = OptimizationWrapper(
        sgd(0.1),
        parameter_groups=[
            {"params": ["0", "1.0"], "predicate": lambda name, p: "bias" not in name, "lr": 0.01},
            {"params": "1", "predicate": lambda name, p: p.dim() == 1, "weight_decay": 0.5},
        ],
    )
    first, second = wrapper(model)["optimizer"].param_groups
    assert [id(p) for p in first["params"]] == [id(model[0].weight), id(model[1][0].weight)]
    assert [id(p) for p in second["params"]] == [id(model[1][0].bias), id(model[1][1].bias)]
    assert (first["lr"], first["weight_decay"]) == (0.01, 0)
    assert (second["lr"], second["weight_decay"]) == (0.1, 0.5)


@pytest.mark.core
@pytest.mark.parametrize("group", [{"lr": 1.0}, {"params": 3}, {"params": "0", "predicate": "not callable"}])
def test_wrapper_rejects_malformed_groups(group):
    with pytest.raises(ValueError):
        OptimizationWrapper(sgd(), parameter_groups=[group])
    with pytest.raises(ValueError):
        callbacks.FreezeParameters([group])


@pytest.mark.core
def test_wrapper_fails_for_unknown_module_path():
    wrapper = OptimizationWrapper(sgd(), parameter_groups=[{"params": "0.nope"}])
    with pytest.raises((AttributeError, ValueError)):
        wrapper(two_layers())


# --------------------------------------------------------------------------------------------------------- lr schedules


def rates(schedule, steps, lr=2.0, groups=(1.0, 0.5), **kwargs):
    params = [nn.Parameter(torch.zeros(1)) for _ in groups]
    optimizer = torch.optim.SGD([{"params": [p], "lr": lr * g} for p, g in zip(params, groups)], lr=lr)
    config = schedule(optimizer, **kwargs)["lr_scheduler"]
    assert config["interval"] == "step"
    history = []
    for _ in range(steps):
        current = [g["lr"] for g in optimizer.param_groups]
        assert current[1] == pytest.approx(current[0] * 0.5)
        history.append(current[0])
        optimizer.step()
        config["scheduler"].step()
    return history


@pytest.mark.core
@pytest.mark.parametrize("warmup", [0, 4])
def test_exponential_decay_with_warmup(warmup):
    got = rates(
        scheduling.exponential_decay_with_optional_warmup,
        12,
        decay_rate=0.5,
        decay_steps=5,
        warmup_steps=warmup,
    )
    factor = [min(1.0, t / warmup) if warmup else 1.0 for t in range(12)]
    assert got == pytest.approx([2.0 * f * 0.5 ** (t / 5) for t, f in enumerate(factor)])


@pytest.mark.core
@pytest.mark.parametrize("warmup", [0, 4])
def test_exponential_decay_after_warmup(warmup):
    got = rates(
        scheduling.exponential_decay_after_optional_warmup,
        12,
        decay_rate=0.5,
        decay_steps=5,
        warmup_steps=warmup,
    )
    expected = [2.0 * (t / warmup if t < warmup else 0.5 ** ((t - warmup) / 5)) for t in range(12)]
    assert got == pytest.approx(expected)


@pytest.mark.core
@pytest.mark.parametrize("warmup", [0, 4])
def test_cosine_annealing_with_warmup(warmup):
    total = 12
    got = rates(
        scheduling.cosine_annealing_with_optional_warmup,
        total + 3,
        T_max=total,
        warmup_steps=warmup,
    )
    expected = []
    for t in range(total + 3):
        if t < warmup:
            expected.append(2.0 * (t + 0.5) / warmup)
        elif t < total:
            expected.append(1.0 * (1 + math.cos(math.pi * (t - warmup) / (total - warmup - 1))))
        else:
            expected.append(0.0)
    assert got == pytest.approx(expected, abs=1e-7)


@pytest.mark.core
def test_cosine_annealing_floor_and_overrun():
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    scheduler = scheduling.cosine_annealing_with_optional_warmup(
        optimizer, T_max=4, eta_min=0.2, error_on_exceeding_steps=True
    )["lr_scheduler"]["scheduler"]
    assert isinstance(scheduler, torch.optim.lr_scheduler.LRScheduler)
    seen = [optimizer.param_groups[0]["lr"]]
    for _ in range(3):
        optimizer.step()
        scheduler.step()
        seen.append(optimizer.param_groups[0]["lr"])
    assert seen == pytest.approx([0.2 + 0.4 * (1 + math.cos(math.pi * t / 3)) for t in range(4)])
    with pytest.raises(ValueError):
        optimizer.step()
        scheduler.step()


@pytest.mark.compat
def test_plateau_decay():
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    config = scheduling.plateau_decay(optimizer, decay_rate=0.1, patience=1, monitor_metric="val/x", mode="max")[
        "lr_scheduler"
    ]
    assert (config["interval"], config["monitor"]) == ("epoch", "val/x")
    for value in (1.0, 1.0, 1.0):
        config["scheduler"].step(value)
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.1)


@pytest.mark.core
def test_schedules_drive_training(make_trainer):
    wrapper = OptimizationWrapper(
        sgd(1.0),
        functools.partial(scheduling.exponential_decay_after_optional_warmup, warmup_steps=2),
    )
    seen = []

    class Spy(pl.Callback):
        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            seen.append(pl_module.models["a"].weight.item())

    model = build(optimizers={"o": wrapper})
    make_trainer(max_steps=3, callbacks=[Spy()]).fit(model, loader(ONES, ONES, ONES))
    # learning rates 0, 0.5, 1 and a gradient of one
    assert seen == pytest.approx([2.0, 1.5, 0.5])


# -------------------------------------------------------------------------------------------------------- hp schedulers


def at(scheduler, step):
    scheduler.update_global_step(step)
    return float(scheduler)


@pytest.mark.core
def test_linear_scheduler():
    scheduler = scheduling.LinearHPScheduler(end_value=5.0, end_step=10, start_value=1.0, start_step=2)
    assert isinstance(scheduler, HPScheduler) and isinstance(scheduler, nn.Module)
    values = [at(scheduler, s) for s in (0, 2, 4, 10, 11, 1000)]
    assert values == pytest.approx([1.0, 1.0, 2.0, 5.0, 5.0, 5.0])
    assert at(scheduling.LinearHPScheduler(1.0, 4), 1) == pytest.approx(0.25)
    with pytest.raises(ValueError):
        scheduling.LinearHPScheduler(end_value=1.0, end_step=1, start_step=2)


@pytest.mark.core
def test_step_scheduler():
    scheduler = scheduling.StepHPScheduler(end_value=5.0, switch_step=3, start_value=1.0)
    assert [at(scheduler, s) for s in (0, 2, 3, 9)] == [1.0, 1.0, 5.0, 5.0]
    assert at(scheduling.StepHPScheduler(5.0, 3), 0) == 0.0


@pytest.mark.core
def test_cosine_scheduler():
    scheduler = scheduling.CosineAnnealingHPScheduler(start_value=1.0, end_value=0.1, start_step=10, end_step=30)
    for step in (0, 10, 17, 29, 30, 99):
        progress = min(max(step - 10, 0), 20) / 20
        assert at(scheduler, step) == pytest.approx(0.55 + 0.45 * math.cos(math.pi * progress))
    for bad in (
        dict(start_value=0.0, end_value=1.0, start_step=0, end_step=1),
        dict(start_value=1.0, end_value=0.0, start_step=2, end_step=1),
    ):
        with pytest.raises((AssertionError, ValueError)):
            scheduling.CosineAnnealingHPScheduler(**bad)


@pytest.mark.core
def test_scheduler_behaves_like_a_float_from_the_left():
    scheduler = scheduling.StepHPScheduler(end_value=6.0, switch_step=1, start_value=3.0)
    for operation in (float, lambda s: s * 2.0, lambda s: s + 2.0, lambda s: s - 2.0):
        with pytest.raises(RuntimeError):
            operation(scheduler)
    scheduler.update_global_step(0)
    assert (scheduler * 2.0, scheduler + 2.0, scheduler - 2.0) == (6.0, 5.0, 1.0)
    assert torch.equal(scheduler * torch.ones(2), 3 * torch.ones(2))


@pytest.mark.core
def test_custom_schedulers_only_implement_one_method():
    class Ramp(HPScheduler):
        def compute_scheduled_value(self):
            return 10.0 * self.last_global_step

    assert at(Ramp(), 3) == 30.0
    with pytest.raises(TypeError):
        HPScheduler()


@pytest.mark.modern
@pytest.mark.core
def test_scheduler_arithmetic_from_both_sides_and_empty_ramps():
    scheduler = scheduling.StepHPScheduler(end_value=4.0, switch_step=0)
    scheduler.update_global_step(0)
    assert (scheduler / 2, 2 * scheduler, 2 + scheduler, 2 - scheduler, 2 / scheduler) == (
        2.0,
        8.0,
        6.0,
        -2.0,
        0.5,
    )
    assert at(scheduling.LinearHPScheduler(3.0, end_step=5, start_step=5), 5) == 3.0


# ------------------------------------------------------------------------------------------------------------ callbacks


@pytest.mark.core
def test_freeze_parameters(make_trainer):
    layer = routed.torch.nn.Linear(3, 3, input_path="input.x")
    model = build(models={"lin": layer, "a": Scale("lin")})
    freeze = callbacks.FreezeParameters(
        [
            {"params": ["models.lin"], "predicate": lambda name, p: name == "weight"},
            {"params": "models.a.weight"},  # single parameters can be named, too
        ]
    )
    before = {k: v.clone() for k, v in model.state_dict().items()}
    make_trainer(max_steps=1, callbacks=[freeze]).fit(model, loader(ONES))
    after = model.state_dict()
    changed = {k for k in before if not torch.equal(before[k], after[k])}
    assert changed == {"models.lin.bias"}
    assert {n for n, p in model.named_parameters() if p.requires_grad} == {"models.lin.bias"}


@pytest.mark.core
@pytest.mark.parametrize("path", ["models.nope", "vis_log_frequency"])
def test_freeze_parameters_rejects_other_targets(make_trainer, path):
    freeze = callbacks.FreezeParameters([{"params": path}])
    with pytest.raises(ValueError):
        make_trainer(callbacks=[freeze]).fit(build(), loader(ONES))


@pytest.fixture
def vae_checkpoint(make_trainer, tmp_path):
    """A checkpoint as written by a pretraining run: models.vae + models.other."""
    models = {"vae": routed.torch.nn.Linear(3, 3, input_path="input.x"), "other": Scale("vae", 9.0)}
    model = build(models=models, losses={"l": MeanLoss("other")})
    trainer = make_trainer(max_steps=1)
    trainer.fit(model, loader(ONES))
    path = str(tmp_path / "vae.ckpt")
    trainer.save_checkpoint(path)
    return path, {k: v.clone() for k, v in model.state_dict().items()}


def guided(name="guide"):
    models = {name: routed.torch.nn.Linear(3, 3, input_path="input.x"), "a": Scale(name)}
    return build(models=models)


@pytest.mark.core
def test_restore_and_freeze_pretrained_submodule(make_trainer, vae_checkpoint):
    path, state = vae_checkpoint
    model = guided()
    steps = [
        callbacks.RestoreParameterSubset(path, target_path="models.guide", source_path="models.vae"),
        callbacks.FreezeParameters([{"params": "models.guide"}]),
    ]
    make_trainer(max_steps=2, callbacks=steps).fit(model, loader(ONES, ONES))
    assert torch.equal(model.models["guide"].weight, state["models.vae.weight"])
    assert torch.equal(model.models["guide"].bias, state["models.vae.bias"])
    assert model.models["a"].weight.item() != 2.0


@pytest.mark.core
def test_restore_uses_the_target_path_by_default(make_trainer, vae_checkpoint):
    path, state = vae_checkpoint
    model = guided("vae")
    restore = callbacks.RestoreParameterSubset(path, "models.vae")
    freeze = callbacks.FreezeParameters([{"params": "models.vae"}])
    make_trainer(max_steps=1, callbacks=[restore, freeze]).fit(model, loader(ONES))
    assert torch.equal(model.models["vae"].weight, state["models.vae.weight"])


@pytest.mark.core
@pytest.mark.parametrize("source", ["models.nothing", "models"])
def test_restore_rejects_mismatching_parameters(make_trainer, vae_checkpoint, source):
    restore = callbacks.RestoreParameterSubset(vae_checkpoint[0], "models.guide", source)
    with pytest.raises(RuntimeError):
        make_trainer(callbacks=[restore]).fit(guided(), loader(ONES))


@pytest.mark.modern
@pytest.mark.core
def test_restore_matches_whole_path_components(make_trainer, tmp_path):
    layer = nn.Linear(3, 3)
    state = {f"models.vae.{k}": v for k, v in layer.state_dict().items()}
    state.update({f"models.vae2.{k}": v + 1 for k, v in layer.state_dict().items()})
    torch.save({"state_dict": state}, tmp_path / "two.ckpt")
    model = guided()
    restore = callbacks.RestoreParameterSubset(str(tmp_path / "two.ckpt"), "models.guide", "models.vae")
    freeze = callbacks.FreezeParameters([{"params": "models.guide"}])
    make_trainer(max_steps=1, callbacks=[restore, freeze]).fit(model, loader(ONES))
    assert torch.equal(model.models["guide"].weight, layer.weight)


@pytest.mark.modern
@pytest.mark.core
def test_restore_does_not_overwrite_a_resumed_run(make_trainer, vae_checkpoint, tmp_path):
    path, _ = vae_checkpoint
    trainer = make_trainer(max_steps=2)
    model = guided()
    trainer.fit(model, loader(ONES, ONES))
    trainer.save_checkpoint(str(tmp_path / "run.ckpt"))
    trained = model.models["guide"].weight.detach().clone()

    resumed, seen = guided(), []

    class Spy(pl.Callback):
        def on_train_start(self, trainer, pl_module):
            seen.append(pl_module.models["guide"].weight.detach().clone())

    restore = callbacks.RestoreParameterSubset(path, "models.guide", "models.vae")
    make_trainer(max_steps=3, callbacks=[restore, Spy()]).fit(
        resumed, loader(ONES, ONES), ckpt_path=str(tmp_path / "run.ckpt")
    )
    assert torch.equal(seen[0], trained)


class UsesSchedule(nn.Module):
    def __init__(self):
        super().__init__()
        self.tau = scheduling.LinearHPScheduler(end_value=10.0, end_step=10)
        self.weight = nn.Parameter(torch.tensor(1.0))
        self.seen = []

    def forward(self, inputs):
        self.seen.append((self.training, float(self.tau)))
        return inputs["input"]["x"] * self.weight


@pytest.mark.core
def test_hyperparameters_follow_the_global_step(make_trainer, recording_logger):
    module, logger = UsesSchedule(), recording_logger()
    weight = scheduling.StepHPScheduler(end_value=100.0, switch_step=2, start_value=1.0)
    loss = routed.ocl.losses.ReconstructionLoss("mse", weight=weight, input_path="m", target_path="input.zero")

    class Zero(nn.Module):
        def forward(self, inputs):
            inputs["input"]["zero"] = torch.zeros_like(inputs["input"]["x"])
            return torch.zeros(1)

    model = build(models={"m": module, "z": Zero()}, losses={"l": loss}, optimizers={"o": sgd(lr=0.0)})
    trainer = make_trainer(
        max_steps=4,
        num_sanity_val_steps=1,
        logger=logger,
        callbacks=[callbacks.UpdateHyperparameterScheduling()],
        val_check_interval=2,
    )
    trainer.fit(model, loader(*[ONES] * 4), loader(ONES))
    # sanity check, two steps, validation, two steps, validation
    assert module.seen == [
        (False, 0.0),
        (True, 0.0),
        (True, 1.0),
        (False, 1.0),
        (True, 2.0),
        (True, 3.0),
        (False, 3.0),
    ]
    assert logger.values("train/l") == [1.0, 1.0, 100.0, 100.0]


@pytest.mark.core
def test_schedules_fail_loudly_without_the_callback(make_trainer):
    model = build(models={"m": UsesSchedule()}, losses={"l": MeanLoss("m")})
    with pytest.raises(RuntimeError):
        make_trainer(max_steps=1).fit(model, loader(ONES))


@pytest.mark.core
def test_schedules_continue_after_resuming(make_trainer, tmp_path):
    def run(steps, **kwargs):
        module = UsesSchedule()
        trainer = make_trainer(max_steps=steps, callbacks=[callbacks.UpdateHyperparameterScheduling()])
        model = build(models={"m": module}, losses={"l": MeanLoss("m")})
        trainer.fit(model, loader(*[ONES] * 3), **kwargs)
        return trainer, module

    trainer, _ = run(3)
    trainer.save_checkpoint(str(tmp_path / "s.ckpt"))
    _, module = run(5, ckpt_path=str(tmp_path / "s.ckpt"))
    assert module.seen == [(True, 3.0), (True, 4.0)]


@pytest.mark.compat
def test_epoch_environment_variable(make_trainer, monkeypatch):
    monkeypatch.setenv("EPOCH", "unset")
    seen = []

    class Read(nn.Module):
        def forward(self, inputs):
            seen.append(os.environ["EPOCH"])
            return inputs["input"]["x"]

    model = build(models={"r": Read(), "a": Scale()})
    trainer = make_trainer(max_steps=-1, max_epochs=3, callbacks=[callbacks.SetEpochEnvironmentVariable()])
    trainer.fit(model, loader(ONES, ONES))
    assert seen == ["0", "0", "1", "1", "2", "2"]


@pytest.mark.compat
def test_callbacks_are_lightning_callbacks():
    for name in """FreezeParameters RestoreParameterSubset UpdateHyperparameterScheduling
        SetEpochEnvironmentVariable""".split():
        assert issubclass(getattr(callbacks, name), pl.Callback)
