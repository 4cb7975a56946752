"""Feature extractors over the image pyramid, and the fusion of its scales."""

import hydra
import numpy as np
import pytest
import torch
from hydra import initialize_config_module
from ocl.cli.train import build_model_from_config
from ocl.feature_extractors import SAViFeatureExtractor, SlotAttentionFeatureExtractor, TimmFeatureExtractor
from scipy.ndimage import map_coordinates

from ocl_msf.feature_extractors import NaiveCNN, PyramidFeatureExtractor, ViTWithCNN
from ocl_msf.fusion import MultiScaleFusion, Separate
from ocl_msf.grid_fusion import ConcatScales, FinestScale, FrozenQuantizer, QuantizedScales, SumScales
from ocl_msf.losses import WeightedLoss
from ocl_msf.pyramid import ImagePyramid

pytestmark = [pytest.mark.needs_host, pytest.mark.oclf]

EXTRACTORS = {
    "naive": lambda: NaiveCNN(4, stride=2),
    "dilated": lambda: NaiveCNN(4, stride=4, dilations=[1, 2]),
    "vit": lambda: ViTWithCNN(4, stride=2, vit="vit_tiny_patch16_224", pretrained=False),
    "slot attention": SlotAttentionFeatureExtractor,
    "savi": lambda: SAViFeatureExtractor(larger_input_arch=True),
    "resnet": lambda: TimmFeatureExtractor("resnet18", feature_level=2, pretrained=False, freeze=True),
}
FUSIONS = {
    "finest": FinestScale,
    "sum": SumScales,
    "concat": lambda: ConcatScales(4, 3),
    "msf": lambda: QuantizedScales(4, MultiScaleFusion(6, 8, 3)),
}


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


@pytest.fixture
def image():
    return torch.rand(3, 3, 64, 32) * 2 - 1


def as_map(features, rows, columns):
    return features.transpose(1, 2).unflatten(2, (rows, columns))


@pytest.mark.parametrize("name", EXTRACTORS)
def test_one_scale_is_the_extractor_alone(name, image):
    extractor = EXTRACTORS[name]().eval()
    alone = extractor(image)
    output = PyramidFeatureExtractor(extractor, num_scales=1).eval()(image)
    assert torch.equal(output.features, alone.features) and torch.equal(output.positions, alone.positions)
    assert torch.equal(output.aux_features["scale_1"], alone.features)
    assert set(output.aux_features) == {"scale_1", *(alone.aux_features or {})}


@pytest.mark.parametrize("name", EXTRACTORS)
def test_every_scale_is_the_extractor_on_that_image_of_the_pyramid(name, image):
    extractor = EXTRACTORS[name]().eval()
    output = PyramidFeatureExtractor(extractor, 3, FinestScale()).eval()(image)
    for number, smaller in enumerate(ImagePyramid(3)(image), 1):
        assert torch.equal(output.aux_features[f"scale_{number}"], extractor(smaller).features)
    assert torch.equal(output.features, extractor(image).features)


def upsampled(features, rows, columns):
    """Bilinear interpolation between the centres of super-pixels, the border repeated, by SciPy."""
    height, width = features.shape[-2:]
    y = (np.arange(rows) + 0.5) * height / rows - 0.5
    x = (np.arange(columns) + 0.5) * width / columns - 0.5
    places = np.meshgrid(np.clip(y, 0, height - 1), np.clip(x, 0, width - 1), indexing="ij")
    channels = [map_coordinates(channel, places, order=1) for channel in features.numpy().reshape(-1, height, width)]
    return torch.from_numpy(np.stack(channels)).view(*features.shape[:2], rows, columns)


def test_sum_and_concatenation_are_those_of_the_upsampled_scales():
    maps = [torch.randn(2, 4, 8 >> n, 12 >> n, dtype=torch.float64) for n in range(3)]
    scales = [maps[0], *(upsampled(m, 8, 12) for m in maps[1:])]
    torch.testing.assert_close(SumScales()(maps).features, sum(scales))
    fusion = ConcatScales(4, 3).double()
    weight, bias = fusion.project.weight[..., 0, 0], fusion.project.bias
    expected = torch.einsum("o i, b i h w -> b o h w", weight, torch.cat(scales, 1)) + bias[:, None, None]
    torch.testing.assert_close(fusion(maps).features, expected)


def test_multi_scale_fusion_gives_the_codes_of_the_finest_scale_and_the_losses():
    maps = [torch.randn(2, 4, 8 >> n, 8 >> n) for n in range(3)]
    quantizer = MultiScaleFusion(6, 8, 3)
    fusion = QuantizedScales(4, quantizer).eval()
    fused = fusion(maps)
    codes = quantizer([fusion.to_codes(m) for m in maps])
    torch.testing.assert_close(fused.features, fusion.from_codes(quantizer.lookup(codes.indices)[0]))
    for name, loss in fused.losses.items():
        assert loss.shape == (2,)
        torch.testing.assert_close(WeightedLoss(0.5)(loss), 0.5 * getattr(codes, name))


@pytest.mark.parametrize("name", FUSIONS)
def test_a_batch_is_its_images_and_a_video_its_frames(name, image):
    pyramid = PyramidFeatureExtractor(NaiveCNN(4, stride=2), 3, FUSIONS[name]()).eval()
    together = pyramid(image)
    assert together.features.shape == (3, 32 * 16, 4)
    torch.testing.assert_close(together.features, torch.cat([pyramid(one).features for one in image.split(1)]))
    video = pyramid(image.unsqueeze(0))
    torch.testing.assert_close(video.features[0], together.features)
    assert torch.equal(video.positions, together.positions)
    for key, value in together.aux_features.items():
        torch.testing.assert_close(video.aux_features[key][0], value)


