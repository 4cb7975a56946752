"""Runs are opened from their folders, with what training and evaluations have left there."""

import json
import os

import pytest
from omegaconf import OmegaConf

from ocl_msf.experiments.runs import Run, find_finished, find_runs, furthest
from ocl_msf.files import DataError


def make_run(folder, variant="msf", steps=(500, 1000), max_steps=1000, age=0):
    (folder / "config").mkdir(parents=True)
    config = folder / "config" / "config.yaml"
    config.write_text(
        f"experiment: {{variant: {variant}, steps: {max_steps}}}\ntrainer: {{max_steps: '${{experiment.steps}}'}}\n"
    )
    os.utime(config, (10**9 - age, 10**9 - age))
    checkpoints = folder / "lightning_logs" / "version_0" / "checkpoints"
    checkpoints.mkdir(parents=True)
    for step in steps:
        (checkpoints / f"epoch={step // 100}-step={step}.ckpt").write_bytes(b"")
    return checkpoints


def configure(folder, **config):
    (folder / "config").mkdir(parents=True, exist_ok=True)
    OmegaConf.save(config, folder / "config" / "config.yaml")
    return folder


def test_a_run_has_its_last_checkpoint_and_whether_it_is_finished(tmp_path):
    checkpoints = make_run(tmp_path / "run", steps=(1000, 500))
    run = Run.open(tmp_path / "run")
    assert list(run.checkpoints) == [500, 1000] and run.checkpoint == checkpoints / "epoch=10-step=1000.ckpt"
    assert run.finished and (run.step, run.max_steps, run.variant) == (1000, 1000, "msf")
    make_run(tmp_path / "new", steps=())
    run = Run.open(tmp_path / "new")
    assert run.checkpoint is None and run.step == 0 and not run.finished


def test_the_furthest_run_has_the_highest_step(tmp_path):
    for name, steps in {"a": (500,), "b": (100, 700), "c": ()}.items():
        make_run(tmp_path / name, steps=steps)
    assert furthest(find_runs(tmp_path)).folder == tmp_path / "b"
    assert furthest([Run.open(tmp_path / "c")]) is None


@pytest.mark.parametrize("place", ["lightning_logs/version_3", "project/3fa9c1", "814/20d7", "."])
def test_checkpoints_are_found_whichever_logger_names_their_folder(place, tmp_path):
    """Weights & Biases has <project>/<run>, MLflow <experiment>/<run>; without a logger there is no such folder."""
    configure(tmp_path)
    checkpoint = tmp_path / place / "checkpoints" / "epoch=0-step=7.ckpt"
    checkpoint.parent.mkdir(parents=True)
    checkpoint.touch()
    assert Run.open(tmp_path).checkpoints == {7: checkpoint}
    assert Run.open(checkpoint).folder == tmp_path


def test_a_run_is_resumed_from_another_relative_to_where_it_was_launched(tmp_path, monkeypatch):
    """Whoever looks at it from wherever: another run of the same place below the current folder is another run."""
    decoy = configure(tmp_path / "elsewhere" / "first") / "lightning_logs" / "version_0" / "checkpoints"
    decoy.mkdir(parents=True)
    (decoy / "epoch=0-step=20.ckpt").touch()
    monkeypatch.chdir(tmp_path / "elsewhere")
    first = configure(tmp_path / "first")
    checkpoint = first / "lightning_logs" / "version_0" / "checkpoints" / "epoch=0-step=20.ckpt"
    checkpoint.parent.mkdir(parents=True)
    for step in (10, 20, 30):
        (checkpoint.parent / f"epoch=0-step={step}.ckpt").touch()
    second = configure(tmp_path / "second", load_checkpoint=str(checkpoint.relative_to(tmp_path)))
    OmegaConf.save({"hydra": {"runtime": {"cwd": str(tmp_path)}}}, second / "config" / "hydra.yaml")
    run = Run.open(second)
    assert (run.resumed_from, run.first_step, run.predecessor.folder) == (checkpoint, 20, first)
    assert list(run.all_checkpoints) == [10, 20] and run.checkpoints == {}
    untrained = first / "lightning_logs" / "version_0" / "untrained.ckpt"
    assert run.untrained is None
    untrained.touch()
    assert run.untrained == untrained
    own = configure(first, load_checkpoint=str(checkpoint))
    assert Run.open(own).predecessor is None and Run.open(own).first_step == 20
    checkpoint.unlink()
    run = Run.open(second)
    assert run.predecessor is None and run.first_step == 20 and run.all_checkpoints == {}


def test_a_run_that_does_not_say_where_it_was_launched_says_what_is_missing(tmp_path):
    run = Run.open(configure(tmp_path, load_checkpoint="outputs/a/epoch0000-step0000020.ckpt"))
    with pytest.raises(DataError, match=r"hydra\.yaml is missing.*load_checkpoint=outputs"):
        run.resumed_from  # noqa: B018


