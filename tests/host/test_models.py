"""Model blocks of the host: equations written out, and videos that equal their frames."""

import copy

import pytest
import timm
import torch
from ocl import conditioning, decoding, losses
from ocl import neural_networks as networks
from ocl.feature_extractors import (
    DVAEFeatureExtractor,
    ImageFeatureExtractor,
    SAViFeatureExtractor,
    SlotAttentionFeatureExtractor,
    TimmFeatureExtractor,
)
from ocl.feature_extractors.utils import grid_positions
from ocl.neural_networks import positional_embedding, slate, wrappers
from ocl.neural_networks.convenience import get_activation_fn
from ocl.perceptual_grouping import SlotAttention, SlotAttentionGrouping
from ocl.typing import FeatureExtractorOutput, PerceptualGroupingOutput
from ocl.utils.masking import CreateRandomMaskPatterns, CreateSlotMask
from ocl.utils.resizing import Resize, resize_patches_to_image
from torch import nn
from torch.nn import functional as F


@pytest.fixture(autouse=True)
def fixed_seed():
    torch.manual_seed(0)


def assert_close(actual, expected, **tolerance):
    torch.testing.assert_close(actual, expected, **tolerance)


# Features


class MultiScale(ImageFeatureExtractor):
    def forward_images(self, images):
        coarse = F.avg_pool2d(images, 2)
        aux = {"scales": (images, coarse), "mean": images.mean((1, 2, 3)), "name": "pooled"}
        return coarse.flatten(2).transpose(1, 2), None, aux


def test_features_of_a_video_are_those_of_its_frames():
    video = torch.rand(2, 3, 5, 8, 6).transpose(1, 2)  # frames lie behind channels in memory
    for extractor in (SAViFeatureExtractor(), SAViFeatureExtractor(True), SlotAttentionFeatureExtractor()):
        out = extractor(video)
        assert out.features.shape[-1] == extractor.feature_dim and out.positions.shape[-1] == 2
        for index, frame in enumerate(out):
            assert_close(frame.features, extractor(video[:, index]).features)
            assert frame.positions is out.positions
    aux = MultiScale()(video).aux_features
    assert_close(aux["scales"][0], video)
    assert aux["scales"][1].shape == (2, 5, 3, 4, 3) and aux["mean"].shape == (2, 5) and aux["name"] == "pooled"
    image_output = MultiScale()(video[:, 0])
    assert [frame.features.shape for frame in image_output] == [(2, 12, 3)]
    with pytest.raises(ValueError, match="shape"):
        MultiScale()(torch.rand(3, 8, 6))


def test_positions_run_from_corner_to_corner_rows_first():
    positions = grid_positions(3, 2)
    assert positions[:, 0].tolist() == [[0.0, 0.0], [0.5, 0.0], [1.0, 0.0]] and positions[0, 1].tolist() == [
        0,
        1,
    ]
    features = SlotAttentionFeatureExtractor()(torch.rand(1, 3, 3, 2))
    assert_close(features.positions, positions.view(6, 2))


def test_dvae_tokens_are_one_hot_and_targets_are_shifted_by_one():
    embed = slate.OneHotDictionary(8, 4)
    place = positional_embedding.LearnedAdditivePositionalEmbed(max_len=10, d_model=4)
    extractor = DVAEFeatureExtractor(nn.Conv2d(3, 7, 4, 4), place, embed, tau=0.5)
    out = extractor(torch.rand(2, 3, 12, 12))
    assert_close(out.aux_features["z"].sum(1), torch.ones(2, 3, 3))
    tokens = out.aux_features["z_hard"].argmax(-1) + 1
    assert_close(out.features, embed.dictionary(tokens) + place.pe[:, 1:])
    assert_close(out.aux_features["targets"][:, 1:], out.features[:, :-1])
    first = embed.dictionary.weight[0] + place.pe[0, 0]
    assert_close(out.aux_features["targets"][:, 0], first.expand(2, 4))


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "beit_base_patch16_224"])
def test_timm_levels_are_what_the_blocks_compute(name):
    extractor = TimmFeatureExtractor(name, feature_level=["key2", 1], aux_features="cls1", freeze=True).eval()
    assert len(extractor.model.blocks) == 2 and not any(p.requires_grad for p in extractor.parameters())
    block = extractor.model.blocks[1]
    seen = {}
    block.norm1.register_forward_hook(lambda module, args, out: seen.update(before=args[0], normed=out))
    out = extractor(torch.rand(1, 3, 224, 224))
    dim = extractor.model.embed_dim
    keys = seen["normed"] @ block.attn.qkv.weight[dim : 2 * dim].T
    if block.attn.qkv.bias is not None:
        keys = keys + block.attn.qkv.bias[dim : 2 * dim]
    expected = torch.cat([keys[:, 1:], seen["before"][:, 1:]], dim=-1)
    assert_close(out.features, expected, atol=1e-4, rtol=1e-4)
    assert_close(out.aux_features["cls1"], seen["before"][:, :1])
    assert extractor.feature_dim == 2 * dim and out.positions.shape == (196, 2)


