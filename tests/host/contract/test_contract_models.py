"""Contract of the model building blocks: features, grouping, conditioning, decoders, losses."""

import dataclasses
import math

import ocl.typing
import pytest
import torch
from ocl import conditioning as C
from ocl import decoding as D
from ocl import neural_networks as N
from ocl.feature_extractors import (
    DVAEFeatureExtractor,
    SAViFeatureExtractor,
    SlotAttentionFeatureExtractor,
)
from ocl.feature_extractors.utils import (
    FeatureExtractor,
    ImageFeatureExtractor,
    cnn_compute_positions_and_flatten,
    transformer_compute_positions,
)
from ocl.losses import LatentDupplicateSuppressionLoss, ReconstructionLoss
from ocl.neural_networks import positional_embedding as PE
from ocl.neural_networks import slate, wrappers
from ocl.neural_networks.convenience import get_activation_fn
from ocl.perceptual_grouping import SlotAttention, SlotAttentionGrouping
from ocl.scheduling import CosineAnnealingHPScheduler, LinearHPScheduler
from ocl.utils.masking import CreateRandomMaskPatterns, CreateSlotMask
from ocl.utils.resizing import Resize, resize_patches_to_image
from torch import nn
from torch.nn import functional as F


def field_defaults(cls):
    return {f.name: f.default is dataclasses.MISSING and "required" or f.default for f in dataclasses.fields(cls)}


def shapes(module):
    return [tuple(p.shape) for p in module.parameters()]


def grid(height, width):
    rows = torch.linspace(0, 1, height).view(-1, 1).expand(height, width)
    cols = torch.linspace(0, 1, width).view(1, -1).expand(height, width)
    return torch.stack([rows, cols], dim=-1)


# --------------------------------------------------------------------------------------------------------------- typing


@pytest.mark.core
def test_output_dataclasses():
    assert field_defaults(ocl.typing.FeatureExtractorOutput) == {
        "features": "required",
        "positions": "required",
        "aux_features": None,
    }
    assert field_defaults(ocl.typing.PerceptualGroupingOutput) == {
        "objects": "required",
        "is_empty": None,
        "feature_attributions": None,
    }
    assert list(field_defaults(ocl.typing.FrameFeatures)) == ["features", "positions"]
    assert list(field_defaults(D.SimpleReconstructionOutput)) == ["reconstruction"]
    names = ["reconstruction", "object_reconstructions", "masks"]
    assert list(field_defaults(D.ReconstructionOutput)) == names
    assert field_defaults(D.PatchReconstructionOutput) == {
        "reconstruction": "required",
        "masks": "required",
        "masks_as_image": None,
        "target": None,
    }


@pytest.mark.core
def test_type_aliases_exist():
    for name in """ImageData VideoData ImageOrVideoData TextData CNNImageFeatures ImageFeatures
        TransformerImageFeatures VideoFeatures ImageOrVideoFeatures Positions PooledFeatures
        ObjectFeatures EmptyIndicator ObjectFeatureAttributions ConditioningOutput""".split():
        assert hasattr(ocl.typing, name), name


@pytest.mark.modern
@pytest.mark.compat
def test_feature_output_iterates_over_frames_of_videos():
    video = ocl.typing.FeatureExtractorOutput(torch.rand(2, 3, 5, 7), torch.rand(5, 2))
    frames = list(video)
    assert [f.features.shape for f in frames] == [(2, 5, 7)] * 3
    assert torch.equal(frames[1].features, video.features[:, 1])
    image = ocl.typing.FeatureExtractorOutput(torch.rand(2, 5, 7), torch.rand(5, 2))
    assert [f.features.shape for f in image] == [(2, 5, 7)]


# ----------------------------------------------------------------------------------------------------------- extractors


class Pooler(ImageFeatureExtractor):
    def __init__(self, mode):
        super().__init__()
        self.mode = mode

    def forward_images(self, images):
        assert images.dim() == 4
        features = images.flatten(2).transpose(1, 2)
        positions = torch.zeros(features.shape[1], 2)
        return {
            1: (features,),
            2: (features, positions),
            3: (features, positions, {"sum": images.sum((1, 2, 3)), "raw": images}),
            4: (features,) * 4,
            "bare": features,
        }[self.mode]


@pytest.mark.core
def test_image_feature_extractor_handles_images_and_videos():
    assert issubclass(ImageFeatureExtractor, FeatureExtractor)
    with pytest.raises(TypeError):
        ImageFeatureExtractor()
    images, video = torch.rand(2, 3, 4, 5), torch.rand(2, 6, 3, 4, 5)
    out = Pooler(2)(video=images)
    assert isinstance(out, ocl.typing.FeatureExtractorOutput)
    assert out.features.shape == (2, 20, 3) and out.positions.shape == (20, 2)
    assert out.aux_features is None
    out = Pooler(3)(video)
    assert out.features.shape == (2, 6, 20, 3) and out.positions.shape == (20, 2)
    assert torch.allclose(out.aux_features["sum"], video.sum((2, 3, 4)), atol=1e-4)
    assert torch.equal(out.aux_features["raw"], video)
    bare = Pooler("bare")(images)
    assert bare.features.shape == (2, 20, 3)
    assert bare.positions is None and bare.aux_features is None


@pytest.mark.core
def test_image_feature_extractor_errors():
    with pytest.raises((AssertionError, ValueError)):
        Pooler(2)(torch.rand(3, 4, 5))
    for mode in (1, 4):
        with pytest.raises(RuntimeError):
            Pooler(mode)(torch.rand(1, 3, 4, 5))


@pytest.mark.modern
@pytest.mark.core
def test_image_feature_extractor_video_corner_cases():
    video = torch.rand(2, 3, 6, 4, 5).transpose(1, 2)  # not contiguous
    assert Pooler(2)(video).features.shape == (2, 6, 20, 3)
    assert Pooler("bare")(video.contiguous()).features.shape == (2, 6, 20, 3)


@pytest.mark.core
def test_position_helpers_for_own_extractors():
    maps = torch.rand(2, 5, 3, 4)
    flat, positions = cnn_compute_positions_and_flatten(maps)
    assert torch.equal(flat, maps.flatten(2).transpose(1, 2))
    assert torch.allclose(positions, grid(3, 4).view(-1, 2))
    tokens = transformer_compute_positions(torch.rand(2, 9, 5))
    assert torch.allclose(tokens, grid(3, 3).view(-1, 2))
    with pytest.raises((AssertionError, ValueError)):
        transformer_compute_positions(torch.rand(2, 8, 5))


