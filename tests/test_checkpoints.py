"""Weights come from checkpoints without unpickling anything."""

import pytest
import torch

from ocl_msf.experiments.checkpoints import read_weights


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
    torch.save({"state_dict": {"models.vqvae.a": pytest.fail}}, tmp_path / "pickle.ckpt")
    with pytest.raises(ValueError, match="pickle.ckpt"):
        read_weights(tmp_path / "pickle.ckpt", "models.vqvae")
