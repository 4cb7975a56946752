import pytest
import timm
import torch
from safetensors.torch import save_file

from ocl_msf.dilated import Contrast
from ocl_msf.experiments.upgrade import rename_weights
from ocl_msf.feature_extractors import NaiveCNN, ViTWithCNN
from ocl_msf.training.callbacks import LoadViT
from ocl_msf.vit import FrozenViT, vit_dim, vit_num_patches

pytestmark = pytest.mark.needs_host

TINY = "vit_tiny_patch16_224"
REGISTERS = "vit_small_patch14_reg4_dinov2.lvd142m"


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
    alone = ViTWithCNN(5, stride=2, vit=None)
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
    return ViTWithCNN(6, vit=TINY, pretrained=False)


def random_vit(name=TINY):
    """A ViT whose every weight differs from those of another, class token and biases too."""
    vit = timm.create_model(name, num_classes=0)
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
    chunked = ViTWithCNN(6, vit=vit, pretrained=False)
    chunked.max_images = 4
    sizes = []
    chunked.layers.register_forward_hook(lambda module, inputs, output: sizes.append(len(output)))
    video = torch.rand(2, 3, 3, 32, 32) * 2 - 1
    whole, parts = chunked.train()(video), chunked.eval()(video)
    assert sizes == [6, 4, 2]
    torch.testing.assert_close(parts.features, whole.features)
    torch.testing.assert_close(parts.positions, whole.positions)
    torch.testing.assert_close(parts.aux_features, whole.aux_features)


@pytest.mark.parametrize("name, side", [(TINY, 224), (REGISTERS, 518), ("vit_small_patch16_dinov3.lvd1689m", 256)])
def test_tokens_are_those_of_timm(name, side, tmp_path):
    """At the size of the pretraining, without class and register tokens, for images normalised as there."""
    vit, frozen = random_vit(name), FrozenViT(name)
    torch.save(vit.state_dict(), tmp_path / "vit.pth")
    frozen.load(frozen.find_weights(tmp_path / "vit.pth"))
    image = torch.rand(1, 3, side, side)
    mean, std = (torch.tensor(vit.default_cfg[key]).view(1, 3, 1, 1) for key in ("mean", "std"))
    with torch.no_grad():
        expected = vit.forward_features((image - mean) / std)[:, vit.num_prefix_tokens :]
        tokens = frozen(image * 2 - 1)
    torch.testing.assert_close(tokens.flatten(2).transpose(1, 2), expected, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("name", [TINY, REGISTERS])
def test_positions_are_interpolated_between_those_of_the_pretraining(name):
    """A table of positions that are their coordinates gives the coordinates of any grid."""
    frozen = FrozenViT(name, pretrained=False)
    rows, columns = frozen.network.patch_embed.grid_size
    prefix = frozen.network.pos_embed.shape[1] - rows * columns
    ramp = (torch.arange(rows) + 0.5) / rows
    frozen.network.pos_embed[:, prefix:] = ramp.repeat_interleave(columns)[None, :, None]
    frozen.network.pos_embed[:, :prefix] = 7.0
    positions = frozen._positions(frozen.network.num_prefix_tokens + 6 * 5, 6, 5)
    of_prefix, of_patches = positions.split([frozen.network.num_prefix_tokens, 30], 1)
    assert (of_prefix[:, :prefix] == 7).all() and (of_prefix[:, prefix:] == 0).all()
    expected = ((torch.arange(6) + 0.5) / 6).repeat_interleave(5)[None, :, None].expand_as(of_patches)
    torch.testing.assert_close(of_patches, expected, atol=0.02, rtol=0)


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
    vit.load(vit.find_weights(tmp_path / "dino.pth"))
    assert all(torch.equal(x, weights[name]) for name, x in vit.network.state_dict().items())


def test_safetensors_are_read(tmp_path):
    weights = random_vit().state_dict()
    save_file(weights, tmp_path / "dino.safetensors")
    vit = FrozenViT(TINY)
    vit.load(vit.find_weights(tmp_path / "dino.safetensors"))
    assert all(torch.equal(x, weights[name]) for name, x in vit.network.state_dict().items())


def test_the_vit_never_learns_while_convolution_and_cnn_do(encoder):
    encoder.train()
    assert not any(module.training for module in encoder.vit.modules())
    assert encoder.layers.training
    features = encoder(torch.rand(1, 3, 32, 32) * 2 - 1).features
    features.square().sum().backward()
    assert all(p.grad is None and not p.requires_grad for p in encoder.vit.parameters())
    learning = [*encoder.project_tokens.parameters(), *encoder.layers.parameters()]
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in learning)
    encoder.zero_grad()


