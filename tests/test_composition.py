import pytest
import torch

from ocl_msf.composition import drop_nulls, guided_losses, guided_models
from ocl_msf.decoding import TokenDecoder
from ocl_msf.losses import GroupedCrossEntropy

pytestmark = pytest.mark.needs_host

VAE = {
    "_target_": "ocl_msf.autoencoder.VQVAE",
    "encoder": {"_target_": "ocl_msf.autoencoder.Encoder", "dim": 4, "hidden_dim": 8},
    "decoder": {"_target_": "ocl_msf.autoencoder.Decoder", "dim": 4, "hidden_dim": 8},
    "quantizer": {"_target_": "ocl_msf.fusion.MultiScaleFusion", "dim": 4, "codebook_size": 8, "num_scales": 3},
}
TOKENS = {
    "_target_": "routed.ocl_msf.decoding.TokenDecoder",
    **{"object_dim": 6, "guidance_dim": 4, "codebook_sizes": [8, 8], "dim": 8, "num_layers": 1, "num_heads": 2},
    **{"slots_path": "slots", "guidance_path": "guidance.features", "slot_mask_path": None},
}
LOSS = {
    "_target_": "routed.ocl_msf.losses.GroupedCrossEntropy",
    "logits_path": "decoder.logits",
    "indices_path": "guidance.indices",
}


def build(scales, first=1):
    guidance = {
        "_target_": "routed.ocl_msf.guidance.FrozenGuidance",
        **{"vae": VAE, "scale": first, "image_path": "image"},
    }
    decoder = {**TOKENS, "size": 8 >> (first - 1)}
    models = guided_models(scales, guidance=guidance, decoder=decoder, gone=None)
    models["guidance"].load(models["guidance"].vae.state_dict())
    return models, guided_losses(scales, tokens=LOSS, gone=None)


def test_nulls_are_dropped():
    assert drop_nulls(a=1, b=None, c=0) == {"a": 1, "c": 0}


@pytest.mark.parametrize("scales", [[1], [2], [1, 2], [1, 2, 3], [2, 1], [1, 3]])
def test_every_guiding_scale_has_a_decoder_and_a_loss_of_its_own(scales):
    torch.manual_seed(0)
    models, losses = build(scales, scales[0])
    names = ["decoder", *(f"decoder_{scale}" for scale in scales[1:])]
    assert list(models) == ["guidance", *names]
    assert list(losses) == ["tokens", *(f"tokens_{scale}" for scale in scales[1:])]
    slots, image = torch.randn(2, 3, 6), torch.rand(2, 3, 32, 32) * 2 - 1
    tree = {"slots": slots, "image": image}
    for name, model in models.items():
        tree[name] = model.eval()(inputs=tree)
    for scale, name, loss in zip(scales, names, losses.values()):
        features, indices = tree["guidance"].all_features[scale - 1], tree["guidance"].all_indices[scale - 1]
        decoder = models[name]
        torch.testing.assert_close(tree[name].logits, TokenDecoder.forward(decoder, slots, features).logits)
        expected = GroupedCrossEntropy()(tree[name].logits, indices)[0]
        torch.testing.assert_close(loss(inputs=tree)[0], expected)
        torch.testing.assert_close(decoder.lookup(indices), features)
        assert decoder.generate(slots).shape == features.shape
    weights = [models[name].begin for name in names]
    assert len({weight.flatten()[0].item() for weight in weights}) == len(names)


@pytest.mark.parametrize("scales", [[], [2], [2, 1]])
def test_scales_that_do_not_begin_with_that_of_the_guidance_are_refused(scales):
    with pytest.raises(ValueError, match="guidance_scales must begin with experiment.guidance_scale, 1, got"):
        build(scales)


def test_a_scale_that_the_vae_lacks_is_refused():
    with pytest.raises(Exception, match="scale 4 needs a VAE with as many scales"):
        build([1, 4])


def test_a_loss_that_takes_nothing_from_a_decoder_is_there_once():
    sparsity = {"_target_": "routed.ocl_msf.losses.SlotSparsity", "attention_path": "perceptual_grouping.attention"}
    losses = guided_losses([1, 2], tokens=LOSS, sparsity=sparsity)
    assert list(losses) == ["tokens", "sparsity", "tokens_2"]