@pytest.mark.compat
def test_slot_attention_feature_extractor():
    extractor = SlotAttentionFeatureExtractor()
    assert extractor.feature_dim == 64
    assert shapes(extractor) == [(64, 3, 5, 5), (64,)] + [(64, 64, 5, 5), (64,)] * 3
    images = torch.rand(2, 3, 6, 9)
    x, weights = images, list(extractor.parameters())
    for weight, bias in zip(weights[::2], weights[1::2]):
        x = F.relu(F.conv2d(x, weight, bias, padding=2))
    out = extractor(video=images)
    assert torch.allclose(out.features, x.flatten(2).transpose(1, 2), atol=1e-5)
    assert torch.allclose(out.positions, grid(6, 9).view(-1, 2))
    assert extractor(images[:, None].expand(-1, 2, -1, -1, -1).contiguous()).features.shape == (
        2,
        2,
        54,
        64,
    )


@pytest.mark.compat
@pytest.mark.parametrize("larger, channels", [(False, 32), (True, 64)])
def test_savi_feature_extractor(larger, channels):
    extractor = SAViFeatureExtractor(larger_input_arch=larger)
    assert extractor.feature_dim == channels
    c = channels
    assert shapes(extractor) == [(c, 3, 5, 5), (c,)] + [(c, c, 5, 5), (c,)] * 3
    video = torch.rand(2, 2, 3, 8, 8)
    x, weights = video.flatten(0, 1), list(extractor.parameters())
    for index, (weight, bias) in enumerate(zip(weights[::2], weights[1::2])):
        if index == 0 and larger:
            x = F.conv2d(F.pad(x, (1, 2, 1, 2)), weight, bias, stride=2)
        else:
            x = F.conv2d(x, weight, bias, padding=2)
        if index < 3:
            x = F.relu(x)
    out = extractor(video)
    expected = x.flatten(2).transpose(1, 2).view(2, 2, -1, channels)
    assert torch.allclose(out.features, expected, atol=1e-5)
    assert out.positions.shape == (16 if larger else 64, 2)


def make_dvae(tau=1.0, hard=False, vocab=6, dim=5):
    return DVAEFeatureExtractor(
        encoder=nn.Conv2d(3, vocab, 4, stride=4),
        positional_encoder=PE.LearnedAdditivePositionalEmbed(max_len=10, d_model=dim),
        dictionary=slate.OneHotDictionary(vocab + 1, dim),
        tau=tau,
        hard=hard,
    )


@pytest.mark.compat
def test_dvae_feature_extractor():
    torch.manual_seed(0)
    extractor = make_dvae()
    out = extractor(video=torch.rand(2, 3, 12, 12))
    z, z_hard, targets = (out.aux_features[k] for k in ("z", "z_hard", "targets"))
    assert set(out.aux_features) == {"z", "z_hard", "targets"} and out.positions is None
    assert z.shape == (2, 6, 3, 3) and torch.allclose(z.sum(1), torch.ones(2, 3, 3))
    assert z_hard.shape == (2, 9, 6) and torch.all((z_hard == 0) | (z_hard == 1))
    assert torch.all(z_hard.sum(-1) == 1) and not z_hard.requires_grad and z.requires_grad
    # Token ids are shifted by one as index 0 is the begin-of-sequence token.
    tokens = torch.cat([torch.zeros(2, 1, dtype=torch.long), z_hard.argmax(-1) + 1], dim=1)
    table = extractor.dictionary.dictionary.weight
    sequence = table[tokens] + extractor.positional_encoder.pe[:, :10]
    assert torch.allclose(out.features, sequence[:, 1:])
    assert torch.allclose(targets, sequence[:, :-1])


@pytest.mark.compat
def test_dvae_feature_extractor_scheduled_hard_and_video():
    tau = CosineAnnealingHPScheduler(start_value=1.0, end_value=0.1, start_step=0, end_step=10)
    extractor = make_dvae(tau=tau, hard=True)
    with pytest.raises(RuntimeError):
        extractor(torch.rand(1, 3, 12, 12))
    tau.update_global_step(5)
    out = extractor(torch.rand(2, 2, 3, 12, 12))
    assert out.features.shape == (2, 2, 9, 5)
    assert out.aux_features["z"].shape == (2, 2, 6, 3, 3)
    z = out.aux_features["z"]
    assert torch.allclose(z.max(2).values, torch.ones(2, 2, 3, 3))


@pytest.mark.compat
def test_timm_vit_features():
    from ocl.feature_extractors import TimmFeatureExtractor

    images = torch.rand(1, 3, 224, 224)
    with torch.no_grad():
        plain = TimmFeatureExtractor("vit_tiny_patch16_224").eval()
        out = plain(video=images)
        assert out.features.shape == (1, 196, 192) and plain.feature_dim == 192
        assert torch.allclose(out.positions, grid(14, 14).view(-1, 2)) and out.aux_features is None

        several = TimmFeatureExtractor(
            "vit_tiny_patch16_224", feature_level=[2, "key1"], aux_features=["block1", "value2"]
        ).eval()
        out = several(images)
        assert out.features.shape == (1, 196, 384) and several.feature_dim == 384
        assert set(out.aux_features) == {"block1", "value2"}
        assert all(v.shape == (1, 196, 192) for v in out.aux_features.values())
        video = TimmFeatureExtractor("vit_tiny_patch16_224", feature_level=1).eval()
        assert video(images[:, None].repeat(1, 2, 1, 1, 1)).features.shape == (1, 2, 196, 192)
    assert sum(p.numel() for p in several.parameters()) < sum(p.numel() for p in plain.parameters())


@pytest.mark.compat
def test_timm_freezing_and_cnn_models():
    from ocl.feature_extractors import TimmFeatureExtractor

    frozen = TimmFeatureExtractor("vit_tiny_patch16_224", feature_level=12, freeze=True)
    assert not any(p.requires_grad for p in frozen.parameters())
    assert not frozen(torch.rand(1, 3, 224, 224)).features.requires_grad
    partly = TimmFeatureExtractor("vit_tiny_patch16_224", freeze=True, n_blocks_to_unfreeze=2)
    names = [n for n, p in partly.named_parameters() if p.requires_grad and "blocks." in n]
    trainable = {name.split("blocks.")[1].split(".")[0] for name in names}
    assert trainable == {"10", "11"}
    attention = TimmFeatureExtractor("vit_tiny_patch16_224", freeze=True, unfreeze_attention=True)
    names = [n for n, p in attention.named_parameters() if p.requires_grad]
    assert names and all(".attn." in n for n in names)

    cnn = TimmFeatureExtractor("resnet18", feature_level=2, freeze=True)
    out = cnn(torch.rand(1, 3, 64, 64))
    assert out.features.shape == (1, 64, 128) and cnn.feature_dim == 128
    assert torch.allclose(out.positions, grid(8, 8).view(-1, 2))
    assert cnn.train().training and cnn(torch.rand(1, 3, 64, 64)) is not None
    assert not any(m.training for m in cnn.modules() if isinstance(m, nn.BatchNorm2d))
    savi = TimmFeatureExtractor("resnet34_savi", feature_level=4)
    assert savi(torch.rand(1, 3, 128, 128)).features.shape == (1, 256, 512)
    assert not any(isinstance(m, nn.BatchNorm2d) for m in savi.modules())


