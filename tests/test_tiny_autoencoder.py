"""The tiny autoencoder around the quantiser, with random weights."""

from types import SimpleNamespace

import pytest
import torch
from diffusers.models import AutoencoderTiny
from safetensors.torch import save_file
from torch.nn import functional as F

from ocl_msf.autoencoder import VQVAE
from ocl_msf.fusion import MultiScaleFusion
from ocl_msf.tiny_autoencoder import TinyDecoder, TinyEncoder, read_tiny_autoencoder
from ocl_msf.training.callbacks import LoadTinyAutoencoder

pytestmark = pytest.mark.needs_host


@pytest.fixture(scope="module")
def whole():
    torch.manual_seed(0)
    return AutoencoderTiny(encoder_block_out_channels=(8,) * 4, decoder_block_out_channels=(8,) * 4)


@pytest.fixture(scope="module")
def weights(whole, tmp_path_factory):
    path = tmp_path_factory.mktemp("tiny") / "diffusion_pytorch_model.safetensors"
    save_file(whole.state_dict(), path)
    return path


def train(vae, path=None, model="vqvae"):
    module = SimpleNamespace(models=torch.nn.ModuleDict({model: vae}))
    LoadTinyAutoencoder(path and str(path)).on_fit_start(None, module)


@pytest.fixture
def vae():
    return VQVAE(TinyEncoder(6, 8), TinyDecoder(6, 8), MultiScaleFusion(6, 8, 2), num_scales=2)


def test_its_layers_are_those_of_the_whole_one(whole, weights, vae):
    train(vae, weights)
    encoder, decoder = vae.encoder, vae.decoder
    image = torch.rand(2, 3, 32, 64) * 2 - 1
    x = F.interpolate(image, scale_factor=0.5, mode="bicubic") / 2 + 0.5
    for layer in whole.encoder.layers[:14]:
        x = layer(x)
    torch.testing.assert_close(encoder(image), encoder.project(F.group_norm(x, 1)))
    features = torch.randn(2, 6, 2, 4)
    x = F.group_norm(decoder.project(features), 1)
    for layer in whole.decoder.layers[2:]:
        x = layer(x)
    torch.testing.assert_close(decoder(features), x * 2 - 1)
    assert encoder(image).shape == (2, 6, 2, 4) and decoder(features).shape == (2, 3, 16, 32)


def test_the_first_eleven_layers_of_the_encoder_are_frozen_and_the_rest_learns(vae):
    frozen = {name.split(".")[2] for name, x in vae.named_parameters() if not x.requires_grad}
    assert frozen == {str(number) for number in range(11)}
    assert all(x.requires_grad for x in vae.decoder.parameters())


def test_checkpoints_hold_the_weights(weights, vae):
    image = torch.rand(1, 3, 64, 64) * 2 - 1
    with pytest.raises(RuntimeError, match="weights of the tiny autoencoder are missing"):
        vae(image)
    train(vae, weights)
    other = VQVAE(TinyEncoder(6, 8), TinyDecoder(6, 8), MultiScaleFusion(6, 8, 2), num_scales=2)
    other.load_state_dict(vae.state_dict())
    train(other, "gone.safetensors")
    train(torch.nn.Identity(), "gone.safetensors", "guidance")  # stage 2 has no VAE to train
    assert torch.equal(other.eval()(image).reconstructions[0], vae.eval()(image).reconstructions[0])


def test_what_cannot_be_taken_is_said_in_a_sentence(whole, vae, tmp_path, monkeypatch):
    with pytest.raises(FileNotFoundError, match="no file .*gone.*experiment.vae_weights=PATH"):
        read_tiny_autoencoder(tmp_path / "gone.safetensors")
    monkeypatch.setattr(AutoencoderTiny, "from_pretrained", classmethod(lambda *_, **__: open(tmp_path / "hub")))
    with pytest.raises(FileNotFoundError, match="diffusers cannot fetch madebyollin/taesd"):
        train(vae)
    torch.save(whole, tmp_path / "pickled.bin")
    with pytest.raises(ValueError, match="pickled.bin cannot be read as weights of a tiny autoencoder"):
        train(vae, tmp_path / "pickled.bin")
    torch.save(whole.encoder.state_dict(), tmp_path / "half.bin")
    with pytest.raises(ValueError, match="half.bin do not fit vqvae.encoder and vqvae.decoder"):
        train(vae, tmp_path / "half.bin")
