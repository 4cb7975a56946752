"""Tracked visualizations, CLIP, SAVi as a module, callbacks and configs in subfolders, by the names of OCLF."""

import json
from types import SimpleNamespace

import open_clip
import pytest
import torch
from ocl import feature_extractors, preprocessing, visualizations
from ocl.cli.eval import load_train_config
from ocl.models import SAVi
from ocl.utils import logging
from torch import nn


def test_boxes_are_drawn_around_objects():
    video = torch.zeros(2, 3, 3, 40, 40)
    masks = torch.zeros(2, 3, 4, 40, 40)
    masks[:, :, 0, 5:11, 8:20] = 1
    masks[:, 1:, 1, 20:31, 3:9] = 0.6
    masks[:, :, 2] = 1  # a wall
    for method, walls in ((visualizations.ObjectMOT, True), (visualizations.TrackedObject_from_Mask, False)):
        shown = method(n_clips=1, fps=7)(video, masks)
        frames = shown.vid_tensor[0]
        assert shown.fps == 7 and frames.shape == (3, 3, 40, 40) and 0 <= frames.min() and frames.max() <= 1
        drawn = frames.amax(1) > 0
        assert drawn[:, 5, 8:20].all() and drawn[:, 5:11, 8].all() and not drawn[:, 7, 12].any()
        assert drawn[1:, 20, 3:9].all() and not drawn[0, 21:30, 3].any()
        assert drawn[:, 0].any().item() == walls
        assert not torch.equal(frames[1, :, 5, 10], frames[1, :, 20, 5])  # in another color
    boxes, ids = torch.tensor([8, 5, 19, 10]).expand(2, 3, 2, 4), torch.tensor([0, -1]).expand(2, 3, 2)
    given = visualizations.TrackedObject(n_clips=1)(video, boxes, ids).vid_tensor[0]
    assert torch.equal(given[0], frames[0])
    assert visualizations.TrackedObject()(video, boxes, torch.full_like(ids, -1)).vid_tensor.count_nonzero() == 0


@pytest.mark.parametrize("row_is_image", [True, False])
def test_table_of_texts_and_images(row_is_image):
    similarities = torch.rand(3, 3)
    method = visualizations.TextToImageMatching(row_is_image=row_is_image, n_instances=2)
    figure = method(torch.rand(3, 3, 8, 8), ["first", "second", "third"], similarities).figure
    table = figure.axes[-1]
    expected = similarities.T if row_is_image else similarities
    assert [label.get_text() for label in table.get_yticklabels()] == ["first", "second"]
    assert [text.get_text() for text in table.texts] == [f"{value:.2f}" for value in expected[:2, :2].flatten()]


@pytest.fixture
def tiny_clip(tmp_path):
    """Register a CLIP model of two layers of 16 channels."""
    layers = {"width": 16, "layers": 2}
    vision = {**layers, "image_size": 32, "patch_size": 8, "head_width": 8}
    text = {**layers, "context_length": 12, "vocab_size": 49408, "heads": 2}
    config = {"embed_dim": 6, "vision_cfg": vision, "text_cfg": text}
    (tmp_path / "tiny-8.json").write_text(json.dumps(config))
    open_clip.add_model_config(tmp_path)
    return "tiny/8"


def test_clip_models(tiny_clip):
    images, words = torch.rand(2, 3, 32, 32), preprocessing.TokenizeText(12)(["a dog", "two small cats"])
    torch.manual_seed(0)
    whole = open_clip.create_model("tiny-8", force_quick_gelu=True).eval()
    image_model = feature_extractors.ClipImageModel(tiny_clip, reset_weights=True).eval()
    image_model.clip_vision_model.load_state_dict(whole.visual.state_dict())
    assert torch.allclose(image_model(images).features, whole.encode_image(images), atol=1e-6)
    names = {name.split(".")[1] for name in image_model.state_dict()}
    openai = {"class_embedding", "conv1", "ln_post", "ln_pre", "positional_embedding", "proj", "transformer"}
    assert names == openai and all(name.startswith("clip_vision_model.") for name in image_model.state_dict())
    places = feature_extractors.ClipImageModel(tiny_clip, True, True, remove_pooling=True).eval()
    output = places(images.unsqueeze(1))
    assert output.features.shape == (2, 1, 16, 16) and output.positions.shape == (16, 2)
    assert not output.features.requires_grad and not any(p.requires_grad for p in places.parameters())

    text_model = feature_extractors.ClipTextModel(tiny_clip, reset_weights=True).eval()
    weights = {name: value for name, value in whole.state_dict().items() if name in text_model.state_dict()}
    text_model.load_state_dict(weights)
    assert {name.split(".")[0] for name in weights} == {
        *("token_embedding", "positional_embedding", "transformer", "ln_final", "text_projection")
    }
    pooled = whole.encode_text(words)
    assert torch.allclose(text_model(words), pooled, atol=1e-6)
    for remove_eot, count in ((False, 4), (True, 3)):  # start, a, dog, end
        text_model.remove_pooling, text_model.remove_eot = True, remove_eot
        features = text_model(words)
        assert features[0].any(dim=-1).tolist() == [place < count for place in range(12)]
    text_model.remove_eot = False
    assert torch.allclose(text_model(words)[0, 3], pooled[0], atol=1e-6)