def test_timm_freezing_and_models_of_our_own():
    partly = TimmFeatureExtractor("vit_tiny_patch16_224", freeze=True, n_blocks_to_unfreeze=1)
    trained = {name.split("blocks.")[-1].split(".")[0] for name, p in partly.named_parameters() if p.requires_grad}
    assert trained == {"11", "model"}  # the last block and the norm behind it
    frozen = TimmFeatureExtractor("resnet18", feature_level=2, freeze=True)
    before = copy.deepcopy(frozen.state_dict())
    frozen.train()(torch.rand(2, 3, 32, 32))
    assert all(torch.equal(value, before[key]) for key, value in frozen.state_dict().items())
    savi = TimmFeatureExtractor("resnet34_savi", feature_level=4)
    assert savi(torch.rand(1, 3, 32, 32)).features.shape == (1, 16, 512)
    for options in (dict(feature_level=[1, 2]), dict(), dict(feature_level=1, aux_features="key1")):
        with pytest.raises(ValueError, match="feature_level"):
            TimmFeatureExtractor("resnet18", **options)
    with pytest.raises(ValueError, match="blocks"):
        TimmFeatureExtractor("vit_tiny_patch16_224", feature_level="key13")
    for name in ("vit_small_patch16_224_mocov3", "vit_base_patch16_224_msn", "vit_base_patch16_224_mae"):
        assert timm.is_model(name)


# Slot attention


def slot_attention_equation(module, inputs, slots, iters, heads, masks=None):
    """Algorithm 1 of Locatello et al. (2020), with softmax over slots and heads together."""
    features = module.norm_input(inputs)

    def split(x):
        return x.unflatten(-1, (heads, -1)).transpose(1, 2)  # b heads tokens d

    keys, values = split(module.to_k(features)), split(module.to_v(features))
    for _ in range(iters):
        queries = split(module.to_q(module.norm_slots(slots)))
        logits = queries @ keys.transpose(-1, -2) / keys.shape[-1] ** 0.5
        if masks is not None:
            logits = logits.masked_fill(masks[:, None, :, None], -torch.inf)
        attention = logits.flatten(1, 2).softmax(dim=1).view_as(logits)
        weights = (attention + 1e-8) / (attention + 1e-8).sum(-1, keepdim=True)
        updates = (weights @ values).transpose(1, 2).flatten(2)
        slots = module.gru(updates.flatten(0, 1), slots.flatten(0, 1)).view_as(slots)
        if module.ff_mlp is not None:
            slots = module.ff_mlp(slots)
    return slots, attention.mean(1)


def make_slot_attention(**options):
    mlp = networks.build_two_layer_mlp(8, 8, 16, initial_layer_norm=True, residual=True)
    return SlotAttention(8, 6, kvq_dim=12, ff_mlp=mlp, **options)


@pytest.mark.parametrize("heads, bias, masked", [(1, False, False), (3, True, False), (2, True, True)])
def test_slot_attention_is_its_equation(heads, bias, masked):
    module = make_slot_attention(n_heads=heads, use_projection_bias=bias).double()
    inputs = torch.randn(2, 9, 6, dtype=torch.double, requires_grad=True)
    slots = torch.randn(2, 4, 8, dtype=torch.double)
    masks = torch.tensor([[False, False, True, False], [False, True, True, False]]) if masked else None
    actual = module(inputs, slots, masks)
    expected = slot_attention_equation(module, inputs, slots, 3, heads, masks)
    assert_close(actual, expected)
    gradients = [torch.autograd.grad(out[0].square().sum(), inputs)[0] for out in (actual, expected)]
    assert_close(*gradients)
    if masked:
        assert (actual[1][masks] == 0).all()


def test_slot_attention_survives_autocast_and_images_without_slots():
    module = make_slot_attention(n_heads=2)
    inputs, slots = torch.randn(2, 4096, 6), torch.randn(2, 4, 8)
    expected, _ = module(inputs, slots)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        actual, attention = module(inputs, slots)
    assert actual.dtype == attention.dtype == torch.float32
    assert_close(actual, expected, atol=0.02, rtol=0)
    no_slots = torch.tensor([[True] * 4, [False] * 4])
    masked, _ = module(inputs, slots, no_slots)
    masked.sum().backward()
    assert masked.isfinite().all() and module.to_k.weight.grad.isfinite().all()


