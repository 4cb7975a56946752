import os

import pytest
import torch

from ocl_msf.experiments.runs import find_finished, read_weights


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


def test_weights_of_one_module_are_read(tmp_path):
    state = {"models.vqvae.a": torch.ones(2), "models.vqvae2.a": torch.zeros(1), "models.x.b": torch.zeros(1)}
    torch.save({"state_dict": state}, tmp_path / "a.ckpt")
    assert list(read_weights(tmp_path / "a.ckpt", "models.vqvae")) == ["a"]
    with pytest.raises(ValueError, match="models.x"):
        read_weights(tmp_path / "a.ckpt", "models.vae")


def test_missing_damaged_and_pickled_checkpoints_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="none.ckpt"):
        read_weights(tmp_path / "none.ckpt", "models.vqvae")
    (tmp_path / "cut.ckpt").write_bytes(b"PK\x03\x04 something")
    with pytest.raises(ValueError, match="cut.ckpt"):
        read_weights(tmp_path / "cut.ckpt", "models.vqvae")
    torch.save({"state_dict": {"models.vqvae.a": make_run}}, tmp_path / "pickle.ckpt")
    with pytest.raises(ValueError, match="pickle.ckpt"):
        read_weights(tmp_path / "pickle.ckpt", "models.vqvae")