def test_without_weights_it_refuses_to_run():
    with pytest.raises(RuntimeError, match=r"experiment\.vit\.weights=PATH.*dino_deitsmall8_pretrain\.pth"):
        ViTWithCNN(4, vit=TINY)(torch.zeros(1, 3, 32, 32))


def test_weights_out_of_reach_are_named(tmp_path, monkeypatch):
    vit = FrozenViT(TINY)
    with pytest.raises(
        FileNotFoundError, match=r"none\.pth.*experiment\.vit\.weights=PATH.*dino_deitsmall8_pretrain\.pth"
    ):
        vit.find_weights(tmp_path / "none.pth")

    def unreachable(*args, **kwargs):
        raise OSError("no network")

    monkeypatch.setattr(timm, "create_model", unreachable)
    with pytest.raises(FileNotFoundError, match=r"experiment\.vit\.weights=PATH.*dino_deitsmall8_pretrain\.pth"):
        vit.find_weights()


def test_files_of_something_else_are_refused(tmp_path):
    vit = FrozenViT(TINY)
    torch.save({"layer.weight": torch.zeros(2)}, tmp_path / "other.pth")
    with pytest.raises(RuntimeError, match="layer.weight"):
        vit.load(vit.find_weights(tmp_path / "other.pth"))
    (tmp_path / "broken.pth").write_bytes(b"no weights")
    with pytest.raises(ValueError, match="cannot be read"):
        vit.find_weights(tmp_path / "broken.pth")
    assert not vit.loaded


def test_a_checkpoint_of_the_whole_model_needs_no_file(encoder):
    restored = ViTWithCNN(6, vit=TINY)
    restored.load_state_dict(encoder.state_dict())
    image = torch.rand(1, 3, 32, 32) * 2 - 1
    with torch.no_grad():
        assert torch.equal(restored(image).features, encoder(image).features)


def test_images_that_patches_do_not_cover_are_enlarged(encoder):
    image = torch.rand(1, 3, 40, 30) * 2 - 1
    with torch.no_grad():
        output = encoder(image)
        larger = torch.nn.functional.interpolate(image, (48, 32), mode="bicubic")
        tokens = encoder(larger).aux_features["tokens"]
    assert output.features.shape == (1, 40 * 30, 6)
    torch.testing.assert_close(output.aux_features["tokens"], tokens)


def test_sizes_are_read_from_the_model():
    for name, dim, patches in (("vit_small_patch8_224.dino", 384, 256), (TINY, 192, 64), (REGISTERS, 384, 100)):
        assert (vit_dim(name), vit_num_patches(name, 128)) == (dim, patches)
        assert FrozenViT(name, pretrained=False)(torch.zeros(1, 3, 128, 128)).flatten(2).shape == (1, dim, patches)


class Parts(torch.nn.Module):
    """A Lightning module as the callbacks see it."""

    def __init__(self, **models):
        super().__init__()
        self.models = torch.nn.ModuleDict(models)


def test_one_callback_loads_the_vit_once(tmp_path):
    weights = random_vit().state_dict()
    torch.save(weights, tmp_path / "vit.pth")
    model = Parts(feature_extractor=ViTWithCNN(4, vit=TINY))
    LoadViT(str(tmp_path / "vit.pth")).on_fit_start(None, model)
    loaded = model.models["feature_extractor"].vit.network.state_dict()
    assert all(torch.equal(x, weights[name]) for name, x in loaded.items())
    LoadViT("gone.pth").on_fit_start(None, model)  # it has its weights
    LoadViT("gone.pth").on_fit_start(None, Parts(feature_extractor=ViTWithCNN(4, vit=None)))  # it needs none


