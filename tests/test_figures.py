"""Figures: what they show, and that the same input gives the same bytes."""

import json
from types import SimpleNamespace

import hydra
import numpy as np
import ocl.cli.eval  # noqa: F401  registers the config that evaluations are composed of
import pytest
import torch
from hydra.utils import instantiate
from PIL import Image
from sklearn.metrics import adjusted_rand_score

from ocl_msf.autoencoder import VQVAE, Decoder, Encoder
from ocl_msf.cli import main
from ocl_msf.experiments.runs import Run
from ocl_msf.files import DataError
from ocl_msf.fusion import MultiScaleFusion
from ocl_msf.quantization import VectorQuantizer
from ocl_msf.results.figures import (
    GuidanceSheet,
    SceneScores,
    draw_codebooks,
    draw_curves,
    draw_maps,
    draw_segmentations,
    guidance_maps,
    read_guidance,
    read_scenes,
)
from ocl_msf.results.figures.guidance_maps import color_features
from ocl_msf.results.figures.segmentations import common_scenes
from ocl_msf.results.style import paint_segments

pytestmark = pytest.mark.needs_host


def make_vae(quantizer, scales):
    torch.manual_seed(0)
    return VQVAE(Encoder(8, 16), Decoder(8, 16), quantizer, scales).eval()


@pytest.fixture
def vae():
    return make_vae(MultiScaleFusion(8, 16, 3), 3)