def test_implicit_differentiation_is_one_more_step_with_its_own_gradient():
    module = make_slot_attention(iters=2, use_implicit_differentiation=True)
    inputs, slots = torch.randn(2, 9, 6), torch.randn(2, 4, 8, requires_grad=True)
    out, _ = module(inputs, slots)
    assert torch.autograd.grad(out.sum(), slots, allow_unused=True, retain_graph=True) == (None,)
    settled, _ = slot_attention_equation(module, inputs, slots, 2, 1)
    again, _ = slot_attention_equation(module, inputs, settled.detach(), 1, 1)
    parameters = list(module.parameters())
    gradients = [torch.autograd.grad(x.square().sum(), parameters) for x in (out, again)]
    assert_close(out, again)
    assert_close(*gradients, atol=1e-4, rtol=1e-4)


def test_parameters_have_the_names_that_checkpoints_of_others_use():
    """Of what configs build; SlotAttention's and the decoders' are in the framework's description."""
    mlp = networks.build_two_layer_mlp(6, 6, 8, initial_layer_norm=True, residual=True)
    embedding = wrappers.Sequential(positional_embedding.SoftPositionEmbed(2, 6), mlp)
    names = ["layers.0.dense"] + [f"layers.1.module.{n}" for n in (0, 1, 3)]
    assert list(embedding.state_dict()) == [f"{name}.{x}" for name in names for x in ("weight", "bias")]
    encoder = networks.build_transformer_encoder(6, 4, n_layers=1, n_heads=2)
    assert {name.split(".")[0] for name in encoder.state_dict()} == {"0", "1", "2"}
    decoder = networks.build_transformer_decoder(6, 6, n_layers=2, n_heads=2)
    assert {".".join(name.split(".")[:2]) for name in decoder.state_dict()} == {"layers.0", "layers.1"}
    assert list(positional_embedding.LearnedAdditivePositionalEmbed(3, 6).state_dict()) == ["pe"]


def test_grouping_embeds_positions_and_fills_empty_slots():
    embedding = wrappers.Sequential(positional_embedding.SoftPositionEmbed(2, 6), nn.LayerNorm(6))
    grouping = SlotAttentionGrouping(6, 8, positional_embedding=embedding, use_empty_slot_for_masked_slots=True)
    features = FeatureExtractorOutput(torch.randn(2, 9, 6), grid_positions(3, 3).view(9, 2))
    initial, mask = torch.randn(2, 3, 8), torch.tensor([[False, False, True], [True, False, False]])
    out = grouping(features, initial, slot_mask=mask)
    embedded = embedding(features.features, features.positions)
    expected, attention = grouping.slot_attention(embedded, initial, mask)
    assert_close(out.objects, expected.where(~mask[..., None], grouping.empty_slot))
    assert_close(out.feature_attributions, attention)
    assert out.is_empty is mask and "slot_attention.gru.weight_hh" in grouping.state_dict()
    with pytest.raises(ValueError, match="heads"):
        SlotAttentionGrouping(6, 8, n_heads=3)


# Initial slots


def test_conditionings_draw_what_their_parameters_say():
    def ramp(tensor):
        tensor.copy_(torch.arange(tensor.numel()).view_as(tensor))

    quiet = dict(mean_init=ramp, logsigma_init=lambda tensor: tensor.fill_(-30.0))
    for cls in (conditioning.RandomConditioning, conditioning.RandomConditioningWithQMCSampling):
        assert_close(cls(5, 3, **quiet)(2), torch.arange(5.0).expand(2, 3, 5))
        assert not list(cls(5, 3, learn_mean=False, learn_std=False).parameters())
    assert_close(
        conditioning.SlotwiseLearntConditioning(5, 3, **quiet)(2),
        torch.arange(15.0).view(1, 3, 5).expand(2, 3, 5),
    )
    learnt = conditioning.LearntConditioning(5, 3, slot_init=ramp)
    assert_close(learnt(batch_size=2)[1], torch.arange(15.0).view(3, 5))
    standard = dict(mean_init=nn.init.zeros_, logsigma_init=nn.init.zeros_)
    even = conditioning.RandomConditioningWithQMCSampling(4, 8, **standard)(256)
    uneven = conditioning.RandomConditioning(4, 8, **standard)(256)
    assert_close(even.std((0, 1)), torch.ones(4), atol=0.02, rtol=0)
    assert even.mean((0, 1)).abs().max() < 0.1 * uneven.mean((0, 1)).abs().max()


# Decoders