@pytest.mark.compat
@pytest.mark.parametrize(
    "kwargs",
    [
        dict(model_name="resnet18"),
        dict(model_name="resnet18", feature_level=[1, 2]),
        dict(model_name="resnet18", feature_level="key1"),
        dict(model_name="resnet18", feature_level=1, aux_features=1),
        dict(model_name="vit_tiny_patch16_224", feature_level="what1"),
        dict(model_name="vit_tiny_patch16_224", feature_level=40),
    ],
)
def test_timm_invalid_arguments(kwargs):
    from ocl.feature_extractors import TimmFeatureExtractor

    with pytest.raises(ValueError):
        TimmFeatureExtractor(**kwargs)


# ------------------------------------------------------------------------------------------------------- slot attention


def reference_slot_attention(module, inputs, slots, iters, mask=None, heads=1, eps=1e-8):
    """Textbook slot attention computed head by head from the module's parameters."""
    batch, n, _ = inputs.shape
    x = F.layer_norm(inputs, inputs.shape[-1:], module.norm_input.weight, module.norm_input.bias)
    k, v = module.to_k(x), module.to_v(x)
    dim = k.shape[-1] // heads
    for _ in range(iters):
        normed = F.layer_norm(slots, slots.shape[-1:], module.norm_slots.weight, module.norm_slots.bias)
        q = module.to_q(normed)
        logits = []
        for h in range(heads):
            part = slice(h * dim, (h + 1) * dim)
            logits.append(q[..., part] @ k[..., part].transpose(1, 2) / math.sqrt(dim))
        logits = torch.stack(logits, dim=2)  # batch, slots, heads, inputs
        if mask is not None:
            logits = logits.masked_fill(mask[:, :, None, None], -math.inf)
        weights = logits.exp() / logits.exp().sum(dim=(1, 2), keepdim=True)
        normalized = (weights + eps) / (weights + eps).sum(-1, keepdim=True)
        updates = torch.cat([normalized[:, :, h] @ v[..., h * dim : (h + 1) * dim] for h in range(heads)], dim=-1)
        slots = module.gru(updates.flatten(0, 1), slots.flatten(0, 1)).view_as(slots)
        if module.ff_mlp is not None:
            slots = module.ff_mlp(slots)
    return slots, weights.mean(dim=2)


@pytest.mark.core
@pytest.mark.parametrize("heads, bias", [(1, False), (2, True)])
def test_slot_attention_formula(heads, bias):
    torch.manual_seed(1)
    module = SlotAttention(
        dim=6,
        feature_dim=5,
        kvq_dim=8,
        n_heads=heads,
        iters=2,
        ff_mlp=N.build_two_layer_mlp(6, 6, 7, initial_layer_norm=True, residual=True),
        use_projection_bias=bias,
    )
    inputs, conditioning = torch.randn(3, 10, 5), torch.randn(3, 4, 6)
    slots, attention = module(inputs, conditioning)
    expected = reference_slot_attention(module, inputs, conditioning, 2, heads=heads)
    assert torch.allclose(slots, expected[0], atol=1e-5)
    assert torch.allclose(attention, expected[1], atol=1e-6)
    assert attention.shape == (3, 4, 10)
    assert torch.allclose(attention.sum(1), torch.full((3, 10), 1 / heads), atol=1e-5)


@pytest.mark.core
def test_slot_attention_parameter_names():
    names = set(SlotAttention(4, 5).state_dict())
    assert names == {
        "to_q.weight",
        "to_k.weight",
        "to_v.weight",
        "gru.weight_ih",
        "gru.weight_hh",
        "gru.bias_ih",
        "gru.bias_hh",
        "norm_input.weight",
        "norm_input.bias",
        "norm_slots.weight",
        "norm_slots.bias",
    }
    assert "to_q.bias" in SlotAttention(4, 5, use_projection_bias=True).state_dict()
    with pytest.raises(ValueError):
        SlotAttention(5, 5, n_heads=2)


@pytest.mark.core
def test_slot_attention_masks_slots():
    torch.manual_seed(2)
    module = SlotAttention(4, 5, iters=3)
    inputs, conditioning = torch.randn(2, 7, 5), torch.randn(2, 3, 4)
    mask = torch.tensor([[False, False, True], [False, True, False]])
    slots, attention = module(inputs, conditioning, mask)
    assert torch.all(attention[0, 2] == 0) and torch.all(attention[1, 1] == 0)
    assert torch.allclose(attention.sum(1), torch.ones(2, 7), atol=1e-5)
    kept, _ = module(inputs[:1], conditioning[:1, :2])
    assert torch.allclose(slots[:1, :2], kept, atol=1e-5)
    expected, _ = reference_slot_attention(module, inputs, conditioning, 3, mask)
    assert torch.allclose(slots, expected, atol=1e-5)


@pytest.mark.core
def test_slot_attention_implicit_differentiation():
    module = SlotAttention(4, 5, iters=2, use_implicit_differentiation=True)
    inputs = torch.randn(2, 7, 5, requires_grad=True)
    conditioning = torch.randn(2, 3, 4, requires_grad=True)
    slots, _ = module(inputs, conditioning)
    expected, _ = reference_slot_attention(module, inputs, conditioning, 3)
    assert torch.allclose(slots, expected, atol=1e-5)
    slots.sum().backward()
    assert conditioning.grad is None and inputs.grad.abs().sum() > 0


@pytest.mark.core
def test_slot_attention_grouping():
    torch.manual_seed(3)
    grouping = SlotAttentionGrouping(
        feature_dim=5,
        object_dim=4,
        iters=2,
        positional_embedding=wrappers.Sequential(
            PE.SoftPositionEmbed(2, 6), N.build_two_layer_mlp(6, 5, 7, initial_layer_norm=True)
        ),
    )
    features = ocl.typing.FeatureExtractorOutput(torch.randn(2, 9, 6), grid(3, 3).view(-1, 2))
    conditioning = torch.randn(2, 3, 4)
    out = grouping(feature=features, conditioning=conditioning)
    assert isinstance(out, ocl.typing.PerceptualGroupingOutput) and grouping.object_dim == 4
    embedded = grouping.positional_embedding(features.features, features.positions)
    slots, attention = grouping.slot_attention(embedded, conditioning)
    assert torch.allclose(out.objects, slots) and torch.allclose(out.feature_attributions, attention)
    assert out.is_empty is None
    plain = SlotAttentionGrouping(feature_dim=6, object_dim=4)
    assert plain(features, conditioning).objects.shape == (2, 3, 4)
    prefixes = {name.split(".")[0] for name in grouping.state_dict()}
    assert prefixes == {"slot_attention", "positional_embedding"}