IMAGE = torch.rand(3, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1


def test_colours_are_the_principal_components():
    """Of a map that varies along one direction much more than along another, and along no third."""
    rows, columns = torch.meshgrid(torch.arange(4.0), torch.arange(4.0), indexing="ij")
    features = torch.stack([10 * rows, columns, torch.zeros(4, 4)])
    (colors,) = color_features([features])
    assert np.allclose(colors[..., 0], rows / 3) and np.allclose(colors[..., 1], columns / 3)
    assert np.all(colors[..., 2] == 0.5)
    assert np.allclose(color_features([5 + 3 * features])[0], colors)
    assert np.all(color_features([torch.ones(2, 3, 3)])[0] == 0.5)


def test_equal_vectors_have_equal_colours_in_all_maps():
    fine = torch.rand(5, 4, 4, generator=torch.Generator().manual_seed(1))
    colors = color_features([fine, fine[:, :2, :2]])
    assert np.allclose(colors[0][:2, :2], colors[1]) and np.ptp(colors[0]) == 1


def test_maps_of_a_fused_image(vae):
    pictures = guidance_maps(vae, IMAGE)
    assert list(pictures) == ["input", "X^si before fusion", "X^si after fusion", "X^sv", "X", "winning scale"]
    assert all(p.shape == (8 >> n, 8 >> n, 3) for kind in list(pictures)[1:] for n, p in enumerate(pictures[kind]))
    assert [p.shape for p in pictures["input"]] == [(32, 32, 3), (16, 16, 3), (8, 8, 3)]
    output = vae.encode(IMAGE.unsqueeze(0))
    for scale, winners in enumerate(output.diagnostics["winners"]):
        shades = pictures["winning scale"][scale].reshape(-1, 3)
        assert len({tuple(shade) for shade in shades}) == len(winners.unique())
    own = output.diagnostics["winners"][0][0] == 0  # where scale 1 won itself, fusion has changed nothing
    before, after = (pictures[kind][0][own.numpy()] for kind in ("X^si before fusion", "X^si after fusion"))
    assert own.any() and np.array_equal(before, after)


def test_a_plain_vae_has_one_map():
    assert list(guidance_maps(make_vae(VectorQuantizer(8, 16), 1), IMAGE)) == ["input", "X"]


def test_an_evaluation_keeps_the_first_images(vae, tmp_path):
    sheet = GuidanceSheet(str(tmp_path / "a"), num_images=2)
    assert [sheet(IMAGE.expand(3, -1, -1, -1), vae) for _ in range(2)] == [2, 2]
    names = ["guidance.npz", "guidance_1.png", "guidance_2.png"]
    assert sorted(path.name for path in (tmp_path / "a").iterdir()) == names
    assert Image.open(tmp_path / "a" / "guidance_1.png").width > 600
    assert (tmp_path / "a" / "guidance_1.png").read_bytes() == (tmp_path / "a" / "guidance_2.png").read_bytes()
    kept = read_guidance(tmp_path / "a" / "guidance.npz")
    assert list(kept) == ["0", "1"]
    expected = guidance_maps(vae, IMAGE)
    assert list(kept["0"]) == list(expected)
    assert all(np.array_equal(a, b) for kind in expected for a, b in zip(kept["0"][kind], expected[kind]))


def test_the_images_kept_depend_on_their_names_alone(tmp_path):
    vae = make_vae(VectorQuantizer(8, 16), 1)
    names = [f"scene{n}" for n in range(6)]
    images = torch.stack([IMAGE * n / 6 for n in range(6)])
    for folder, order in [("a", [0, 1, 2, 3, 4, 5]), ("b", [3, 5, 1, 0, 2, 4])]:
        sheet = GuidanceSheet(str(tmp_path / folder), num_images=2)
        for part in (order[:3], order[3:]):
            sheet(images[part], vae, [names[n] for n in part])
    files = [(tmp_path / folder / "guidance.npz").read_bytes() for folder in "ab"]
    assert files[0] == files[1] and len(read_guidance(tmp_path / "a" / "guidance.npz")) == 2


def test_several_vaes_on_one_sheet(vae, tmp_path):
    one = guidance_maps(vae, IMAGE)
    other = guidance_maps(make_vae(VectorQuantizer(8, 16), 1), IMAGE)
    for name, models in [("a", {"msf": one}), ("b", {"vq": other, "msf": one}), ("c", {"vq": other, "msf": one})]:
        draw_maps(models, tmp_path / name)
    heights = [Image.open(tmp_path / name).height for name in "ab"]
    assert heights[1] > heights[0] * 1.2
    assert (tmp_path / "b").read_bytes() == (tmp_path / "c").read_bytes()


def test_segments_are_painted_with_borders():
    segments = np.repeat(np.array([[0, 1], [2, 2]]), 8, 0).repeat(8, 1)
    painted = paint_segments(segments, size=16)
    assert painted.shape == (16, 16, 3)
    inside = {tuple(painted[y, x]) for y, x in [(2, 2), (2, 12), (12, 2)]}
    assert len(inside) == 3 and (255, 255, 255) not in inside
    assert np.all(painted[8] == 255) and np.all(painted[:8, 8] == 255) and not np.any(np.all(painted[9] == 255, -1))
    renamed = np.array([7, 3, 9])[segments]
    assert np.array_equal(paint_segments(renamed, segments, 16), painted)
    assert paint_segments(segments, size=40).shape == (48, 48, 3)


def make_scenes(count, seed=0):
    generator = torch.Generator().manual_seed(seed)
    segments = torch.randint(3, (count, 1, 4, 4), generator=generator)
    true = torch.nn.functional.one_hot(segments.repeat_interleave(4, 2).repeat_interleave(4, 3)[:, 0], 3)
    masks = torch.rand(count, 4, 16, 16, generator=generator)
    images = torch.rand(count, 3, 16, 16, generator=generator) * 2 - 1
    return images, true.permute(0, 3, 1, 2).float(), masks, [f"{n:03}" for n in range(count)]


class Evaluation:
    """What `SceneScores` sees of one."""

    def __init__(self):
        self.trainer = SimpleNamespace(callbacks=[], is_global_zero=True)

    def end(self):
        for callback in self.trainer.callbacks:
            callback.on_validation_end(self.trainer, self)


def take(module, scenes, order, **kwargs):
    evaluated = Evaluation()
    for part in (order[: len(order) // 2], order[len(order) // 2 :]):
        if part:
            module(*(x[part] for x in scenes[:3]), [scenes[3][n] for n in part], evaluated, **kwargs)
    evaluated.end()
    return read_scenes(module.path)


def test_scenes_are_scored_one_by_one(tmp_path):
    images, true, masks, names = make_scenes(6)
    found = take(SceneScores(str(tmp_path), 6), (images, true, masks, names), list(range(6)))
    assert found.keys.tolist() == found.shown.tolist() == names
    for n in range(6):
        segments = true[n].argmax(0).numpy()
        slots = masks[n].argmax(0).numpy()
        expected = adjusted_rand_score(segments[segments > 0], slots[segments > 0])
        assert found.ari_fg[n] == pytest.approx(expected)
        assert np.array_equal(found.true_segments[n], segments) and np.array_equal(found.segments[n], slots + 1)
        assert np.allclose(found.images[n], (images[n].permute(1, 2, 0) + 1) * 127.5, atol=0.51)
    scores = [score for score, _ in found.ranking]
    assert scores == sorted(found.ari_fg, reverse=True)
    assert [found.ari_fg[picture] for _, picture in found.ranking] == scores


def test_scenes_with_pictures_depend_on_their_names_alone(tmp_path):
    scenes = make_scenes(8)
    first = take(SceneScores(str(tmp_path / "a"), 3), scenes, list(range(8)))
    second = take(SceneScores(str(tmp_path / "b"), 3), scenes, [5, 2, 7, 0, 3, 1, 6, 4])
    assert len(first.keys) == 8 and len(first.shown) == 3
    assert all(np.array_equal(a, b) for a, b in zip(first, second))


def test_a_video_is_scored_as_a_whole_and_shown_by_its_middle(tmp_path):
    images, true, masks, _ = make_scenes(3)
    found = take(SceneScores(str(tmp_path)), (images[None], true[None], masks[None], ["a"]), [0])
    segments, slots = true.argmax(1).numpy(), masks.argmax(1).numpy()
    assert found.ari_fg[0] == pytest.approx(adjusted_rand_score(segments[segments > 0], slots[segments > 0]))
    assert np.array_equal(found.true_segments[0], segments[1])


def test_pixels_to_ignore_do_not_count(tmp_path):
    images, true, masks, names = make_scenes(1)
    ignore = torch.zeros(1, 1, 16, 16)
    ignore[..., 8:] = 1
    found = take(SceneScores(str(tmp_path)), (images, true, masks, names), [0], ignore=ignore)
    segments, slots = true[0, :, :, :8].argmax(0).numpy(), masks[0, :, :, :8].argmax(0).numpy()
    expected = adjusted_rand_score(segments[segments > 0], slots[segments > 0])
    assert found.ari_fg[0] == pytest.approx(expected)


def test_scenes_without_an_object_have_a_picture_and_no_score(tmp_path):
    images, true, masks, names = make_scenes(6)
    true[[1, 4]] = torch.tensor([1.0, 0.0, 0.0])[:, None, None]
    found = take(SceneScores(str(tmp_path), 6), (images, true, masks, names), list(range(6)))
    assert np.isnan(found.ari_fg).tolist() == [n in (1, 4) for n in range(6)] and len(found.shown) == 6
    assert found.mean == pytest.approx(np.nanmean(found.ari_fg)) and sorted(found.scores) == [
        names[n] for n in (0, 2, 3, 5)
    ]
    assert sorted(number for _, number in found.ranking) == [0, 2, 3, 5]
    assert sorted(common_scenes({"model": found}, 6)) == sorted(found.scores)
    empty = found._replace(ari_fg=np.full(6, np.nan))
    assert np.isnan(empty.mean) and not empty.ranking
    with pytest.raises(DataError, match="no scene in common that shows an object"):
        draw_segmentations({"model": empty}, tmp_path / "a.png")


def test_models_side_by_side_on_the_same_scenes(tmp_path):
    images, true, masks, names = make_scenes(6)
    good = take(SceneScores(str(tmp_path / "good"), 6), (images, true, true, names), list(range(6)))
    moved = take(SceneScores(str(tmp_path / "moved"), 6), (images, true, true[:, [2, 0, 1]], names), list(range(6)))
    bad = take(SceneScores(str(tmp_path / "bad"), 6), (images, true, masks, names), list(range(6)))
    chosen = draw_segmentations({"model": good}, tmp_path / "a.png", 3)
    draw_segmentations({"model": moved}, tmp_path / "b.png", 3)
    draw_segmentations({"model": bad}, tmp_path / "c.png", 3)
    contents = [(tmp_path / f"{name}.png").read_bytes() for name in "abc"]
    assert contents[0] == contents[1] != contents[2]  # the order of slots does not show, their masks do
    assert len(chosen) == 3
    scores = dict(zip(bad.keys.tolist(), bad.ari_fg))
    both = [scores[name] for name in common_scenes({"good": good, "bad": bad}, 6)]
    assert both == sorted(scores.values(), reverse=True)
    stranger = good._replace(shown=np.array([f"other{n}" for n in range(6)]))
    with pytest.raises(DataError, match="no scene in common"):
        draw_segmentations({"good": good, "stranger": stranger}, tmp_path / "d.png")


def log(folder, version, values, name="val/ari_fg"):
    from torch.utils.tensorboard import SummaryWriter

    with SummaryWriter(str(folder / "lightning_logs" / version)) as writer:
        for step, value in values.items():
            writer.add_scalar(name, value, step)


def test_the_log_of_a_continued_run_is_one(tmp_path):
    run = make_run(tmp_path / "run", [])
    log(run, "version_0", {1: 0.25, 2: 0.5, 3: 0.125})
    log(run, "version_1", {3: 0.75, 4: 1.0})
    events = Run.open(run).log
    assert [event[:2] for event in events["val/ari_fg"]] == [(1, 0.25), (2, 0.5), (3, 0.75), (4, 1.0)]
    assert list(events) == ["val/ari_fg"] and events["val/ari_fg"][0].time > 1e9


def test_the_log_of_a_run_that_went_on_from_another_has_both(tmp_path):
    first = make_run(tmp_path / "first", [])
    log(first, "version_0", {1: 0.25, 2: 0.5, 3: 0.125})  # step 3 came after the checkpoint: it is not of this run
    checkpoint = first / "lightning_logs" / "version_0" / "checkpoints" / "epoch=0-step=2.ckpt"
    checkpoint.parent.mkdir()
    checkpoint.touch()
    second = make_run(tmp_path / "second", [], resumed=checkpoint)
    log(second, "version_0", {4: 1.0})
    assert [event[:2] for event in Run.open(second).log["val/ari_fg"]] == [(1, 0.25), (2, 0.5), (4, 1.0)]


def test_curves(tmp_path):
    first, second = ({"val/ari_fg": [(1, value), (2, 0.5)]} for value in (0.25, 0.75))
    models = {"one": {"msf": [first]}, "again": {"msf": [first]}, "two": {"msf": [first, second]}}
    for name, logs in models.items():
        draw_curves(logs, ["val/ari_fg"], tmp_path / name)
    contents = [(tmp_path / name).read_bytes() for name in models]
    assert contents[0] == contents[1] != contents[2]
    with pytest.raises(DataError, match="val/miou.*val/ari_fg"):
        draw_curves(models["one"], ["val/miou"], tmp_path / "c.png")


@pytest.mark.parametrize("names", [["val/ari_fg"], ["val/ari_fg", "val/ari"]])
def test_a_legend_of_long_names_is_not_cut_off(tmp_path, names):
    log = {name: [(1, 0.25), (2, 0.5)] for name in names}
    draw_curves({f"no_fusion experiment.settings={number}": [log] for number in range(7)}, names, tmp_path / "c.png")
    picture = np.asarray(Image.open(tmp_path / "c.png").convert("L"))
    assert (picture[:, [0, 1, -2, -1]] == 255).all() and (picture[[0, -1]] == 255).all()


def test_the_use_of_codebooks(tmp_path):
    plain = {"codebooks/codebook.perplexity": [(0, 9.0), (5, 3.0)], "codebooks/codebook.dead": [(0, 1.0), (5, 2.0)]}
    names = [f"codebooks/codebooks.{n}.{what}" for n in range(3) for what in ("perplexity", "dead")]
    names += ["codebooks/won.scale_1", "codebooks/won.scale_2"]
    fused = {name: [(0, 0.25), (5, 0.75)] for name in names}
    for name in "ab":
        draw_codebooks({"vq": [plain], "msf": [fused], "stage 2": [{"val/ari": [(1, 1.0)]}]}, tmp_path / name)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    draw_codebooks({"vq": [plain], "msf": [fused]}, tmp_path / "c")  # what has no codebooks is left out
    assert (tmp_path / "a").read_bytes() == (tmp_path / "c").read_bytes()
    with pytest.raises(DataError, match="stage 1"):
        draw_codebooks({"stage 2": [{"val/ari": [(1, 1.0)]}]}, tmp_path / "d")


def make_run(folder, overrides, resumed="null"):
    (folder / "config").mkdir(parents=True)
    text = f"experiment: {{}}\ntrainer: {{max_steps: 10}}\nload_checkpoint: {resumed}\n"
    (folder / "config" / "config.yaml").write_text(text, encoding="utf-8")
    (folder / "config" / "overrides.yaml").write_text(json.dumps(overrides), encoding="utf-8")
    return folder


def test_every_figure_is_one_command(vae, tmp_path, capsys):
    stage1 = make_run(tmp_path / "runs" / "vae" / "now", ["+experiment=msf/vqvae_clevrtex", "seed=0"])
    stage2 = make_run(tmp_path / "runs" / "slate" / "now", ["+experiment=msf/slate_clevrtex", "seed=0"])
    with pytest.raises(SystemExit, match="No run has scenes.npz"):
        main(["figures", "segmentations", str(tmp_path / "runs"), "--out", str(tmp_path / "none.png")])
    GuidanceSheet(str(stage1), 1)(IMAGE[None], vae, ["a"])
    log(stage1, "version_0", {0: 1.0, 2: 3.0}, "codebooks/codebook.perplexity")
    log(stage2, "version_0", {0: 0.25, 2: 0.5})
    take(SceneScores(str(stage2), 4), make_scenes(4), list(range(4)))
    for figure in ("curves", "codebooks", "segmentations", "guidance"):
        main(["figures", figure, str(tmp_path / "runs"), "--out", str(tmp_path / "out" / f"{figure}.png")])
        assert Image.open(tmp_path / "out" / f"{figure}.png").width > 300
    assert "of 4, best to worst" in capsys.readouterr().out
    for arguments, message in [(["guidance", "--image", "2"], "no image 2"), (["curves", "--names", "x"], "logged x")]:
        with pytest.raises(SystemExit, match=message):
            figure, *options = arguments
            main(["figures", figure, str(tmp_path / "runs"), *options, "--out", str(tmp_path / "none.png")])
    with pytest.raises(SystemExit, match="no folder"):
        main(["figures", "curves", str(tmp_path / "nowhere")])
    assert not (tmp_path / "none.png").exists()


def evaluation(name, folder, kind="none"):
    """The evaluation of a run whose config says in `experiment.evaluation` what kind of run it is."""
    run = folder / "run.yaml"
    run.write_text(f"experiment: {{evaluation: {kind}}}\n", encoding="utf-8")
    with hydra.initialize_config_module("configs", version_base="1.3"):
        choices = [f"+evaluation=msf/{name}", f"train_config_path='{run}'", f"output_dir='{folder}'"]
        return hydra.compose("evaluation_config", overrides=choices)


@pytest.mark.parametrize("name", ["scenes", "scores", "slate_clevrtex"])
def test_evaluations_score_scenes(name, tmp_path):
    images, true, masks, names = make_scenes(2)
    module = instantiate(evaluation(name, tmp_path, "images").modules.scene_scores)
    evaluated = Evaluation()
    inputs = {"image": images, "mask": true, "__key__": names}
    module(inputs={"input": inputs, "masks": masks, "model": evaluated})
    evaluated.end()
    assert read_scenes(tmp_path / "scenes.npz").keys.tolist() == names


@pytest.mark.parametrize("name", ["guidance_maps", "separability", "scores"])
def test_evaluations_keep_guidance(name, tmp_path):
    models = {"vqvae": make_vae(VectorQuantizer(8, 16), 1)}
    module = instantiate(evaluation(name, tmp_path, "separability").modules.guidance_maps)
    inputs = {"image": IMAGE[None].expand(3, -1, -1, -1), "__key__": ["a", "b", "c"]}
    module(inputs={"input": inputs, "model": {"models": models}})
    kept = read_guidance(tmp_path / "guidance.npz")
    assert len(kept) == 2 and set(kept) < {"a", "b", "c"}


def test_pictures_alone_do_not_overwrite_scores(tmp_path):
    for name in ("scenes", "guidance_maps"):
        config = evaluation(name, tmp_path)
        assert config.skip_metrics and config.report_filename not in ("metrics.json", "separability.json")


def test_files_of_another_kind_are_named(tmp_path):
    for read, name in [(read_scenes, "scenes.npz"), (read_guidance, "guidance.npz")]:
        np.savez(tmp_path / name, x=np.zeros(1))
        with pytest.raises(DataError, match=f"{name} holds no"):
            read(tmp_path / name)


@pytest.mark.parametrize("content", [b"", b"nothing", None])
def test_files_that_cannot_be_read_are_named(tmp_path, content):
    for read, name in [(read_scenes, "scenes.npz"), (read_guidance, "guidance.npz")]:
        path = tmp_path / name
        if content is None:
            np.savez(path, x=np.array([{"a": 1}], dtype=object), allow_pickle=True)
        else:
            path.write_bytes(content)
        with pytest.raises(DataError, match=name):
            read(path)
        with pytest.raises(DataError, match="ocl_eval"):
            read(tmp_path / "nowhere" / name)


def test_a_curve_leaves_out_what_is_not_finite(tmp_path):
    """And a run of which nothing is left; a panel without a line is drawn, too."""
    values = {1: 0.25, 2: 0.5, 3: 0.125}
    sound, spoiled = tmp_path / "sound", tmp_path / "spoiled"
    log(make_run(sound, []), "version_0", values, "train/tokens")
    log(make_run(spoiled, []), "version_0", {**values, 4: float("nan"), 5: float("inf")}, "train/tokens")
    log(make_run(tmp_path / "nothing", []), "version_0", {1: float("nan")}, "train/tokens")
    logs = {folder.name: [Run.open(folder).log] for folder in (sound, spoiled, tmp_path / "nothing")}
    draw_curves({"model": logs["sound"]}, ["train/tokens"], tmp_path / "a.png")
    draw_curves({"model": logs["spoiled"]}, ["train/tokens"], tmp_path / "b.png")
    draw_curves({"model": logs["spoiled"] + logs["nothing"]}, ["train/tokens"], tmp_path / "c.png")
    draw_curves({"model": logs["nothing"]}, ["train/tokens"], tmp_path / "d.png")
    contents = [(tmp_path / f"{name}.png").read_bytes() for name in "abcd"]
    assert contents[0] == contents[1] == contents[2] != contents[3]


def test_masks_with_nan_are_no_scene(tmp_path):
    images, true, masks, names = make_scenes(2)
    masks[1, 0, 3, 3] = torch.nan
    with pytest.raises(ValueError, match="`masks` .* holds NaN"):
        SceneScores(str(tmp_path))(images, true, masks, names, Evaluation())