def test_steps_are_read_from_names_of_today_and_of_before(tmp_path):
    """Those of earlier versions are Lightning's own, which adds a version where a file of the name is there."""
    checkpoints = make_run(tmp_path, steps=(), max_steps=30)
    names = ["epoch=0-step=5.ckpt", "epoch0000-step0000010.ckpt", "epoch0002-step0000020-v1.ckpt"]
    for name in [*names, "last.ckpt", "step.ckpt", "misstep=x7.ckpt"]:
        (checkpoints / name).touch()
    run = Run.open(tmp_path)
    assert {step: path.name for step, path in run.checkpoints.items()} == dict(zip((5, 10, 20), names))
    assert run.step == 20 and not run.finished


def test_stage_and_evaluation_are_those_of_the_config(tmp_path):
    for stage, report in ((1, "separability.json"), (2, "metrics.json")):
        run = Run.open(configure(tmp_path, experiment={"stage": stage}))
        assert (run.stage, run.evaluation, run.report) == (stage, "msf/scores", report) and not run.outdated
    run = Run.open(configure(tmp_path, models={"_target_": "ocl.decoding.Decoder"}))
    assert (run.stage, run.evaluation, run.report) == (None, "eval", "metrics.json")


def test_a_run_of_an_earlier_version_is_named_with_the_command_that_converts_it(tmp_path):
    run = Run.open(configure(tmp_path, models={"_target_": "routed.ocl_msf.autoencoder.VQVAE"}))
    assert run.outdated and run.checkpoint is None
    with pytest.raises(DataError, match=f"ocl-msf upgrade {tmp_path}"):
        run.stage  # noqa: B018


def test_a_score_that_is_not_defined_is_no_score(tmp_path):
    configure(tmp_path)
    (tmp_path / "metrics.json").write_text('{"metrics": {"val": {"ari": 0.5, "ari_fg": null, "miou": NaN}}}')
    assert Run.open(tmp_path).scores == {"ari": 0.5}


def test_scores_and_environment_are_read_once(tmp_path):
    configure(tmp_path)
    (tmp_path / "metrics.json").write_text(json.dumps({"metrics": {"val": {"ari": 0.5, "ari_fg": 0.25}}}))
    (tmp_path / "separability.json").write_text(json.dumps({"metrics": {"val": {"inter": 2.0}}}))
    (tmp_path / "config" / "environment.json").write_text(json.dumps({"device": "one"}))
    run = Run.open(tmp_path)
    assert run.environment == {"device": "one"} and run.protocol == {}
    for _ in range(2):
        assert run.scores == {"ari": 0.5, "ari_fg": 0.25, "inter": 2.0, "ari+ari_fg": 0.75}
        (tmp_path / "metrics.json").write_text("{")
    with pytest.raises(DataError, match=r"metrics\.json is damaged"):
        Run.open(tmp_path).scores  # noqa: B018


def test_what_is_no_run_is_named(tmp_path):
    for path in (tmp_path, tmp_path / "none", tmp_path / "none.ckpt"):
        with pytest.raises(DataError, match=f"{path} is no run"):
            Run.open(path)
    configure(tmp_path / "a")
    for content in ("experiment: {", "- a list"):
        (tmp_path / "a" / "config" / "config.yaml").write_text(content)
        with pytest.raises(DataError, match=r"config\.yaml"):
            Run.open(tmp_path / "a")
        assert find_runs(tmp_path) == []


def test_the_newest_finished_run_of_the_variant_is_taken(tmp_path):
    make_run(tmp_path / "old", age=30)
    wanted = make_run(tmp_path / "new", steps=(500, 1000, 900), age=20)
    make_run(tmp_path / "other", variant="gdr", age=10)
    make_run(tmp_path / "cut", steps=(500,), age=0)
    damaged = make_run(tmp_path / "damaged").parents[2] / "config" / "config.yaml"
    damaged.write_text("experiment: {variant: ")
    assert find_finished(tmp_path, {"variant": "msf"}, "cmd") == wanted / "epoch=10-step=1000.ckpt"


def test_settings_that_name_others_are_compared_by_value(tmp_path):
    checkpoints = make_run(tmp_path / "run")
    config = "{c: 4, vae: {dim: '${experiment.c}'}, folder: '${resolver_of_training:x}'}"
    (tmp_path / "run/config/config.yaml").write_text(f"experiment: {config}\ntrainer: {{max_steps: 1000}}\n")
    assert find_finished(tmp_path, {"vae": {"dim": 4}}, "cmd").parent == checkpoints
    with pytest.raises(FileNotFoundError, match="vae {'dim': 4}, step 1000"):
        find_finished(tmp_path, {"vae": {"dim": 5}}, "cmd")


def test_without_a_finished_run_the_message_tells_what_there_is_and_what_to_do(tmp_path):
    make_run(tmp_path / "cut", steps=(500,))
    make_run(tmp_path / "other", variant="gdr")
    with pytest.raises(FileNotFoundError) as error:
        find_finished(tmp_path, {"variant": "msf"}, "ocl_train +experiment=msf/vqvae_clevrtex")
    for part in ("cut: variant msf, step 500 of 1000", "variant gdr", "ocl_train +experiment", "vae_checkpoint"):
        assert part in str(error.value)