@pytest.mark.core
def test_slot_attention_grouping_with_masked_slots():
    features = ocl.typing.FeatureExtractorOutput(torch.randn(2, 9, 6), None)
    mask = torch.tensor([[False, True], [False, False]])
    grouping = SlotAttentionGrouping(6, 4, use_empty_slot_for_masked_slots=True)
    out = grouping(features, torch.randn(2, 2, 4), slot_mask=mask)
    assert torch.equal(out.is_empty, mask)
    assert torch.allclose(out.objects[0, 1], grouping.empty_slot)
    assert "empty_slot" in grouping.state_dict()
    assert SlotAttentionGrouping(6, 4).empty_slot is None


# --------------------------------------------------------------------------------------------------------- conditioning


def fill(value):
    return lambda tensor: tensor.fill_(value)


@pytest.mark.core
def test_random_conditioning():
    module = C.RandomConditioning(5, 3, mean_init=fill(2.0), logsigma_init=fill(math.log(0.5)))
    assert (module.object_dim, module.n_slots) == (5, 3)
    assert {n: tuple(p.shape) for n, p in module.named_parameters()} == {
        "slots_mu": (1, 1, 5),
        "slots_logsigma": (1, 1, 5),
    }
    torch.manual_seed(0)
    out = module(batch_size=4000)
    assert out.shape == (4000, 3, 5)
    assert torch.allclose(out.mean((0, 1)), torch.full((5,), 2.0), atol=0.05)
    assert torch.allclose(out.std((0, 1)), torch.full((5,), 0.5), atol=0.05)
    assert not torch.equal(module(2)[0], module(2)[0])
    fixed = C.RandomConditioning(5, 3, learn_mean=False, learn_std=False)
    assert not list(fixed.parameters()) and set(fixed.state_dict()) == {"slots_mu", "slots_logsigma"}


@pytest.mark.core
def test_learnt_conditioning():
    module = C.LearntConditioning(object_dim=5, n_slots=3)
    out = module(batch_size=2)
    assert out.shape == (2, 3, 5) and torch.equal(out[0], out[1])
    assert torch.equal(out[:1], module.slots) and out.requires_grad
    assert torch.all(C.LearntConditioning(5, 3, slot_init=fill(7.0))(1) == 7.0)


@pytest.mark.core
def test_slotwise_learnt_conditioning():
    def ramp(tensor):
        tensor.copy_(torch.arange(3.0).view(1, 3, 1).expand_as(tensor))

    module = C.SlotwiseLearntConditioning(5, 3, mean_init=ramp, logsigma_init=fill(-20.0))
    assert module.slots_mu.shape == module.slots_logsigma.shape == (1, 3, 5)
    out = module(batch_size=2)
    assert torch.allclose(out[:, :, 0], torch.arange(3.0).expand(2, 3), atol=1e-5)


@pytest.mark.compat
def test_quasi_monte_carlo_conditioning():
    module = C.RandomConditioningWithQMCSampling(4, 3, mean_init=fill(1.0), logsigma_init=fill(0.0))
    assert isinstance(module, C.RandomConditioning)
    out = module(batch_size=500)
    assert out.shape == (500, 3, 4) and out.dtype == torch.float32
    assert torch.allclose(out.mean((0, 1)), torch.ones(4), atol=0.1)
    assert torch.allclose(out.std((0, 1)), torch.ones(4), atol=0.1)


# ------------------------------------------------------------------------------------------------------------- decoders


@pytest.mark.compat
def test_cnn_decoder_backbones():
    with torch.no_grad():
        backbone = D.get_slotattention_decoder_backbone(object_dim=7)
        assert backbone(torch.rand(2, 7, 8, 8)).shape == (2, 4, 128, 128)
        assert shapes(backbone)[::2] == [
            (7, 64, 5, 5),
            *[(64, 64, 5, 5)] * 4,
            (64, 4, 3, 3),
        ]
        assert D.get_slotattention_decoder_backbone(7, output_dim=3)(torch.rand(1, 7, 8, 8)).shape[1] == 3
        small = D.get_savi_decoder_backbone(7)
        assert small(torch.rand(2, 7, 8, 8)).shape == (2, 4, 64, 64)
        assert shapes(small)[::2] == [(7, 64, 5, 5), *[(64, 64, 5, 5)] * 3, (64, 4, 1, 1)]
        large = D.get_savi_decoder_backbone(7, 5, larger_input_arch=True, channel_multiplier=0.5)
        assert large(torch.rand(2, 7, 8, 8)).shape == (2, 5, 128, 128)
        assert shapes(large)[::2] == [(7, 32, 5, 5), *[(32, 32, 5, 5)] * 3, (32, 5, 1, 1)]


@pytest.mark.compat
def test_dvae_encoder_and_decoder():
    encoder = D.get_dvae_encoder(vocab_size=10, patch_size=4)
    decoder = D.get_dvae_decoder(vocab_size=10)
    with torch.no_grad():
        code = encoder(torch.rand(2, 3, 16, 24))
        assert code.shape == (2, 10, 4, 6)
        assert decoder(code).shape == (2, 3, 16, 24)
        assert D.get_dvae_encoder(10)(torch.rand(1, 3, 32, 32)).shape == (1, 10, 2, 2)
        assert D.get_dvae_decoder(10, output_dim=1)(code).shape == (2, 1, 16, 24)
    convolutions = [s for s in shapes(encoder) if len(s) == 4]
    assert convolutions == [(64, 3, 4, 4), *[(64, 64, 1, 1)] * 6, (10, 64, 1, 1)]
    convolutions = [s for s in shapes(decoder) if len(s) == 4]
    one, three, up = (64, 64, 1, 1), (64, 64, 3, 3), (256, 64, 1, 1)
    assert convolutions == [(64, 10, 1, 1), three, one, one, up, three, one, one, up, (3, 64, 1, 1)]
    out = D.DVAEDecoder(decoder, patch_size=4)(features=code)
    assert isinstance(out, D.SimpleReconstructionOutput)
    assert torch.allclose(out.reconstruction, decoder(code), atol=1e-6)


