import pytest
import torch

from ocl_msf.autoencoder import VQVAE, Decoder, Encoder
from ocl_msf.fusion import MultiScaleFusion
from ocl_msf.guidance import FrozenGuidance


def build_vae():
    return VQVAE(Encoder(8, 16), Decoder(8, 16), MultiScaleFusion(8, 16, 3, temperature=1.0), 3)


@pytest.fixture
def guidance():
    torch.manual_seed(0)
    guidance = FrozenGuidance(build_vae())
    guidance.load(build_vae().state_dict())
    return guidance


def test_it_refuses_to_guide_at_random():
    with pytest.raises(RuntimeError, match="stage 1"):
        FrozenGuidance(build_vae())(torch.randn(1, 3, 32, 32))


def test_it_stays_frozen_and_deterministic_while_the_model_trains(guidance):
    guidance.train()
    assert not any(module.training for module in guidance.modules())
    assert not any(p.requires_grad for p in guidance.parameters())
    image = torch.randn(2, 3, 32, 32)
    first, second = guidance(image), guidance(image)
    assert torch.equal(first.indices, second.indices)
    assert not first.features.requires_grad


def test_its_own_state_dict_is_enough_to_restore_it(guidance):
    restored = FrozenGuidance(build_vae())
    restored.load_state_dict(guidance.state_dict())
    image = torch.randn(1, 3, 32, 32)
    assert torch.equal(restored(image).indices, guidance(image).indices)


@pytest.mark.parametrize("scale", [1, 2, 3])
def test_look_up_and_decode_belong_to_the_guiding_scale(guidance, scale):
    guidance.scale = scale
    output = guidance(torch.randn(1, 3, 32, 32))
    side = 8 >> (scale - 1)
    assert output.features.shape == (1, 8, side, side)
    torch.testing.assert_close(guidance.lookup(output.indices), output.features)
    assert guidance.decode(output.features).shape == (1, 3, 32, 32)
    assert torch.equal(output.features, output.all_features[scale - 1])


def test_features_before_quantisation_guide_if_asked_to(guidance):
    image = torch.rand(2, 3, 32, 32) * 2 - 1
    codes = guidance(image)
    guidance.quantized = False
    output = guidance(image)
    for level, features in zip(guidance.vae.pyramid(image), output.all_features):
        torch.testing.assert_close(features, guidance.vae.encoder(level), rtol=1e-4, atol=1e-5)  # layouts differ
    assert torch.equal(output.features, output.all_features[0]) and torch.equal(output.indices, codes.indices)
    assert not torch.allclose(output.features, codes.features)
    assert FrozenGuidance(guidance.vae, quantized=False).quantized is False


@pytest.mark.parametrize(
    "scales, message",
    [({"scale": 0}, "1 the finest"), ({"scale": 4}, "4 needs.*has 3"), ({"min_scales": 5}, "5 needs.*has 3")],
)
def test_a_scale_that_does_not_exist_is_refused(scales, message):
    with pytest.raises(ValueError, match=message):
        FrozenGuidance(build_vae(), **scales)
