import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler

from ocl_msf.autoencoder import VQVAE, Decoder, Encoder
from ocl_msf.chunks import in_chunks
from ocl_msf.diffusion import DiffusionDecoder
from ocl_msf.frames import frame_features
from ocl_msf.fusion import MultiScaleFusion
from ocl_msf.guidance import FrozenGuidance

pytestmark = pytest.mark.needs_host


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
    monkeypatch.setattr(decoder, "predict", lambda x, t, s, m: seen.update(x=x, t=t, s=s) or x)
    output = decoder.train()(slots, guidance)
    noise, timesteps = output.noise[:, 0], output.timesteps[:, 0]
    expected = noisy_by_the_equation(decoder.standardize(guidance), noise, timesteps)
    torch.testing.assert_close(seen["x"], expected, rtol=1e-4, atol=1e-5)
    assert torch.equal(seen["t"], timesteps) and seen["s"] is slots


@pytest.mark.parametrize("steps", [1, 20])
def test_denoising_with_the_true_noise_gives_the_guidance_back(decoder, slots, guidance, monkeypatch, steps):
    """Whoever knows X can name the noise in any noisy X; sampling must then arrive at X."""
    decoder.train()(slots, guidance)
    kept, x = decoder.noising.alphas_cumprod, decoder.standardize(guidance)
    monkeypatch.setattr(decoder, "predict", lambda z, t, *_: (z - kept[t].sqrt() * x) / (1 - kept[t]).sqrt())
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


def test_timesteps_and_noise_are_new_in_training(decoder, slots, guidance):
    many, often = slots.repeat(8, 1, 1), guidance.repeat(8, 1, 1, 1)
    decoder.train()
    first, second = decoder(many, often), decoder(many, often)
    assert first.prediction.shape == first.noise.shape == (16, 1, 4, 8, 8) and first.timesteps.shape == (16, 1)
    assert (first.noise - second.noise).abs().max() > 1 and not torch.equal(first.timesteps, second.timesteps)
    assert first.noise.std(0).min() > 0.1 and 0 <= first.timesteps.min() and first.timesteps.max() < 1000
    assert first.timesteps.max() - first.timesteps.min() > 300


def test_evaluation_meets_the_same_noise_at_timesteps_over_the_whole_schedule(decoder, slots, guidance):
    first, second = decoder(slots, guidance), decoder(slots, guidance)
    assert torch.equal(first.prediction, second.prediction) and torch.equal(first.noise, second.noise)
    assert first.prediction.shape == (2, 4, 4, 8, 8)
    assert first.timesteps.tolist() == [[125, 375, 625, 875]] * 2
    assert torch.equal(first.noise[0], first.noise[1]) and first.noise[0].std(0).min() > 0.1
    finer = DiffusionDecoder(6, 4, size=8, channels=[8], num_layers=1, num_heads=2, eval_levels=10).eval()
    assert finer(slots, guidance).timesteps[0].tolist() == list(range(50, 1000, 100))


def test_evaluation_predicts_the_noise_of_the_noised_guidance(decoder, slots, guidance):
    """Each level by itself: the network at that timestep, on guidance noised by the schedule."""
    output = decoder(slots, guidance)
    for level, timestep in enumerate([125, 375, 625, 875]):
        timesteps = torch.full((2,), timestep)
        noisy = noisy_by_the_equation(guidance, output.noise[:, level], timesteps)
        expected = decoder.predict(noisy, timesteps, slots)
        torch.testing.assert_close(output.prediction[:, level], expected, rtol=1e-3, atol=1e-4)


@pytest.fixture
def four():
    """Slots, guidance and mask of four samples; one has no empty slot, one has one, one has two, one has three."""
    generator = torch.Generator().manual_seed(3)
    slots, guidance = torch.randn(4, 3, 6, generator=generator), torch.randn(4, 4, 8, 8, generator=generator)
    return slots, guidance, torch.arange(3) >= torch.tensor([3, 2, 1, 0])[:, None]


