import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler

from ocl_msf.autoencoder import VQVAE, Decoder, Encoder
from ocl_msf.diffusion import DiffusionDecoder
from ocl_msf.fusion import MultiScaleFusion
from ocl_msf.guidance import FrozenGuidance


@pytest.fixture
def decoder():
    torch.manual_seed(0)
    return DiffusionDecoder(6, 4, size=8, channels=[8, 16], num_layers=1, num_heads=2).eval()


@pytest.fixture
def slots():
    return torch.randn(2, 3, 6, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def guidance():
    return torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(2)) * 5 + 3


def noisy_by_the_equation(x, noise, timesteps):
    """Ho et al. (2020), equation 4, with the linear betas from 1e-4 to 0.02."""
    kept = torch.cumprod(1 - torch.linspace(1e-4, 0.02, 1000), 0)[timesteps].view(-1, 1, 1, 1)
    return kept.sqrt() * x + (1 - kept).sqrt() * noise


def test_the_network_sees_guidance_noised_by_the_schedule(decoder, slots, guidance, monkeypatch):
    seen = {}
    monkeypatch.setattr(decoder, "predict", lambda x, t, s: seen.update(x=x, t=t, s=s) or x)
    output = decoder.train()(slots, guidance)
    expected = noisy_by_the_equation(decoder.standardize(guidance), output.noise, output.timesteps)
    torch.testing.assert_close(seen["x"], expected, rtol=1e-4, atol=1e-5)
    assert torch.equal(seen["t"], output.timesteps) and seen["s"] is slots


@pytest.mark.parametrize("steps", [1, 20])
def test_denoising_with_the_true_noise_gives_the_guidance_back(decoder, slots, guidance, monkeypatch, steps):
    """Whoever knows X can name the noise in any noisy X; sampling must then arrive at X."""
    decoder.train()(slots, guidance)
    kept, x = decoder.noising.alphas_cumprod, decoder.standardize(guidance)
    monkeypatch.setattr(decoder, "predict", lambda z, t, s: (z - kept[t].sqrt() * x) / (1 - kept[t]).sqrt())
    torch.testing.assert_close(decoder.generate(slots, steps=steps), guidance, rtol=1e-3, atol=1e-2)


def test_the_first_training_batch_sets_the_scale_once_and_for_all(decoder, slots, guidance):
    decoder(slots, guidance)
    assert not decoder.measured
    decoder.train()(slots, guidance)
    x = decoder.standardize(guidance)
    torch.testing.assert_close(x.mean((0, 2, 3)), torch.zeros(4), rtol=0, atol=1e-5)
    assert x.var(unbiased=False).item() == pytest.approx(1, abs=1e-4)
    decoder(slots, guidance * 7)
    assert torch.equal(decoder.standardize(guidance), x)
    other = DiffusionDecoder(6, 4, size=8, channels=[8, 16], num_layers=1, num_heads=2)
    other.load_state_dict(decoder.state_dict())
    assert torch.equal(other.standardize(guidance), x) and other.measured


def test_guidance_without_any_variation_does_no_harm(decoder, slots):
    output = decoder.train()(slots, torch.full((2, 4, 8, 8), 0.3))
    assert output.prediction.isfinite().all()


def test_timesteps_and_noise_are_new_in_training_and_fixed_in_evaluation(decoder, slots, guidance):
    many, twice = slots.repeat(8, 1, 1), guidance.repeat(8, 1, 1, 1)
    first, second = decoder(many, twice), decoder(many, twice)
    assert torch.equal(first.prediction, second.prediction) and torch.equal(first.noise, second.noise)
    assert first.timesteps.diff().min() > 50 and first.timesteps.max() - first.timesteps.min() > 900
    decoder.train()
    first, second = decoder(many, twice), decoder(many, twice)
    assert (first.noise - second.noise).abs().max() > 1 and not torch.equal(first.timesteps, second.timesteps)
    assert 0 <= first.timesteps.min() and first.timesteps.max() < 1000


