import pytest
import timm
import torch
from safetensors.torch import save_file

from ocl_msf.feature_extractors import BigLittle, FrozenViT, NaiveCNN
from ocl_msf.video import ChunkedBigLittle

TINY = "vit_tiny_patch16_224"


@pytest.mark.parametrize("stride", [1, 2])
def test_features_and_positions_cover_the_grid_of_the_stride(stride):
    output = NaiveCNN(5, stride=stride)(torch.randn(2, 3, 8, 12))
    height, width = 8 // stride, 12 // stride
    assert output.features.shape == (2, height * width, 5)
    assert output.positions.shape == (height * width, 2)
    assert len(output.positions.unique(dim=0)) == height * width


def test_layers_keep_the_scale_of_the_image():
    torch.manual_seed(0)
    features = NaiveCNN(64)(torch.randn(4, 3, 16, 16)).features
    assert 0.3 < features.pow(2).mean() < 3


def test_without_a_vit_it_is_the_cnn_alone():
    torch.manual_seed(0)
    alone = BigLittle(5, stride=2, vit=None)
    torch.manual_seed(0)
    cnn = NaiveCNN(5, stride=2)
    assert list(alone.state_dict()) == list(cnn.state_dict())
    image = torch.randn(2, 3, 8, 12)
    output = alone(image)
    assert torch.equal(output.features, cnn(image).features) and not output.aux_features


def test_features_are_those_of_the_cnn_and_of_the_upsampled_tokens(encoder):
    image = torch.rand(1, 3, 32, 48) * 2 - 1
    output = encoder(image)
    tokens = encoder.project_tokens(output.aux_features["tokens"].transpose(1, 2).unflatten(2, (2, 3)))
    upsampled = torch.nn.Upsample(scale_factor=16, mode="bilinear")(tokens)
    torch.testing.assert_close(output.features, (encoder.layers(image) + upsampled).flatten(2).transpose(1, 2))


@pytest.fixture(scope="module")
def encoder():
    torch.manual_seed(0)
    return BigLittle(6, vit=TINY, pretrained=False)


def random_vit():
    """A ViT whose every weight differs from those of another, class token and biases too."""
    vit = timm.create_model(TINY, num_classes=0)
    for parameter in vit.parameters():
        torch.nn.init.normal_(parameter, std=0.05)
    return vit.eval()