def test_mixture_decoders_mix_objects_and_treat_frames_alike():
    backbone = decoding.get_savi_decoder_backbone(5, output_dim=4, channel_multiplier=0.125)
    embedding = positional_embedding.SoftPositionEmbed(2, 5, cnn_channel_order=True)
    decoder = decoding.SlotAttentionDecoder(backbone, "sigmoid", embedding)
    video = torch.randn(2, 3, 4, 5)
    out = decoder(video)
    assert out.masks.shape == (2, 3, 4, 64, 64) and out.object_reconstructions.shape == (2, 3, 4, 3, 64, 64)
    assert_close(out.masks.sum(-3), torch.ones(2, 3, 64, 64))
    assert_close(out.reconstruction, (out.object_reconstructions * out.masks.unsqueeze(-3)).sum(-4))
    assert out.object_reconstructions.min() >= 0
    assert_close(out.reconstruction[:, 1], decoder(video[:, 1]).reconstruction)
    flow = decoding.SlotAttentionOpticalFlowDecoder(nn.Conv2d(5, 3, 1))(video[:, 0])
    assert flow.predicted_flow.shape == (2, 2, 8, 8) and flow.object_flows.shape == (2, 4, 2, 8, 8)
    with pytest.raises(ValueError, match="objects"):
        decoder(torch.randn(4, 5))


def test_dvae_networks_are_inverse_in_shape():
    encoder, decoder = decoding.get_dvae_encoder(9, patch_size=4), decoding.get_dvae_decoder(9)
    codes = encoder(torch.rand(1, 3, 8, 12))
    assert codes.shape == (1, 9, 2, 3)
    assert decoding.DVAEDecoder(decoder)(codes).reconstruction.shape == (1, 3, 8, 12)
    assert decoding.get_slotattention_decoder_backbone(2)(torch.rand(1, 2, 8, 8)).shape == (1, 4, 128, 128)


def test_patch_decoder_mixes_patches():
    decoder = decoding.PatchDecoder(5, 3, 16, nn.Linear, decoder_input_dim=6, upsample_target=2)
    slots, target = torch.randn(2, 4, 5), torch.rand(2, 4, 3)
    out = decoder(slots, target, image=torch.rand(2, 3, 8, 8))
    raw = decoder.decoder(decoder.inp_transform(slots)[:, :, None] + decoder.pos_embed)
    alpha = raw[..., -1].softmax(1)
    assert_close(out.reconstruction, torch.einsum("bkpd,bkp->bpd", raw[..., :-1], alpha))
    assert_close(out.masks_as_image, resize_patches_to_image(alpha, size=8))
    assert out.target.shape == (2, 16, 3) and out.target[:, 0].tolist() == target[:, 0].tolist()


@pytest.mark.parametrize("use_bos_token", [True, False])
def test_autoregressive_decoder_sees_only_earlier_patches(use_bos_token):
    decoder = decoding.AutoregressivePatchDecoder(
        5,
        7,
        num_patches=4,
        decoder=lambda a, b: networks.build_transformer_decoder(
            a, b, n_layers=2, n_heads=2, return_attention_weights=True, attention_weight_type="mean"
        ),
        decoder_dim=8,
        decoder_cond_dim=8,
        use_decoder_masks=True,
        use_bos_token=use_bos_token,
        use_input_transform=True,
        use_output_transform=True,
        use_positional_embedding=True,
    )
    slots, target = torch.randn(2, 3, 4, 5), torch.randn(2, 3, 4, 7)  # b t k d, b t p d
    empty = torch.tensor([False, False, False, True]).expand(2, 3, 4)
    out = decoder(slots, torch.rand(2, 3, 4, 4), target, empty_objects=empty)
    assert out.reconstruction.shape == (2, 3, 4, 7)
    assert_close(out.masks.sum(-2), torch.ones(2, 3, 4))
    assert (out.masks[:, :, 3] == 0).all()
    changed = target.clone()
    changed[:, :, 2] += 1
    moved = decoder(slots, None, changed, empty_objects=empty).reconstruction != out.reconstruction
    assert moved.any(-1)[0, 0].tolist() == [False, False, not use_bos_token, True]