def test_tokens_of_text():
    tokenize = preprocessing.TokenizeText(5)
    single = tokenize("a dog")
    assert single.shape == (5,) and torch.equal(tokenize(["a dog"])[0], single) and single.argmax() == 3
    with pytest.raises(ValueError, match="truncate"):
        tokenize("far too many words for this")
    assert preprocessing.TokenizeText(5, truncate=True)("far too many words for this").shape == (5,)


def test_savi_carries_slots_through_time():
    def group(feature, conditioning):
        return SimpleNamespace(objects=conditioning + feature)

    parts = {
        "conditioning": lambda batch_size: torch.zeros(batch_size, 1, 1),
        "feature_extractor": lambda video: list(video.unbind(1)),
        "perceptual_grouping": group,
        "decoder": lambda object_features: {"image": -object_features},
        "transition_model": lambda slots: 2 * slots,
    }
    model = SAVi(*[nn.Identity()] * 5, input_path="input.video")
    for name, part in parts.items():
        module = nn.Module()
        module.forward = part
        setattr(model, name, module)
    output = model({"input": {"video": torch.tensor([1.0, 10, 100]).view(1, 3, 1, 1)}})
    slots = output["perceptual_grouping"].flatten().tolist()
    assert slots == [1, 12, 124] and output["transition_model"].flatten().tolist() == [2, 24, 248]
    assert output["decoder"]["image"].flatten().tolist() == [-1, -12, -124]


def test_hyper_parameters_of_a_run(monkeypatch, tmp_path):
    (tmp_path / "config").mkdir()
    (tmp_path / "config" / "config.yaml").write_text("optimizers: {main: {lr: 0.1}}\n")
    run = SimpleNamespace(
        runtime=SimpleNamespace(output_dir=str(tmp_path)),
        output_subdir="config",
        overrides=SimpleNamespace(task=["+experiment=a/b", "seed=1", "~losses"]),
    )
    monkeypatch.setattr(logging.HydraConfig, "initialized", lambda: True)
    monkeypatch.setattr(logging.HydraConfig, "get", lambda: run)
    logged = {}
    logger = SimpleNamespace(log_hyperparams=logged.update)
    trainer = SimpleNamespace(logger=logger, loggers=[logger])
    logging.LogHydraConfigCallback("config", {"rate": "optimizers.main.lr"}).on_fit_start(trainer, None)
    assert logged == {"experiment": "a/b", "seed": "1", "rate": 0.1}
    logged.clear()
    logging.LogHydraConfigCallback("config", ["optimizers.main.lr"], skip_overrides=True).on_fit_start(trainer, None)
    assert logged == {"optimizers.main.lr": 0.1}
    assert issubclass(logging.LogModelSummaryCallback, logging.LogModelSummary)


def test_training_config_in_a_subfolder_keeps_its_root(tmp_path):
    folder = tmp_path / "experiment" / "family"
    folder.mkdir(parents=True)
    (folder / "_base.yaml").write_text("# @package _global_\nvalue: 3\n")
    (folder / "name.yaml").write_text(
        "# @package _global_\ndefaults:\n  - /experiment/family/_base\n  - _self_\nother: 4\n"
    )
    config = load_train_config(str(folder / "name.yaml"), ["other=5"], "experiment/family/name")
    assert config == {"value": 3, "other": 5}
    assert load_train_config(str(folder / "_base.yaml"), None) == {"value": 3}


def test_networks_of_timm_return_three_values():
    extractor = feature_extractors.TimmFeatureExtractor("resnet18", feature_level=4)
    features, positions, aux = extractor.forward_images(torch.rand(1, 3, 64, 64))
    assert features.shape == (1, 4, 512) and positions.shape == (4, 2) and aux is None
