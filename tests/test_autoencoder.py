import pytest
import torch
from torch import nn

from ocl_msf.autoencoder import VQVAE, Decoder, Encoder
from ocl_msf.fusion import Concat, MultiScaleFusion
from ocl_msf.losses import PyramidLoss
from ocl_msf.quantization import VectorQuantizer


def build(num_scales=3, variant="msf", **options):
    torch.manual_seed(0)
    quantizer = MultiScaleFusion(8, 16, num_scales)
    return VQVAE(Encoder(8, 16), Decoder(8, 16), quantizer, num_scales, variant, **options)


def test_shapes_of_every_scale():
    output = build()(torch.randn(2, 3, 64, 32))
    for n in range(3):
        assert output.pyramid[n].shape == output.reconstructions[n].shape == (2, 3, 64 >> n, 32 >> n)
        assert output.encodings[n].shape == output.quantized[n].shape == (2, 8, 16 >> n, 8 >> n)
        assert output.indices[n].shape == (2, 2, 16 >> n, 8 >> n)


def test_encode_and_decode_are_the_two_halves():
    vae, image = build().eval(), torch.randn(2, 3, 32, 32)
    whole, codes = vae(image), vae.encode(image)
    torch.testing.assert_close(codes.quantized, whole.quantized)
    torch.testing.assert_close(vae.decode(codes.quantized), whole.reconstructions)
    looked_up = vae.quantizer.lookup(codes.indices)
    torch.testing.assert_close(vae.decode(looked_up), whole.reconstructions, atol=1e-4, rtol=1e-4)


def test_the_decoder_sees_normalised_codes_if_asked():
    vae, image = build().eval(), torch.randn(2, 3, 32, 32)
    codes = vae.encode(image).quantized
    vae.normalize = True
    for x, made in zip(codes, vae(image).reconstructions):
        centred = x - x.mean((1, 2, 3), keepdim=True)
        deviation = centred.square().mean((1, 2, 3), keepdim=True).sqrt()
        torch.testing.assert_close(made, vae.decoder(centred / deviation), atol=1e-3, rtol=1e-3)
    torch.testing.assert_close(vae.encode(image).quantized, codes)  # guidance stays one vector for each code


@pytest.mark.parametrize("trained", [True, False])
def test_a_checkpoint_brings_whether_the_decoder_sees_normalised_codes(trained):
    weights, vae, image = build(normalize=trained).state_dict(), build(normalize=not trained), torch.randn(1, 3, 16, 16)
    vae.load_state_dict(weights)
    expected = build(normalize=trained).eval()(image).reconstructions
    torch.testing.assert_close(vae.eval()(image).reconstructions, expected)


def test_checkpoints_of_earlier_versions_load_and_score_as_before():
    weights, vae, image = build().state_dict(), build(normalize=True), torch.randn(1, 3, 64, 64)
    weights["_extra_state"] = {"variant": "msf"}
    for book in vae.quantizer.codebooks:
        book.relative_confidence = True
    vae.load_state_dict(weights)
    before, after = build().eval()(image), vae.eval()(image)
    assert torch.equal(after.diagnostics["winners"][0], before.diagnostics["winners"][0])
    torch.testing.assert_close(after.reconstructions, before.reconstructions)


def test_a_size_that_does_not_fit_the_pyramid_is_refused():
    with pytest.raises(ValueError, match="72x64.*divisible by 16"):
        build()(torch.randn(1, 3, 72, 64))


def test_every_parameter_learns_and_the_loss_falls():
    torch.manual_seed(0)
    vae, image = build(), torch.rand(8, 3, 32, 32) * 2 - 1
    loss_of, optimizer = PyramidLoss(), torch.optim.Adam(vae.parameters(), 2e-3)
    losses = []
    for _ in range(60):
        output = vae(image)
        loss = loss_of(output.reconstructions, output.pyramid) + output.codebook_loss + 0.25 * output.commitment_loss
        optimizer.zero_grad()
        loss.backward()
        if not losses:
            assert all(p.grad is not None for p in vae.parameters())
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.7 * losses[0]


def test_the_plain_vae_is_one_scale_with_one_codebook():
    vae = VQVAE(Encoder(8), Decoder(8), VectorQuantizer(8, 32), 1, "vq")
    output = vae(torch.randn(2, 3, 20, 36))
    assert len(output.reconstructions) == 1 and output.indices[0].shape == (2, 1, 5, 9)


def test_the_weights_of_another_variant_are_refused_by_name():
    weights = build(variant="gdr").state_dict()
    with pytest.raises(ValueError, match="'gdr'.*'msf'"):
        build().load_state_dict(weights)


def test_the_state_dict_loads_without_unpickling(tmp_path):
    torch.save(build().state_dict(), tmp_path / "vae.pt")
    weights = torch.load(tmp_path / "vae.pt", weights_only=True)
    other = build()
    nn.init.zeros_(other.quantizer.project.weight)
    other.load_state_dict(weights)
    assert torch.equal(other.quantizer.project.weight, build().quantizer.project.weight)


@pytest.mark.parametrize("dtype", [torch.bfloat16, pytest.param(torch.float16, marks=pytest.mark.needs_new_torch)])
def test_a_training_step_in_mixed_precision_stays_near_one_in_float32(dtype):
    image = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(1)) * 2 - 1

    def step(enabled):
        model = build()
        with torch.autocast("cpu", dtype, enabled=enabled):
            output = model(image)
            loss = output.codebook_loss + output.commitment_loss + sum(x.square().mean() for x in output.quantized)
        loss.backward()
        return loss.detach(), model

    (half, model), (full, _) = step(True), step(False)
    torch.testing.assert_close(half.float(), full, atol=0.05, rtol=0.05)
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)
    assert model.quantizer.project.weight.grad.dtype == torch.float32


@pytest.mark.parametrize("quantizer", [MultiScaleFusion(4, 8, 2), MultiScaleFusion(4, 8, 2, Concat(4, 2))])
def test_names_in_checkpoints_stay(quantizer):
    names = {"project.weight"} | {f"codebooks.{n}.{kind}" for n in range(3) for kind in ("weight", "usage")}
    names |= {"inter_scale.project.weight"} if isinstance(quantizer.inter_scale, Concat) else set()
    assert set(quantizer.state_dict()) == names
    assert set(VectorQuantizer(4, 8).state_dict()) == {"codebook.weight", "codebook.usage"}
    whole = set(VQVAE(Encoder(4, 4), Decoder(4, 4), quantizer, 2).state_dict())
    assert {f"quantizer.{name}" for name in names} | {
        "_extra_state",
        "encoder.0.0.weight",
        "decoder.0.0.weight",
    } <= whole