def test_evaluation_leaves_the_global_generator_alone(decoder, slots, guidance):
    state = torch.get_rng_state()
    decoder(slots, guidance)
    decoder.generate(slots, steps=2)
    assert torch.equal(torch.get_rng_state(), state)


def test_slots_are_a_set_and_matter(decoder, slots, guidance):
    expected = decoder(slots, guidance).prediction
    torch.testing.assert_close(decoder(slots.flip(1), guidance).prediction, expected)
    assert (decoder(slots * 3 + 1, guidance).prediction - expected).abs().max() > 1e-5


@pytest.mark.parametrize("shape", [(8, 8), (7, 5), (1, 1)])
def test_any_size_is_denoised_and_drawn(decoder, slots, shape):
    output = decoder(slots, torch.randn(2, 4, *shape))
    assert output.prediction.shape == output.noise.shape == (2, 4, *shape)
    assert decoder.generate(slots, size=shape, steps=2).shape == (2, 4, *shape)


def test_drawing_is_decided_by_its_seed(decoder, slots):
    drawn = decoder.generate(slots, steps=3)
    assert drawn.shape == (2, 4, 8, 8) and drawn.isfinite().all()
    assert torch.equal(decoder.generate(slots, steps=3), drawn)
    assert (decoder.generate(slots, steps=3, seed=1) - drawn).abs().max() > 0.1


@pytest.mark.parametrize(
    "slots, guidance, message",
    [
        ((2, 3, 5), (2, 4, 8, 8), r"slots .*\(b, k, 6\).*\(2, 3, 5\)"),
        ((2, 3, 6), (2, 3, 8, 8), r"guidance .*\(b, 4, h, w\).*\(2, 3, 8, 8\)"),
        ((2, 3, 6), (2, 4, 64), r"guidance .*\(2, 4, 64\)"),
        ((2, 3, 6), (1, 4, 8, 8), "slots of 2 images.*of 1"),
    ],
)
def test_shapes_that_do_not_fit_are_named(decoder, slots, guidance, message):
    with pytest.raises(ValueError, match=message):
        decoder(torch.randn(slots), torch.randn(guidance))


def test_channels_that_heads_cannot_share_are_named():
    with pytest.raises(ValueError, match=r"num_heads=3.*\[6, 8\]"):
        DiffusionDecoder(6, 4, size=8, channels=[6, 8], num_heads=3)


@pytest.fixture
def frozen():
    vae = VQVAE(Encoder(4, 8), Decoder(4, 8), MultiScaleFusion(4, 16, 3), 3)
    guidance = FrozenGuidance(vae)
    guidance.load(vae.state_dict())
    return guidance


def test_gradients_reach_slots_and_network_but_never_the_vae(decoder, slots, frozen):
    slots.requires_grad_()
    output = decoder.train()(slots, frozen(torch.rand(2, 3, 32, 32) * 2 - 1).features)
    torch.nn.functional.mse_loss(output.prediction, output.noise).backward()
    assert slots.grad.abs().min() > 0
    assert all(p.grad is not None and p.grad.isfinite().all() for p in decoder.parameters())
    assert all(p.grad is None for p in frozen.parameters())


def test_the_schedules_are_the_defaults_of_the_library(decoder):
    for ours, default in ((decoder.noising, DDPMScheduler()), (decoder.sampling, DDIMScheduler())):
        assert torch.equal(ours.betas, default.betas) and ours.config.prediction_type == "epsilon"


def test_it_learns_to_name_noise(decoder):
    """Soon the error on two scenes is far below 1, that of predicting nothing."""
    torch.manual_seed(0)
    guidance, slots = torch.randn(2, 4, 8, 8).repeat(8, 1, 1, 1), torch.randn(2, 3, 6).repeat(8, 1, 1)
    optimizer = torch.optim.Adam(decoder.train().parameters(), 3e-3)
    for _ in range(40):
        output = decoder(slots, guidance)
        loss = torch.nn.functional.mse_loss(output.prediction, output.noise)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    output = decoder.eval()(slots, guidance)
    assert torch.nn.functional.mse_loss(output.prediction, output.noise) < 0.6