@pytest.mark.core
@pytest.mark.parametrize("lead", [(2, 3), (2, 4, 3)])
def test_slot_attention_decoder_mixes_objects(lead):
    torch.manual_seed(0)
    backbone = nn.Conv2d(5, 4, 1)
    decoder = D.SlotAttentionDecoder(
        decoder=backbone,
        final_activation="tanh",
        positional_embedding=PE.SoftPositionEmbed(2, 5, cnn_channel_order=True),
    )
    slots = torch.randn(*lead, 5)
    out = decoder(object_features=slots)
    broadcast = slots.reshape(-1, 5, 1, 1).expand(-1, 5, 8, 8)
    encoded = decoder.positional_embedding(broadcast, grid(8, 8)[None])
    raw = backbone(encoded).view(*lead, 4, 8, 8)
    rgb, alpha = raw[..., :3, :, :].tanh(), raw[..., 3:, :, :].softmax(dim=-4)
    assert isinstance(out, D.ReconstructionOutput)
    assert torch.allclose(out.object_reconstructions, rgb, atol=1e-6)
    assert torch.allclose(out.masks, alpha.squeeze(-3), atol=1e-6)
    assert torch.allclose(out.reconstruction, (rgb * alpha).sum(-4), atol=1e-6)
    assert torch.allclose(out.masks.sum(-3), torch.ones(*lead[:-1], 8, 8), atol=1e-5)
    plain = D.SlotAttentionDecoder(decoder=backbone)
    assert plain(slots).reconstruction.shape == (*lead[:-1], 3, 8, 8)
    with pytest.raises((AssertionError, ValueError)):
        plain(torch.randn(3, 5))


@pytest.mark.compat
def test_optical_flow_decoder_and_grid():
    assert torch.allclose(D.build_grid_of_positions((3, 5)), grid(3, 5))
    backbone = nn.Conv2d(5, 3, 1)
    decoder = D.SlotAttentionOpticalFlowDecoder(backbone)
    slots = torch.randn(2, 4, 5)
    out = decoder(object_features=slots)
    raw = backbone(slots.reshape(-1, 5, 1, 1).expand(-1, 5, 8, 8)).view(2, 4, 3, 8, 8)
    alpha = raw[:, :, 2:].softmax(1)
    assert isinstance(out, D.OpticalFlowPredictionTaskOutput)
    assert torch.allclose(out.object_flows, raw[:, :, :2], atol=1e-6)
    assert torch.allclose(out.masks, alpha[:, :, 0], atol=1e-6)
    assert torch.allclose(out.predicted_flow, (raw[:, :, :2] * alpha).sum(1), atol=1e-6)


@pytest.mark.compat
@pytest.mark.parametrize("lead", [(2, 3), (2, 4, 3)])
def test_patch_decoder(lead):
    torch.manual_seed(0)
    requested = []

    def backbone(input_dim, output_dim):
        requested.append((input_dim, output_dim))
        return nn.Linear(input_dim, output_dim)

    decoder = D.PatchDecoder(5, output_dim=7, num_patches=9, decoder=backbone, decoder_input_dim=6)
    assert requested == [(6, 8)] and decoder.pos_embed.shape == (1, 9, 6)
    slots, target = torch.randn(*lead, 5), torch.randn(*lead[:-1], 9, 7)
    out = decoder(object_features=slots, target=target, image=torch.rand(2, 3, 12, 12))
    hidden = decoder.inp_transform(slots)[..., None, :] + decoder.pos_embed[0]
    raw = decoder.decoder(hidden)
    alpha = raw[..., 7:].softmax(-3)
    assert isinstance(out, D.PatchReconstructionOutput)
    assert torch.allclose(out.reconstruction, (raw[..., :7] * alpha).sum(-3), atol=1e-5)
    assert torch.allclose(out.masks, alpha[..., 0], atol=1e-6)
    assert torch.equal(out.target, target)
    flat = out.masks.reshape(-1, 1, 3, 3)
    resized = F.interpolate(flat, size=12, mode="bilinear").view(*lead, 12, 12)
    assert torch.allclose(out.masks_as_image, resized, atol=1e-6)
    bare = D.PatchDecoder(5, 7, 9, backbone)
    assert requested[-1] == (5, 8)
    out = bare(slots)
    assert out.masks_as_image is None and out.target is None


@pytest.mark.compat
def test_patch_decoder_upsamples_its_target():
    decoder = D.PatchDecoder(5, 7, 16, nn.Linear, upsample_target=2.0)
    target = torch.randn(2, 4, 7, requires_grad=True)
    out = decoder(torch.randn(2, 3, 5), target=target)
    as_image = target.detach().transpose(1, 2).view(2, 7, 2, 2)
    expected = F.interpolate(as_image, scale_factor=2.0, mode="bilinear").flatten(2).transpose(1, 2)
    assert torch.allclose(out.target, expected, atol=1e-6) and not out.target.requires_grad


class RecordingDecoder(nn.Module):
    """Pretends to be a transformer decoder: returns its inputs and remembers the rest."""

    def __init__(self, dim, same_dim, with_masks=False):
        super().__init__()
        self.dims, self.with_masks, self.seen = (dim, same_dim), with_masks, {}

    def forward(self, target, memory, mask, memory_key_padding_mask=None):
        self.seen = dict(target=target, memory=memory, mask=mask, padding=memory_key_padding_mask)
        if self.with_masks:
            return target, torch.full((len(target), memory.shape[1], target.shape[1]), 0.5)
        return target


@pytest.mark.core
def test_autoregressive_patch_decoder_shifts_targets_behind_bos():
    decoder = D.AutoregressivePatchDecoder(
        object_dim=6, output_dim=5, num_patches=4, decoder=RecordingDecoder, decoder_cond_dim=8
    )
    slots, masks = torch.randn(2, 3, 6), torch.rand(2, 3, 4)
    target = torch.randn(2, 4, 5, requires_grad=True)
    out = decoder(object_features=slots, masks=masks, target=target, image=torch.rand(2, 3, 8, 8))
    seen = decoder.decoder.seen
    assert decoder.decoder.dims == (5, 5)
    expected = torch.cat([decoder.bos_token.expand(2, 1, 5), target[:, :-1]], dim=1)
    assert torch.equal(seen["target"], expected) and torch.equal(out.reconstruction, expected)
    out.reconstruction.sum().backward()
    assert target.grad is None  # conditioning on previous patches is detached
    assert torch.equal(seen["mask"], torch.full((4, 4), -math.inf).triu(1))
    assert seen["padding"] is None
    linear, norm = decoder.cond_transform[0], decoder.cond_transform[1]
    assert linear.bias is None and seen["memory"].shape == (2, 3, 8)
    assert torch.allclose(seen["memory"], norm(linear(slots)), atol=1e-6)
    assert torch.equal(out.masks, masks) and torch.equal(out.target, target)
    resized = F.interpolate(masks.view(2, 3, 2, 2), size=8, mode="bilinear")
    assert torch.allclose(out.masks_as_image, resized, atol=1e-6)


