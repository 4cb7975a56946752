"""STEVE, and the other models of videos, as a user runs them, on little videos in the shards' layout."""

import json
import runpy
from pathlib import Path
from types import SimpleNamespace

import hydra
import pytest
import torch
from hydra import initialize_config_module
from ocl.cli.train import build_model_from_config
from ocl.cli.train import train as train_config
from omegaconf import OmegaConf

from ocl_msf.chunks import in_chunks
from ocl_msf.video import FoldFrames

pytestmark = [pytest.mark.needs_host, pytest.mark.oclf]

RAW = SimpleNamespace(**runpy.run_path(str(Path(__file__).with_name("raw_videos.py"))))
TINY = [
    "+msf/preset=cpu",
    "dataset.batch_size=2",
    "dataset.eval_batch_size=2",
    "dataset.num_workers=0",
    "experiment.pretraining={steps:2,warmup_steps:0,anneal_steps:1,validate_every:2,learning_rate:1e-3,clip_norm:1}",
    "experiment.training={steps:2,warmup_steps:0,validate_every:2,learning_rate:1e-3,clip_norm:0.02}",
    "experiment.vae={dim:8,hidden_dim:8}",
    "experiment.slots={number:5,dim:8}",
    "experiment.encoder.dim=4",
    "experiment.decoder={dim:16,num_layers:1,num_heads:2,dropout:0,token_dropout:0}",
    "experiment.diffusion={channels:[8,16],num_layers:1,num_heads:2}",
    "experiment.image_size=32",
    "seed=0",
]


@pytest.fixture(scope="module")
def movi(tmp_path_factory):
    folder = tmp_path_factory.mktemp("movi")
    RAW.write_videos(folder, "c")
    return folder