def test_weights_that_do_not_fit_are_named_with_their_file(tmp_path):
    torch.save({"layer.weight": torch.zeros(2)}, tmp_path / "other.pth")
    with pytest.raises(ValueError, match=r"(?s)other\.pth do not fit feature_extractor\.vit.*layer\.weight"):
        LoadViT(str(tmp_path / "other.pth")).on_fit_start(None, Parts(feature_extractor=ViTWithCNN(4, vit=TINY)))


def test_a_checkpoint_of_before_has_its_weights_under_new_names(encoder):
    now = {f"models.feature_extractor.{name}": x for name, x in encoder.state_dict().items()}
    before = {
        name.replace(".vit.network.", ".dino.vit.").replace(".vit.loaded", ".dino.loaded"): x for name, x in now.items()
    }
    assert set(before) != set(now)
    assert rename_weights(before).keys() == now.keys()


def test_dilated_features_tell_textures_from_afar_and_do_not_know_the_border():
    torch.manual_seed(0)
    cnn = NaiveCNN(8, stride=4, dilations=[1, 2, 4]).eval()
    flat = cnn.layers(torch.full((1, 3, 64, 64), 0.3))  # b d h w
    assert flat.shape == (1, 8, 16, 16)
    torch.testing.assert_close(flat, flat[..., :1, :1].expand_as(flat))
    image = torch.randn(1, 3, 128, 128, requires_grad=True)
    cnn.layers[:-1](image)[0, :, 16, 16].sum().backward()  # the last layer normalises over the whole image
    seen = image.grad.abs().sum((0, 1)).nonzero()
    strided = 5 + 2 * 2  # pixels of a side that a kernel of 5, and one of 3 at stride 2 behind it, see
    assert (seen.amax(0) - seen.amin(0) + 1).tolist() == [strided + 4 * 2 * (1 + 2 + 4)] * 2
    with pytest.raises(ValueError, match="stride is 4"):
        NaiveCNN(8, stride=2, dilations=[1])


def test_contrast_makes_what_is_common_to_an_image_small():
    torch.manual_seed(0)
    x = torch.randn(2, 3, 8, 8)
    output = Contrast(3)(x + 5)
    inside, common = output.std((2, 3)), output.mean((2, 3))
    torch.testing.assert_close(common, 0.5 * (x + 5).mean((2, 3)))
    torch.testing.assert_close(
        inside, 0.5 * x.std((2, 3)) + x.std((2, 3)) / x.var((2, 3), unbiased=False).sqrt(), rtol=1e-3, atol=0
    )


def test_the_vit_alone_gives_its_tokens_as_features():
    torch.manual_seed(0)
    alone = ViTWithCNN(192, vit=TINY, pretrained=False, cnn=False, grid=4)
    output = alone(torch.rand(2, 3, 70, 70) * 2 - 1)
    assert output.features.shape == (2, 16, 192) and output.positions.shape == (16, 2) and alone.feature_dim == 192
    assert torch.equal(output.features, output.aux_features["tokens"])
    assert not [name for name, x in alone.named_parameters() if x.requires_grad]
    with pytest.raises(ValueError, match="needs a CNN or a ViT"):
        ViTWithCNN(vit=None, cnn=False)
    with pytest.raises(ValueError, match="192 channels: experiment.encoder.dim"):
        ViTWithCNN(64, vit=TINY, pretrained=False, cnn=False)


def test_a_grid_resizes_images_and_takes_tables_of_any_grid():
    weights = random_vit().state_dict()
    plain, on_grid, small = FrozenViT(TINY), FrozenViT(TINY, grid=14), FrozenViT(TINY, grid=4)
    for vit in (plain, on_grid, small):
        vit.load(weights)
    image = torch.rand(1, 3, 224, 224) * 2 - 1
    assert torch.equal(on_grid(image), plain(image)), "its own grid changes nothing"
    assert small(image).shape == (1, 192, 4, 4) and vit_num_patches(TINY, 224, grid=4) == 16
    resized = torch.nn.functional.interpolate(image, (64, 64), mode="bicubic")
    torch.testing.assert_close(small(image), small(resized))
    again = FrozenViT(TINY, grid=4)
    again.load_state_dict(small.state_dict())  # as a checkpoint of the whole model
    assert torch.equal(again(image), small(image))
    table = small.network.pos_embed
    assert table.shape == (1, 17, 192) and torch.equal(table[:, 0], weights["pos_embed"][:, 0])