@pytest.mark.parametrize("size", [(128, 128), (256, 256), (32, 64)])
def test_features_have_the_resolution_of_the_image_and_tokens_that_of_the_patches(encoder, size):
    with torch.no_grad():
        output = encoder(torch.rand(1, 3, *size) * 2 - 1)
    assert output.features.shape == (1, size[0] * size[1], 6)
    assert output.positions.shape == (size[0] * size[1], 2)
    assert output.aux_features["tokens"].shape == (1, size[0] * size[1] // 256, 192)


@pytest.mark.parametrize("size, tokens", [(128, 256), (256, 1024)])
def test_the_papers_vit_is_found_in_every_timm(size, tokens):
    vit = FrozenViT("vit_small_patch8_224.dino", pretrained=False)
    assert vit(torch.zeros(1, 3, size, size)).flatten(2).shape == (1, 384, tokens)


def test_frames_of_a_video_are_encoded_like_images(encoder):
    video = torch.rand(2, 3, 3, 32, 32) * 2 - 1
    with torch.no_grad():
        output, single = encoder(video), encoder(video[:, 1])
    torch.testing.assert_close(output.features[:, 1], single.features)
    torch.testing.assert_close(output.aux_features["tokens"][:, 1], single.aux_features["tokens"])


@pytest.mark.parametrize("vit", [None, TINY])
def test_frames_in_chunks_are_encoded_like_the_whole(vit):
    chunked = ChunkedBigLittle(6, vit=vit, pretrained=False)
    chunked.max_frames = 4
    seen = []
    chunked.layers.register_forward_hook(lambda module, inputs, output: seen.append(len(output)))
    video = torch.rand(2, 3, 3, 32, 32) * 2 - 1
    whole, parts = chunked.train()(video), chunked.eval()(video)
    assert seen == [6, 4, 2]
    torch.testing.assert_close(parts.features, whole.features)
    torch.testing.assert_close(parts.positions, whole.positions)
    torch.testing.assert_close(parts.aux_features, whole.aux_features)


def test_tokens_are_those_of_timm_for_images_normalised_as_imagenet(tmp_path):
    vit, frozen = random_vit(), FrozenViT(TINY)
    torch.save(vit.state_dict(), tmp_path / "vit.pth")
    frozen.load(tmp_path / "vit.pth")
    image = torch.rand(1, 3, 224, 224)
    mean, std = torch.tensor([[0.485, 0.456, 0.406], [0.229, 0.224, 0.225]]).view(2, 1, 3, 1, 1)
    with torch.no_grad():
        expected = vit.forward_features((image - mean) / std)[:, 1:]
    actual = frozen(image * 2 - 1).flatten(2).transpose(1, 2)
    torch.testing.assert_close(actual, expected, atol=1e-4, rtol=1e-4)


def backbone(weights):
    return weights


def full_checkpoint(weights):
    teacher = {f"module.backbone.{name}": x for name, x in weights.items()}
    return {"student": {"other": torch.zeros(1)}, "teacher": {**teacher, "module.head.mlp.0.weight": torch.zeros(2)}}


def wrapped(weights):
    return {"state_dict": {f"module.{name}": x for name, x in weights.items()}}


@pytest.mark.parametrize("layout", [backbone, full_checkpoint, wrapped])
def test_every_layout_of_the_release_is_read(layout, tmp_path):
    weights = random_vit().state_dict()
    torch.save(layout(weights), tmp_path / "dino.pth")
    vit = FrozenViT(TINY)
    vit.load(tmp_path / "dino.pth")
    assert all(torch.equal(x, weights[name]) for name, x in vit.vit.state_dict().items())


def test_safetensors_are_read(tmp_path):
    weights = random_vit().state_dict()
    save_file(weights, tmp_path / "dino.safetensors")
    vit = FrozenViT(TINY)
    vit.load(tmp_path / "dino.safetensors")
    assert all(torch.equal(x, weights[name]) for name, x in vit.vit.state_dict().items())


def test_the_vit_never_learns_while_convolution_and_cnn_do(encoder):
    encoder.train()
    assert not any(module.training for module in encoder.dino.modules())
    assert encoder.layers.training
    features = encoder(torch.rand(1, 3, 32, 32) * 2 - 1).features
    features.square().sum().backward()
    assert all(p.grad is None and not p.requires_grad for p in encoder.dino.parameters())
    learning = [*encoder.project_tokens.parameters(), *encoder.layers.parameters()]
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in learning)
    encoder.zero_grad()


def test_without_weights_it_refuses_to_run():
    with pytest.raises(RuntimeError, match=r"dino_deitsmall8_pretrain\.pth.*experiment\.dino_weights=PATH"):
        BigLittle(4, vit=TINY)(torch.zeros(1, 3, 32, 32))


def test_weights_out_of_reach_are_named(tmp_path, monkeypatch):
    vit = FrozenViT(TINY)
    with pytest.raises(FileNotFoundError, match=r"none\.pth.*dino_deitsmall8_pretrain\.pth.*experiment\.dino_weights"):
        vit.load(tmp_path / "none.pth")

    def unreachable(*args, **kwargs):
        raise OSError("no network")

    monkeypatch.setattr(timm, "create_model", unreachable)
    with pytest.raises(FileNotFoundError, match=r"dino_deitsmall8_pretrain\.pth.*experiment\.dino_weights=PATH"):
        vit.load()
    assert not vit.loaded


def test_files_of_something_else_are_refused(tmp_path):
    vit = FrozenViT(TINY)
    torch.save({"layer.weight": torch.zeros(2)}, tmp_path / "other.pth")
    with pytest.raises(ValueError, match="not those of vit_tiny"):
        vit.load(tmp_path / "other.pth")
    (tmp_path / "broken.pth").write_bytes(b"no weights")
    with pytest.raises(ValueError, match="cannot be read"):
        vit.load(tmp_path / "broken.pth")
    assert not vit.loaded


def test_a_checkpoint_of_the_whole_model_needs_no_file(encoder):
    restored = BigLittle(6, vit=TINY)
    restored.load_state_dict(encoder.state_dict())
    image = torch.rand(1, 3, 32, 32) * 2 - 1
    with torch.no_grad():
        assert torch.equal(restored(image).features, encoder(image).features)


def test_images_that_patches_do_not_cover_are_named(encoder):
    with pytest.raises(ValueError, match="multiples of 16, got 40x32"):
        encoder(torch.zeros(1, 3, 40, 32))