@pytest.mark.core
def test_autoregressive_patch_decoder_slate_style():
    """No BOS (the target is shifted already), normalized input, output projected to the vocabulary."""
    decoder = D.AutoregressivePatchDecoder(
        object_dim=6,
        output_dim=11,
        num_patches=4,
        decoder=RecordingDecoder,
        decoder_dim=8,
        decoder_cond_dim=8,
        use_bos_token=False,
        use_input_norm=True,
        use_output_transform=True,
    )
    assert decoder.bos_token is None and decoder.decoder.dims == (8, 8)
    target, masks = torch.randn(2, 4, 8), torch.rand(2, 3, 4)
    empty = torch.tensor([[False, False, True], [False, True, True]])
    out = decoder(torch.randn(2, 3, 6), masks, target, empty_objects=empty)
    normed = F.layer_norm(target, (8,))
    assert torch.allclose(decoder.decoder.seen["target"], normed, atol=1e-5)
    assert torch.equal(decoder.decoder.seen["padding"], empty)
    assert out.reconstruction.shape == (2, 4, 11)
    assert torch.allclose(out.reconstruction, decoder.outp_transform(normed), atol=1e-5)
    assert out.masks_as_image is None


@pytest.mark.core
def test_autoregressive_patch_decoder_options_and_video():
    decoder = D.AutoregressivePatchDecoder(
        object_dim=6,
        output_dim=5,
        num_patches=4,
        decoder=lambda a, b: RecordingDecoder(a, b, with_masks=True),
        decoder_dim=8,
        use_decoder_masks=True,
        use_input_transform=True,
        use_output_transform=True,
        use_positional_embedding=True,
    )
    assert isinstance(decoder.cond_transform, nn.LayerNorm)
    assert decoder.pos_embed.shape == (1, 4, 8)
    slots, target = torch.randn(2, 3, 7, 6), torch.randn(2, 3, 4, 5)
    out = decoder(slots, torch.rand(2, 3, 7, 4), target)
    assert out.reconstruction.shape == (2, 3, 4, 5)
    assert torch.all(out.masks == 0.5)  # replaced by the decoder's own attention
    assert decoder.decoder.seen["memory"].shape == (6, 7, 6)


@pytest.mark.core
def test_autoregressive_patch_decoder_with_real_transformer_is_causal():
    torch.manual_seed(0)
    decoder = D.AutoregressivePatchDecoder(
        object_dim=8,
        output_dim=8,
        num_patches=4,
        decoder=lambda a, b: N.build_transformer_decoder(a, b, n_layers=2, n_heads=2),
    ).eval()
    slots, masks, target = torch.randn(1, 3, 8), torch.rand(1, 3, 4), torch.randn(1, 4, 8)
    changed = target.clone()
    changed[:, 2:] += 1.0
    with torch.no_grad():
        a, b = (decoder(slots, masks, t).reconstruction for t in (target, changed))
    assert torch.allclose(a[:, :3], b[:, :3], atol=1e-6) and not torch.allclose(a[:, 3], b[:, 3])


@pytest.mark.compat
def test_decoder_state_names_for_checkpoint_exchange():
    auto = D.AutoregressivePatchDecoder(
        4,
        5,
        num_patches=4,
        decoder=RecordingDecoder,
        decoder_dim=6,
        decoder_cond_dim=6,
        use_input_transform=True,
        use_output_transform=True,
        use_positional_embedding=True,
    )
    assert set(auto.state_dict()) == {
        "bos_token",
        "pos_embed",
        "mask",
        "cond_transform.0.weight",
        "cond_transform.1.weight",
        "cond_transform.1.bias",
        "inp_transform.0.weight",
        "inp_transform.1.weight",
        "inp_transform.1.bias",
        "outp_transform.weight",
        "outp_transform.bias",
    }
    patch = D.PatchDecoder(4, 5, 4, nn.Linear, decoder_input_dim=6)
    names = {"pos_embed", "inp_transform.weight", "inp_transform.bias", "decoder.weight", "decoder.bias"}
    assert set(patch.state_dict()) == names
    mixing = D.SlotAttentionDecoder(nn.Conv2d(4, 4, 1), positional_embedding=PE.SoftPositionEmbed(2, 4))
    names = {"grid", "decoder.weight", "decoder.bias"}
    names |= {"positional_embedding.dense.weight", "positional_embedding.dense.bias"}
    assert set(mixing.state_dict()) == names
    dvae = {name.split(".")[0] for name in make_dvae().state_dict()}
    assert dvae == {"encoder", "dictionary", "positional_encoder"}


# ------------------------------------------------------------------------------------------------------------- networks


@pytest.mark.core
def test_activation_lookup():
    x = torch.tensor([-2.0, 3.0])
    expected = {
        "relu": [0.0, 3.0],
        "relu_squared": [0.0, 9.0],
        "tanh": x.tanh().tolist(),
        "sigmoid": x.sigmoid().tolist(),
        "identity": [-2.0, 3.0],
        "ReLU": [0.0, 3.0],
    }
    for name, values in expected.items():
        assert get_activation_fn(name)(x.clone()).tolist() == pytest.approx(values)
    assert get_activation_fn("leaky_relu", leaky_relu_slope=0.5)(x.clone()).tolist() == [-1.0, 3.0]
    assert get_activation_fn(torch.sin) is torch.sin
    with pytest.raises(ValueError):
        get_activation_fn("leaky_relu")
    with pytest.raises(ValueError):
        get_activation_fn("unknown")


@pytest.mark.core
def test_build_mlp():
    mlp = N.build_mlp(3, 2, [5, 4], final_activation_fn="sigmoid", initial_layer_norm=True)
    linears = [m for m in mlp.modules() if isinstance(m, nn.Linear)]
    assert [(m.in_features, m.out_features) for m in linears] == [(3, 5), (5, 4), (4, 2)]
    assert all(torch.all(m.bias == 0) for m in linears)
    x = torch.randn(6, 3)
    hidden = F.layer_norm(x, (3,))
    for index, linear in enumerate(linears):
        hidden = F.linear(hidden, linear.weight, linear.bias)
        hidden = F.relu(hidden) if index < 2 else hidden.sigmoid()
    assert torch.allclose(mlp(x), hidden, atol=1e-6)
    residual = N.build_mlp(3, 3, [], residual=True)
    linear = [m for m in residual.modules() if isinstance(m, nn.Linear)][0]
    assert torch.allclose(residual(x), x + linear(x), atol=1e-6)