@pytest.mark.parametrize("masked", [False, True])
def test_a_batch_of_four_equals_four_batches_of_one(decoder, four, masked):
    slots, guidance, mask = four
    mask = mask if masked else None
    with torch.no_grad():
        whole = decoder(slots, guidance, mask)
        for size in (1, 3):
            parts = in_chunks(decoder, size, slots, guidance, mask)
            for name in ("noise", "timesteps"):
                assert torch.equal(getattr(parts, name), getattr(whole, name))
            torch.testing.assert_close(parts.prediction, whole.prediction)
    drawn = decoder.generate(slots, steps=3, slot_mask=mask)
    for i in range(4):
        alone = decoder.generate(slots[i : i + 1], steps=3, slot_mask=None if mask is None else mask[i : i + 1])
        torch.testing.assert_close(alone, drawn[i : i + 1], rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("garbage", [100.0, float("nan")])
def test_empty_slots_take_no_part(decoder, four, garbage):
    slots, guidance, mask = four
    other = slots.masked_fill(mask[..., None], garbage)
    expected = decoder(slots, guidance, mask).prediction
    assert torch.equal(decoder(other, guidance, mask).prediction, expected)
    drawn = decoder.generate(slots, steps=2, slot_mask=mask)
    assert torch.equal(decoder.generate(other, steps=2, slot_mask=mask), drawn)
    for i, count in enumerate([3, 2, 1]):
        one = slots[i : i + 1, :count], guidance[i : i + 1]
        torch.testing.assert_close(decoder(*one).prediction, expected[i : i + 1])
    assert (decoder(slots, guidance).prediction - expected)[1:].abs().amax((1, 2, 3, 4)).min() > 1e-5


def test_no_gradient_reaches_an_empty_slot(decoder, four):
    slots, guidance, mask = four
    slots.requires_grad_()
    output = decoder.train()(slots, guidance, mask)
    torch.nn.functional.mse_loss(output.prediction, output.noise).backward()
    assert torch.equal(slots.grad.abs().amax(-1) > 0, ~mask)


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
    assert output.prediction.shape == output.noise.shape == (2, 4, 4, *shape)
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


@pytest.mark.parametrize("levels", [0, 11])
def test_levels_that_the_schedule_lacks_are_named(levels):
    with pytest.raises(ValueError, match=f"eval_levels must be 1 to num_timesteps=10, got {levels}"):
        DiffusionDecoder(6, 4, size=8, channels=[8], num_heads=2, num_timesteps=10, eval_levels=levels)


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


def test_the_schedule_of_slotdiffusion_keeps_more_of_the_guidance():
    """Square roots of the variances rise linearly; signal to noise at two levels as published for both schedules."""
    options = {"channels": [8], "num_layers": 1, "num_heads": 2}
    original = DiffusionDecoder(6, 4, 8, betas=(0.0015, 0.0195), beta_schedule="scaled_linear", **options)
    betas = torch.linspace(0.0015**0.5, 0.0195**0.5, 1000, dtype=torch.float64).square()
    for schedule in (original.noising, original.sampling):
        kept = schedule.alphas_cumprod
        torch.testing.assert_close(kept.double(), torch.cumprod(1 - betas, 0), rtol=1e-4, atol=0)
    ratios = [(x / (1 - x))[[500, 750]] for x in (DDPMScheduler().alphas_cumprod, original.noising.alphas_cumprod)]
    torch.testing.assert_close(torch.stack(ratios), torch.tensor([[0.084, 0.0033], [0.130, 0.0084]]), rtol=0.02, atol=0)


def test_dropout_is_in_every_residual_block_and_in_training_alone(slots, guidance):
    options = {"channels": [8, 16], "num_layers": 1, "num_heads": 2}
    dropping = DiffusionDecoder(6, 4, 8, dropout=0.1, **options)
    blocks = [m for m in dropping.unet.modules() if type(m).__name__ == "ResnetBlock2D"]
    assert len(blocks) > 4 and {block.dropout.p for block in blocks} == {0.1}
    noisy, t = torch.randn(2, 4, 8, 8), torch.tensor(500)
    assert not torch.equal(dropping.train().predict(noisy, t, slots), dropping.predict(noisy, t, slots))
    plain = DiffusionDecoder(6, 4, 8, **options).eval()
    plain.load_state_dict(dropping.state_dict())
    assert torch.equal(dropping.eval().predict(noisy, t, slots), plain.predict(noisy, t, slots))


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


def test_attention_begins_at_the_level_asked_for():
    def attends(block):
        return hasattr(block, "attentions")

    for first in (0, 1, 2):
        decoder = DiffusionDecoder(6, 4, size=8, channels=[8, 16], num_layers=1, num_heads=2, attention_from=first)
        assert [attends(block) for block in decoder.unet.down_blocks] == [level >= first for level in range(2)]
        assert [attends(block) for block in decoder.unet.up_blocks] == [level >= first for level in (1, 0)]
    with pytest.raises(ValueError, match="attention_from must be 0 to 2"):
        DiffusionDecoder(6, 4, size=8, channels=[8, 16], num_heads=2, attention_from=3)


@pytest.fixture
def of_velocity():
    torch.manual_seed(0)
    return DiffusionDecoder(
        6, 4, size=8, channels=[8, 16], num_layers=1, num_heads=2, prediction_type="v_prediction"
    ).eval()


def true_velocity(decoder, guidance):
    """The velocity of any noisy guidance, by Salimans and Ho (2022): sqrt(a) noise - sqrt(1 - a) x."""
    x, kept = decoder.standardize(guidance), torch.cumprod(1 - torch.linspace(1e-4, 0.02, 1000), 0)

    def velocity(noisy, timesteps, *_):
        a = kept[timesteps].view(-1, 1, 1, 1)
        return a.sqrt() * (noisy - a.sqrt() * x) / (1 - a).sqrt() - (1 - a).sqrt() * x

    return velocity


def test_training_is_for_the_noise_or_for_the_velocity(decoder, of_velocity, slots, guidance, monkeypatch):
    output = decoder.train()(slots, guidance)
    assert torch.equal(output.target, output.noise)
    of_velocity.train()(slots, guidance)
    monkeypatch.setattr(of_velocity, "predict", true_velocity(of_velocity, guidance))
    output = of_velocity(slots, guidance)
    torch.testing.assert_close(output.prediction, output.target, rtol=1e-3, atol=1e-3)
    assert (output.target - output.noise).abs().max() > 0.1


def test_evaluation_is_of_the_noise_in_either_case(decoder, of_velocity, slots, guidance, monkeypatch):
    expected = decoder(slots, guidance)
    monkeypatch.setattr(of_velocity, "predict", true_velocity(of_velocity, guidance))
    output = of_velocity(slots, guidance)
    assert torch.equal(output.target, expected.target) and torch.equal(output.target, expected.noise)
    torch.testing.assert_close(output.prediction, output.noise, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("steps", [1, 20])
def test_denoising_with_the_true_velocity_gives_the_guidance_back(of_velocity, slots, guidance, monkeypatch, steps):
    of_velocity.train()(slots, guidance)
    monkeypatch.setattr(of_velocity, "predict", true_velocity(of_velocity, guidance))
    torch.testing.assert_close(of_velocity.generate(slots, steps=steps), guidance, rtol=1e-3, atol=1e-2)


def test_what_cannot_be_predicted_is_named():
    with pytest.raises(ValueError, match="prediction_type must be epsilon or v_prediction, got 'sample'"):
        DiffusionDecoder(6, 4, size=8, channels=[8], num_heads=2, prediction_type="sample")


@pytest.mark.parametrize("shape", [(8, 8), (4, 7)])
def test_the_network_sees_where_it_is_if_asked_to(slots, shape):
    """The guidance itself first, then a ramp down the rows and one along the columns."""
    decoder = DiffusionDecoder(6, 4, size=8, channels=[8, 16], num_layers=1, num_heads=2, coordinates=True).eval()
    seen = []
    decoder.unet.conv_in.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    noisy = torch.randn(2, 4, *shape)
    assert decoder.predict(noisy, torch.tensor(500), slots).shape == noisy.shape
    rows, columns = seen[0][:, 4], seen[0][:, 5]
    assert torch.equal(seen[0][:, :4], noisy) and seen[0].shape[1] == 6
    assert torch.equal(rows[..., :1].expand_as(rows), rows) and torch.equal(columns[:, :1].expand_as(columns), columns)
    for steps in (rows[..., 0], columns[:, 0]):
        assert steps[0, 0] == -1 and steps[0, -1] == 1 and steps.diff().std() < 1e-6
    assert decoder.generate(slots, size=shape, steps=2).shape == (2, 4, *shape)


def test_frames_of_slots_join_them(slots, guidance):
    torch.manual_seed(0)
    framed = DiffusionDecoder(6, 4, size=8, channels=[8, 16], num_layers=1, num_heads=2, frames=True).eval()
    frames = torch.rand(2, 3, 3) + 0.1
    told = framed(torch.cat([slots, frames], -1), guidance).prediction
    with torch.no_grad():
        joined = slots + framed.project_frames(frame_features(frames))
    framed.project_frames = None  # what is left takes plain slots
    torch.testing.assert_close(told, framed(joined, guidance).prediction)
    with pytest.raises(ValueError, match=r"slots must be \(b, k, 6\)"):
        framed(torch.cat([slots, frames], -1), guidance)