@pytest.fixture
def compose(movi, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DATASET_PREFIX", str(movi))
    with initialize_config_module("configs", version_base="1.1"):
        yield lambda experiment, *overrides: hydra.compose(
            "training_config", overrides=[f"+experiment=msf/{experiment}", *overrides]
        )


@pytest.fixture
def build(compose):
    """Build a tiny model, its guidance made of untrained weights."""

    def run(experiment, *overrides):
        torch.manual_seed(0)
        model = build_model_from_config(compose(experiment, *TINY, *overrides))
        guidance = model.models["guidance"]
        guidance.load(guidance.vae.state_dict())
        return model

    return run


@pytest.fixture
def steve(build):
    return build("steve_movi_c")


MODELS = [
    ["steve_movi_c"],
    ["steve_movi_c", "msf/guidance=scale_2"],
    ["steve_movi_c", "msf/guidance=both", "+msf/heads=joint"],
    ["sysbinder_movi_c"],
    ["slotdiffusion_movi_c"],
    ["slotdiffusion_movi_c", "msf/guidance=both"],
]


def predictions(out):
    """What the decoders of a model predict, as one list of tensors."""
    decoders = [out[name] for name in ("decoder", "decoder_2") if name in out]
    return [x for decoder in decoders for x in getattr(decoder, "logits", None) or [decoder.prediction]]


def little_batch(frames=3):
    generator = torch.Generator().manual_seed(1)
    boxes = torch.zeros(2, frames, 10, 4)
    boxes[:, :, :2] = torch.tensor([[0.1, 0.1, 0.4, 0.4], [0.5, 0.5, 0.9, 0.9]])
    boxes[1, :, 1] = 0
    return {"image": torch.rand(2, frames, 3, 32, 32, generator=generator) * 2 - 1, "boxes": boxes, "batch_size": 2}


def test_a_run_is_scored_over_whole_videos(compose, movi, run_program, tmp_path):
    train_config(compose("vqvae_movi_c", *TINY))
    (checkpoint,) = tmp_path.glob("lightning_logs/version_0/checkpoints/*.ckpt")
    config = compose("steve_movi_c", *TINY, f"experiment.vae_checkpoint='{checkpoint}'")
    train_config(config)
    (tmp_path / "config").mkdir(exist_ok=True)
    OmegaConf.save(config, tmp_path / "config" / "config.yaml")
    (trained,) = tmp_path.glob("lightning_logs/version_1/checkpoints/*.ckpt")
    run = [f"train_config_path={tmp_path}/config/config.yaml", f"checkpoint_path='{trained}'", f"output_dir={tmp_path}"]
    command = ["+evaluation=msf/steve_movi_c", *run]
    done = run_program("ocl.cli.eval", *command, cwd=tmp_path, DATASET_PREFIX=str(movi))
    assert done.returncode == 0, done.stdout + done.stderr
    scores = json.loads((tmp_path / "metrics.json").read_text())["metrics"]["val"]
    assert {"ari", "ari_fg", "miou", "mbo", "tokens", "image_gain_ari", "colour_mbo", "slot_gain"} <= set(scores)


@pytest.mark.parametrize("variant, slots", [("c", 11), ("d", 21), ("e", 21)])
def test_the_numbers_of_the_paper(compose, variant, slots):
    config = compose(f"steve_movi_{variant}")
    assert config.models.conditioning.n_slots == slots
    assert config.trainer.gradient_clip_val == 0.02
    assert (config.dataset.batch_size, config.dataset.eval_batch_size, config.trainer.max_steps) == (8, 4, 50000)
    assert compose(f"vqvae_movi_{variant}").dataset.batch_size == 16
    assert sum(p.numel() for p in build_model_from_config(config).parameters()) > 1e5


def test_shapes_and_masks_that_sum_to_one_over_the_slots_with_a_box(steve):
    out = steve.eval()(little_batch())
    grouping = out["recurrence"]["corrector"]
    assert grouping.objects.shape == (2, 3, 5, 8 + 3)  # with their frames
    assert out["perceptual_grouping"].objects.shape == (6, 5, 8 + 3)
    assert out["masks"].shape == (2, 3, 5, 32, 32)
    assert out["decoder"].logits[0].shape == (6, 64, 64)
    torch.testing.assert_close(out["masks"].sum(2), torch.ones(2, 3, 32, 32))
    assert out["conditioning"].is_empty.tolist() == [[False] * 3 + [True] * 2, [False] * 2 + [True] * 3]
    assert out["masks"][0, :, 3:].abs().max() == 0 and out["masks"][1, :, 2:].abs().max() == 0


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("model", MODELS, ids="-".join)
def test_vectors_of_empty_slots_change_nothing(build, model, training):
    videos = build(*model).train(training)
    torch.manual_seed(0)
    before = videos(little_batch())

    def move(module, inputs, output):
        return type(output)(output.queries + 3.0 * output.is_empty[..., None], output.is_empty)

    videos.models["conditioning"].register_forward_hook(move)
    torch.manual_seed(0)
    after = videos(little_batch())
    assert not torch.equal(after["conditioning"].queries, before["conditioning"].queries)
    torch.testing.assert_close(after["masks"], before["masks"])
    live = ~before["perceptual_grouping"].is_empty
    torch.testing.assert_close(after["perceptual_grouping"].objects[live], before["perceptual_grouping"].objects[live])
    torch.testing.assert_close(predictions(after), predictions(before))


def test_evaluation_is_deterministic_and_a_video_equals_its_frames(steve):
    batch = little_batch()
    one, two = steve.eval()(batch), steve(batch)
    assert torch.equal(one["masks"], two["masks"])
    for frame in range(3):
        alone = steve.models["guidance"](image=batch["image"][:, frame])
        assert torch.equal(one["guidance"].indices[frame::3], alone.indices)
    grouping = one["perceptual_grouping"]
    single = steve.models["decoder"](
        slots=grouping.objects[4:5], guidance=one["guidance"].features[4:5], slot_mask=grouping.is_empty[4:5]
    )
    torch.testing.assert_close(single.logits[0], one["decoder"].logits[0][4:5])
    again = {**batch, "image": batch["image"].clone()}
    again["image"][:, 2] = 0.0
    torch.testing.assert_close(steve(again)["masks"][:, :2], one["masks"][:, :2])  # the past does not see the future


@pytest.mark.parametrize("model", MODELS, ids="-".join)
def test_chunks_equal_the_whole_and_bound_the_batch(build, model):
    """Encoder, guidance and every decoder see four of the six frames, then two."""
    videos = build(*model).eval()
    whole = videos(little_batch())
    sizes = {name: [] for name in videos.models if name.startswith(("feature_extractor", "guidance", "decoder"))}
    for name in sizes:
        part = videos.models[name]
        part.max_images = 4
        inner = next(module for module in part.modules() if isinstance(module, (torch.nn.Conv2d, torch.nn.Linear)))
        inner.register_forward_hook(lambda module, inputs, output, name=name: sizes[name].append(len(output)))
    chunked = videos(little_batch())
    assert {name: list(dict.fromkeys(batches)) for name, batches in sizes.items()} == dict.fromkeys(sizes, [4, 2])
    assert torch.equal(chunked["guidance"].all_indices[1], whole["guidance"].all_indices[1])
    torch.testing.assert_close(chunked["masks"], whole["masks"])
    torch.testing.assert_close(predictions(chunked), predictions(whole))


@pytest.mark.parametrize("experiment", ["steve_movi_c", "slotdiffusion_movi_c"])
def test_pictures_show_frames(build, experiment):
    videos = build(experiment).eval()
    out = {**videos(little_batch(4)), "model": videos}
    segmentation = videos.visualizations["segmentation"](inputs=out).img_tensor
    assert segmentation.shape == (3, 32 + 4, 8 * 34 + 2)  # eight frames in a row, a border around each
    assert videos.visualizations["reconstruction"](inputs=out).img_tensor.shape == (3, 64, 8 * 32)


def test_gradients_reach_slots_and_queries_and_never_the_vae(steve):
    out = steve.train()(little_batch())
    loss, _ = steve.losses["tokens"](inputs=out)
    loss.backward()
    reached = {name for name, p in steve.named_parameters() if p.grad is not None and p.grad.abs().max() > 0}
    for name in ("conditioning.mlp.0", "recurrence.module.predictor.block.linear1", "feature_extractor.layers.0"):
        assert f"models.{name}.weight" in reached
    assert not [name for name in reached if "guidance" in name]


def test_frames_are_folded_in_order():
    video = torch.arange(12).reshape(2, 3, 2)
    assert torch.equal(FoldFrames()(video), video.reshape(6, 2))
    assert in_chunks(lambda x, y: x * 2, 4, video.flatten(), None).tolist() == list(range(0, 24, 2))