@pytest.mark.core
def test_build_two_layer_mlp():
    mlp = N.build_two_layer_mlp(3, 4, hidden_dim=5)
    assert shapes(mlp) == [(5, 3), (5,), (4, 5), (4,)]
    residual = N.build_two_layer_mlp(3, 3, 5, initial_layer_norm=True, residual=True)
    assert shapes(residual) == [(3,), (3,), (5, 3), (5,), (3, 5), (3,)]
    x = torch.randn(2, 3)
    assert isinstance(residual, wrappers.Residual)
    assert torch.allclose(residual(x) - x, residual.module(x), atol=1e-6)


@pytest.mark.core
def test_build_transformer_encoder():
    encoder = N.build_transformer_encoder(8, 5, n_layers=2, n_heads=2)
    assert encoder(torch.randn(2, 7, 8)).shape == (2, 7, 5)
    layers = [m for m in encoder.modules() if isinstance(m, nn.TransformerEncoderLayer)]
    assert len(layers) == 2 and all(m.norm_first for m in layers)
    assert layers[0].linear1.out_features == 32  # four times the width unless given
    bare = N.build_transformer_encoder(8, 5, 1, 2, hidden_dim=9, use_output_transform=False)
    assert bare(torch.randn(2, 7, 8)).shape == (2, 7, 8)


@pytest.mark.core
def test_build_transformer_decoder():
    torch.manual_seed(0)
    plain = N.build_transformer_decoder(8, 8, n_layers=3, n_heads=2, hidden_dim=16).eval()
    tgt, memory = torch.randn(2, 5, 8), torch.randn(2, 4, 8)
    mask = torch.full((5, 5), -math.inf).triu(1)
    padding = torch.tensor([[False, False, False, True], [False] * 4])
    with torch.no_grad():
        reference = plain(tgt, memory, mask, memory_key_padding_mask=padding)
        outputs = {}
        for kind in (-1, 0, "mean"):
            module = N.build_transformer_decoder(
                8, 8, 3, 2, 16, return_attention_weights=True, attention_weight_type=kind
            ).eval()
            module.load_state_dict(plain.state_dict())
            out, outputs[kind] = module(tgt, memory, mask, memory_key_padding_mask=padding)
            assert torch.allclose(out, reference, atol=1e-5)
            assert outputs[kind].shape == (2, 4, 5)  # batch, memory (slots), target (patches)
            assert torch.allclose(outputs[kind].sum(1), torch.ones(2, 5), atol=1e-5)
            assert torch.all(outputs[kind][0, 3] == 0)
        assert not torch.allclose(outputs[0], outputs[-1])
    for kind in (3, -4, "median"):
        with pytest.raises(ValueError):
            N.build_transformer_decoder(8, 8, 3, 2, return_attention_weights=True, attention_weight_type=kind)


@pytest.mark.core
def test_wrappers():
    sequential = wrappers.Sequential(PE.DummyPositionEmbed(), nn.Identity())
    x = torch.randn(2, 3)
    assert torch.equal(sequential(x, torch.zeros(3, 2)), x)

    class Split(nn.Module):
        def forward(self, x):
            return x[:, :1], x[:, 1:]

    class Join(nn.Module):
        def forward(self, a, b):
            return torch.cat([b, a], dim=1)

    assert torch.equal(wrappers.Sequential(Split(), Join())(x), x[:, [1, 2, 0]])
    assert torch.equal(wrappers.Residual(nn.Identity())(x), 2 * x)


@pytest.mark.core
def test_soft_position_embed():
    positions = grid(4, 5).view(-1, 2)
    x = torch.randn(2, 20, 6)
    module = PE.SoftPositionEmbed(2, 6)
    basis = torch.cat([positions, 1 - positions], -1)
    assert torch.allclose(module(x, positions), x + module.dense(basis), atol=1e-6)
    savi = PE.SoftPositionEmbed(2, 6, savi_style=True)
    assert savi.dense.in_features == 2
    assert torch.allclose(savi(x, positions), x + savi.dense(2 * positions - 1), atol=1e-6)
    cnn = PE.SoftPositionEmbed(2, 6, cnn_channel_order=True)
    image, layout = torch.randn(3, 6, 4, 5), grid(4, 5)[None]
    embedded = cnn.dense(torch.cat([layout, 1 - layout], -1)).permute(0, 3, 1, 2)
    assert torch.allclose(cnn(image, layout), image + embedded, atol=1e-6)


@pytest.mark.core
def test_other_positional_embeddings():
    x = torch.randn(2, 3, 4)
    learned = PE.LearnedAdditivePositionalEmbed(max_len=5, d_model=4, dropout=0.0)
    assert learned.pe.shape == (1, 5, 4) and learned.pe.abs().sum() > 0
    assert torch.allclose(learned(x), x + learned.pe[:, :3])
    dropped = PE.LearnedAdditivePositionalEmbed(5, 4, dropout=1.0)
    assert torch.all(dropped(x) == 0) and not torch.all(dropped.eval()(x) == 0)
    assert PE.DummyPositionEmbed()(x, None) is x


@pytest.mark.compat
def test_slate_modules():
    table = slate.OneHotDictionary(vocab_size=5, emb_size=3)
    assert set(table.state_dict()) == {"dictionary.weight"}
    tokens = torch.tensor([[0, 4], [2, 2]])
    assert torch.equal(table(F.one_hot(tokens, 5).float()), table.dictionary.weight[tokens])
    block = slate.Conv2dBlockWithGroupNorm(3, 4, 3, stride=2, padding=1)
    x = torch.randn(2, 3, 6, 6)
    conv, norm = block.conv2d, block.group_norm
    expected = F.relu(F.group_norm(conv(x), 1, norm.weight, norm.bias))
    assert torch.all(conv.bias == 0) and torch.allclose(block(x), expected, atol=1e-6)
    assert slate.Conv2dBlockWithGroupNorm(3, 4, 1, bias=False, weight_init="kaiming").conv2d.bias is None


# --------------------------------------------------------------------------------------------------------------- losses


@pytest.mark.core
@pytest.mark.parametrize("weight", [1.0, 2.5])
def test_reconstruction_loss_formulas(weight):
    torch.manual_seed(0)
    x, t = torch.randn(4, 3, 5), torch.randn(4, 3, 5)
    expected = {
        "mse": ((x - t) ** 2).mean(),
        "mse_sum": ((x - t) ** 2).sum() / 4,
        "l1": (x - t).abs().mean(),
        "cosine": -((x * t).sum(-1) / (x.norm(dim=-1) * t.norm(dim=-1))).mean(),
    }
    for kind, value in expected.items():
        loss = ReconstructionLoss(kind, weight=weight)(x, t)
        assert loss.dim() == 0 and torch.allclose(loss, weight * value, atol=1e-5)
    one_hot = F.one_hot(torch.randint(0, 5, (4, 3)), 5).float()
    value = -(one_hot * x.log_softmax(-1)).sum() / 4
    loss = ReconstructionLoss("cross_entropy_sum", weight=weight)(input=x, target=one_hot)
    assert torch.allclose(loss, weight * value, atol=1e-4)