def test_attention_of_the_transformer_decoder_comes_for_free():
    plain = networks.build_transformer_decoder(8, 8, 2, 2).eval()
    target, memory = torch.randn(2, 5, 8), torch.randn(2, 4, 8)
    mask = torch.full((5, 5), -torch.inf).triu(1)
    outputs = {}
    for kind in (0, -1, "mean"):
        decoder = networks.build_transformer_decoder(
            8, 8, 2, 2, return_attention_weights=True, attention_weight_type=kind
        ).eval()
        decoder.load_state_dict(plain.state_dict())
        output, outputs[kind] = decoder(target, memory, mask)
        assert_close(output, plain(target, memory, mask))
    assert_close(outputs["mean"], (outputs[0] + outputs[-1]) / 2)
    with pytest.raises(ValueError, match="attention_weight_type"):
        networks.build_transformer_decoder(8, 8, 2, 2, return_attention_weights=True, attention_weight_type=2)
    assert networks.build_transformer_encoder(8, 3, 1, 2)(target).shape == (2, 5, 3)


# Small parts


def test_perceptrons_and_activations():
    mlp = networks.build_mlp(3, 3, [4], "relu_squared", torch.sin, initial_layer_norm=True, residual=True)
    x = torch.randn(5, 3)
    norm, first, _, second, _ = mlp.module
    assert_close(mlp(x), x + second(F.relu(first(norm(x))) ** 2).sin())
    assert first.bias.abs().sum() == 0
    assert get_activation_fn("LEAKY_RELU", leaky_relu_slope=0.5)(torch.tensor(-2.0)) == -1
    for name in ("leaky_relu", "gelu"):
        with pytest.raises(ValueError, match="relu"):
            get_activation_fn(name)


def test_reconstruction_losses():
    x, target = torch.randn(4, 3, 5, requires_grad=True), torch.randn(4, 3, 5).softmax(-1).requires_grad_()
    expected = {
        "mse": ((x - target) ** 2).mean(),
        "mse_sum": ((x - target) ** 2).sum() / 4,
        "l1": (x - target).abs().mean(),
        "cosine": -(F.normalize(x, dim=-1) * F.normalize(target, dim=-1)).sum(-1).mean(),
        "cross_entropy_sum": 3 * F.cross_entropy(x.flatten(0, 1), target.flatten(0, 1)),
    }
    for kind, value in expected.items():
        loss = losses.ReconstructionLoss(kind, weight=0.5)(x, target)
        assert_close(loss, 0.5 * value)
        loss.backward()
    assert x.grad is not None and target.grad is None
    normalized = losses.ReconstructionLoss("mse", normalize_target=True)(F.layer_norm(target, (5,)), target)
    assert_close(normalized, torch.tensor(0.0), atol=0.1, rtol=0)
    with pytest.raises(ValueError, match="loss_type"):
        losses.ReconstructionLoss("mae")


def test_duplicate_suppression_counts_pairs_of_present_slots():
    slots = torch.tensor([[[1.0, 0.0], [2.0, 0.0], [0.0, 1.0]]])
    loss = losses.LatentDupplicateSuppressionLoss(weight=2.0)
    assert loss(PerceptualGroupingOutput(slots)).item() == pytest.approx(2 / 3)
    for is_empty, expected in (([0, 0, 1], 2.0), ([0, 1, 0], 0.0), ([1, 1, 1], 0.0)):
        grouping = PerceptualGroupingOutput(slots, is_empty=torch.tensor([is_empty], dtype=torch.bool))
        assert loss(grouping).item() == pytest.approx(expected)


def test_resizing_images_and_patches():
    images = torch.rand(2, 3, 4, 6, 6)
    expected = F.interpolate(images.flatten(0, 1), size=(5, 7), mode="bilinear").view(2, 3, 4, 5, 7)
    assert_close(Resize((5, 7))(images), expected)
    assert_close(Resize((5, 7), channels_last=True)(images.movedim(2, -1)), expected)
    assert_close(Resize()(images, size_tensor=torch.tensor([[5, 7]] * 2)), expected)
    assert_close(Resize()(images, size_tensor=torch.zeros(2, 1, 5, 7)), expected)
    patches = images.flatten(-2)
    assert_close(Resize(12, patch_mode=True)(patches), resize_patches_to_image(patches, scale_factor=2))
    for broken in (
        lambda: Resize()(images),
        lambda: Resize(5)(images[0, 0, 0]),
        lambda: Resize(5, "lanczos"),
    ):
        with pytest.raises(ValueError):
            broken()
    with pytest.raises(ValueError, match="square"):
        resize_patches_to_image(patches[..., 1:], size=3)


def test_created_masks():
    assert CreateSlotMask(3)(torch.tensor([2, 0])).tolist() == [[False, False, True], [True] * 3]
    for options in (dict(pattern="random"), dict(pattern="blocks", n_cols=3)):
        masks = CreateRandomMaskPatterns(**options)(torch.zeros(2, 7, 10, 11))
        assert_close(masks.sum(1), torch.ones(2, 10, 11))
        assert (masks.sum((2, 3)) > 0).all()