@pytest.mark.parametrize("name, reached", [("finest", 1), ("sum", 3), ("concat", 3)])
def test_gradients_reach_the_scales_that_are_fused(name, reached):
    maps = [torch.randn(1, 4, 8 >> n, 8 >> n, requires_grad=True) for n in range(3)]
    FUSIONS[name]()(maps).features.square().sum().backward()
    assert [m.grad is not None and bool(m.grad.abs().sum() > 0) for m in maps] == [n < reached for n in range(3)]


def test_gradients_of_multi_scale_fusion_reach_the_scales_that_win_and_the_losses_reach_all():
    maps = [torch.randn(1, 4, 8 >> n, 8 >> n, requires_grad=True) for n in range(3)]
    fusion = QuantizedScales(4, MultiScaleFusion(6, 8, 3))
    fused = fusion(maps)
    won = fusion.quantizer([fusion.to_codes(m) for m in maps]).diagnostics["winners"][0].unique().tolist()
    grads = torch.autograd.grad(fused.features.square().sum(), maps, retain_graph=True, allow_unused=True)
    assert [scale for scale, grad in enumerate(grads) if grad is not None and grad.any()] == sorted({0, *won})
    assert all(grad.any() for grad in torch.autograd.grad(sum(fused.losses.values()).sum(), maps))


def test_a_frozen_quantiser_needs_weights_and_never_learns():
    maps = [torch.randn(1, 4, 8 >> n, 8 >> n) for n in range(3)]
    trained = MultiScaleFusion(6, 8, 3, Separate())
    fusion = QuantizedScales(4, FrozenQuantizer(MultiScaleFusion(6, 8, 3, Separate()))).train()
    with pytest.raises(RuntimeError, match="no weights"):
        fusion(maps)
    fusion.quantizer.load(trained.state_dict())
    fused = fusion(maps)
    codes = trained.eval()([fusion.to_codes(m) for m in maps])
    torch.testing.assert_close(fused.features, fusion.from_codes(codes.quantized[0]))
    (fused.features.sum() + fused.losses["commitment_loss"].sum()).backward()
    assert fusion.to_codes.weight.grad.any() and fusion.from_codes.weight.grad.any()
    assert all(parameter.grad is None for parameter in fusion.quantizer.parameters())


def test_the_cost_falls_by_four_from_scale_to_scale(image):
    """Outputs of convolutions, each of which costs the same."""
    extractor = NaiveCNN(4)
    counted = []
    for module in extractor.modules():
        if isinstance(module, torch.nn.Conv2d):
            module.register_forward_hook(lambda module, inputs, output: counted.append(output.numel()))
    extractor(image)
    alone = sum(counted)
    counted.clear()
    PyramidFeatureExtractor(extractor, 3)(image)
    assert 16 * sum(counted) == (16 + 4 + 1) * alone


def test_an_extractor_of_images_of_one_size_gets_them_in_that_size(image):
    class OneSize(NaiveCNN):
        def forward_images(self, images):
            assert images.shape[-2:] == (64, 32)
            return super().forward_images(images)

    output = PyramidFeatureExtractor(OneSize(4), 3, same_size=True)(image)
    assert output.aux_features["scale_3"].shape == output.features.shape == (3, 64 * 32, 4)


def test_features_without_a_grid_are_refused(image):
    class Tokens(NaiveCNN):
        def forward_images(self, images):
            return super().forward_images(images)[0], None

    square = PyramidFeatureExtractor(Tokens(4), 2)(image[..., :32, :])
    assert square.features.shape == (3, 32 * 32, 4) and square.positions is None
    with pytest.raises(ValueError, match="no positions"):
        PyramidFeatureExtractor(Tokens(4), 2)(image)


def build(*overrides):
    with initialize_config_module("configs", version_base="1.1"):
        config = hydra.compose("training_config", overrides=list(overrides))
    return config, build_model_from_config(config)


@pytest.mark.parametrize("fusion", ["finest", "sum", "concat", "msf", "frozen_msf"])
def test_one_override_puts_the_pyramid_around_the_encoder_of_our_experiments(fusion, monkeypatch):
    monkeypatch.setenv("DATASET_PREFIX", "data")
    plain = ["+experiment=msf/slate_clevrtex", "+msf/preset=cpu"]
    before, alone = build(*plain)
    config, model = build(*plain, "msf/encoder=pyramid", f"msf/fusion={fusion}")
    names = [name for name, _ in alone.models["feature_extractor"].named_parameters()]
    pyramid = model.models["feature_extractor"]
    assert [name for name, _ in pyramid.extractor.named_parameters()] == names
    assert list(model.models) == list(alone.models) and set(alone.losses) <= set(model.losses)
    assert config.optimizers == before.optimizers and config.dataset == before.dataset
    assert ("pyramid_codebook" in model.losses) == (fusion == "msf")
    assert ("pyramid_commitment" in model.losses) == ("msf" in fusion)
    if fusion != "frozen_msf":
        features = pyramid(inputs={"input": {"image": torch.randn(2, 3, 64, 64)}}).features
        assert features.shape == (2, 16 * 16, 64)


def test_the_pyramid_goes_around_the_extractor_of_another_config(monkeypatch):
    monkeypatch.setenv("DATASET_PREFIX", "data")
    config, model = build("+experiment=slot_attention/clevr6", "+msf=pyramid", "models.pyramid.num_scales=2")
    pyramid = model.models["feature_extractor"]
    assert isinstance(pyramid.extractor, SlotAttentionFeatureExtractor) and pyramid.pyramid.num_scales == 2
    assert pyramid(inputs={"input": {"image": torch.randn(1, 3, 32, 32)}}).features.shape == (1, 32 * 32, 64)