@pytest.mark.core
def test_reconstruction_loss_details():
    with pytest.raises(ValueError):
        ReconstructionLoss("unknown")
    x = torch.randn(2, 4, requires_grad=True)
    t = torch.randn(2, 4, requires_grad=True)
    ReconstructionLoss("mse")(x, t).backward()
    assert x.grad is not None and t.grad is None
    normalized = (t - t.mean(-1, keepdim=True)) / (t.var(-1, keepdim=True) + 1e-6).sqrt()
    loss = ReconstructionLoss("mse", normalize_target=True)(x, t)
    assert torch.allclose(loss, ((x - normalized) ** 2).mean(), atol=1e-5)


@pytest.mark.core
def test_reconstruction_loss_weight_can_be_scheduled():
    weight = LinearHPScheduler(end_value=10.0, end_step=10)
    loss = ReconstructionLoss("mse", weight=weight)
    assert any(m is weight for m in loss.modules())  # found by the scheduling callback
    x, t = torch.zeros(2), torch.ones(2)
    weight.update_global_step(3)
    assert loss(x, t).item() == pytest.approx(3.0)


@pytest.mark.compat
@pytest.mark.parametrize("lead", [(3,), (3, 2)])
def test_duplicate_suppression_loss(lead):
    slots = torch.randn(*lead, 4, 6)
    units = F.normalize(slots, dim=-1)
    squared = (units @ units.transpose(-1, -2)) ** 2
    pairs = torch.triu(torch.ones(4, 4), diagonal=1).bool()
    loss = LatentDupplicateSuppressionLoss(weight=5.0)
    grouping = ocl.typing.PerceptualGroupingOutput(slots)
    assert torch.allclose(loss(grouping), 5 * squared[..., pairs].mean(), atol=1e-5)
    present = torch.rand(*lead, 4)
    grouping = ocl.typing.PerceptualGroupingOutput(slots, is_empty=1 - present)
    weights = (present[..., :, None] * present[..., None, :])[..., pairs]
    expected = ((squared[..., pairs] * weights).sum(-1) / weights.sum(-1)).mean()
    assert torch.allclose(loss(grouping=grouping), 5 * expected, atol=1e-5)
    with pytest.raises(ValueError):
        loss(ocl.typing.PerceptualGroupingOutput(torch.rand(4, 6)))


# ---------------------------------------------------------------------------------------------------------------- utils


@pytest.mark.core
def test_resize_images_and_patches():
    x = torch.rand(2, 3, 4, 5, 6)
    out = Resize(size=(8, 9))(input=x)
    expected = F.interpolate(x.flatten(0, 1), size=(8, 9), mode="bilinear").view(2, 3, 4, 8, 9)
    assert torch.allclose(out, expected)
    assert Resize(size=7)(x).shape == (2, 3, 4, 7, 7)
    patches = torch.rand(2, 3, 16)
    out = Resize(size=8, patch_mode=True, resize_mode="nearest-exact")(patches)
    expected = F.interpolate(patches.view(2, 3, 4, 4), size=8, mode="nearest-exact")
    assert torch.equal(out, expected)
    video = torch.rand(2, 5, 16, 3)
    out = Resize(size=8, patch_mode=True, channels_last=True)(video)
    expected = F.interpolate(video.transpose(2, 3).reshape(10, 3, 4, 4), size=8, mode="bilinear")
    assert torch.allclose(out, expected.view(2, 5, 3, 8, 8), atol=1e-6)
    last = Resize(size=(2, 3), channels_last=True)(torch.rand(1, 4, 6, 5))
    assert last.shape == (1, 5, 2, 3)


@pytest.mark.core
def test_resize_takes_its_size_from_a_tensor():
    x = torch.rand(2, 3, 4, 4)
    assert Resize()(x, size_tensor=torch.zeros(2, 1, 6, 7)).shape == (2, 3, 6, 7)
    assert Resize()(x, torch.tensor([6, 7])).shape == (2, 3, 6, 7)
    assert Resize()(x, torch.tensor([[6, 7], [6, 7]])).shape == (2, 3, 6, 7)
    with pytest.raises(ValueError):
        Resize()(x)
    with pytest.raises(ValueError):
        Resize(size=3)(torch.rand(4, 4))
    with pytest.raises(ValueError):
        Resize(size=3, patch_mode=True)(torch.rand(2, 3, 7))
    with pytest.raises(ValueError):
        Resize(size=3, resize_mode="magic")


@pytest.mark.core
def test_resize_patches_to_image():
    patches = torch.rand(2, 5, 3, 16)
    out = resize_patches_to_image(patches, size=8)
    expected = F.interpolate(patches.view(10, 3, 4, 4), size=8, mode="bilinear")
    assert torch.allclose(out, expected.view(2, 5, 3, 8, 8))
    out = resize_patches_to_image(patches, scale_factor=2.0, resize_mode="nearest")
    assert torch.equal(out[..., ::2, ::2].flatten(-2), patches)
    for kwargs in ({}, dict(size=8, scale_factor=2.0)):
        with pytest.raises(ValueError):
            resize_patches_to_image(patches, **kwargs)
    with pytest.raises(ValueError):
        resize_patches_to_image(torch.rand(1, 3, 7), size=8)


@pytest.mark.compat
def test_slot_mask_and_random_patterns():
    mask = CreateSlotMask(max_slots=4)(n_slots=torch.tensor([1, 4, 0]))
    assert mask.dtype == torch.bool
    assert mask.tolist() == [[False, True, True, True], [False] * 4, [True] * 4]
    masks = torch.rand(2, 5, 8, 12)
    random = CreateRandomMaskPatterns("random")(masks)
    assert random.shape == masks.shape and torch.allclose(random.sum(1), torch.ones(2, 8, 12))
    blocks = CreateRandomMaskPatterns("blocks", n_slots=5, n_cols=2)(masks)
    assert torch.all(blocks.sum(1) == 1) and torch.all(blocks.sum((2, 3)) > 0)
    assert blocks[0, 0, :4, :6].all() and blocks[0, 4, -1, -1] == 1  # columns of 2 and 3 blocks
    with pytest.raises(ValueError):
        CreateRandomMaskPatterns("stripes")
