"""Slots and masks of anybody's pictures, from a loaded model."""

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import ocl_msf
from ocl_msf.data.inspect import read_samples
from ocl_msf.data.summary import read_summary
from ocl_msf.files import DataError
from ocl_msf.inference.generation import Sampling
from ocl_msf.inference.inputs import OUTSIDE
from ocl_msf.results.outputs import read_outputs
from ocl_msf.results.predict import predict

pytestmark = [pytest.mark.needs_host, pytest.mark.oclf]


@pytest.fixture(scope="module")
def model(slate_run):
    return ocl_msf.load(slate_run)


@pytest.fixture(scope="module")
def steve(make_run):
    return ocl_msf.load(make_run("steve_movi_c"))


def noise(*shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def test_masks_and_slots_are_those_that_an_evaluation_saves(slate_run, model, shards, run_program, tmp_path):
    """Also of a single picture; scenes of 64 pixels are prepared for a model of 32."""
    command = [f"train_config_path={slate_run}/config/config.yaml", f"output_dir={tmp_path}", "+msf/save=outputs"]
    chosen = ["+evaluation=msf/scores", "modules.slot_instruments=null", "modules.scenes=null", "skip_metrics=true"]
    done = run_program("ocl.cli.eval", *chosen, *command, cwd=tmp_path, DATASET_PREFIX=str(shards))
    assert done.returncode == 0, done.stdout + done.stderr
    saved = dict(read_outputs(tmp_path / "outputs" / "val"))
    folder = shards / "clevrtex"
    samples = {x["__key__"]: x["image"] for x in read_samples(folder, read_summary(folder)["splits"]["val"])}
    assert len(saved) == 4 and saved.keys() == samples.keys()
    result = model(list(samples.values()))
    for number, (key, image) in enumerate(samples.items()):
        assert np.array_equal(result.scores[number].argmax(0), saved[key]["masks"])
        np.testing.assert_allclose(result.slots[number], saved[key]["slots"], rtol=0, atol=1e-5)
        np.testing.assert_allclose(model(image).slots[0], saved[key]["slots"], rtol=0, atol=1e-5)
        assert result.masks[number].shape == image.shape[:2]
    predict(slate_run, [str(folder / "val")], tmp_path / "predictions", device="cpu")
    for number, key in enumerate(samples):  # the same in the size of the picture
        (path,) = (tmp_path / "predictions" / "masks").rglob(f"{key}.png")
        enlarged = torch.nn.functional.interpolate(result.scores[number][None], (64, 64), mode="bilinear")[0]
        assert (np.asarray(Image.open(path)) == enlarged.argmax(0).numpy()).mean() > 0.99


def test_all_forms_of_a_picture_are_the_same_picture(model, tmp_path):
    image = noise(32, 32, 3)
    Image.fromarray(image).save(tmp_path / "a.png")
    tensor = torch.from_numpy(image).movedim(-1, 0)
    forms = [image, tmp_path / "a.png", str(tmp_path / "a.png"), Image.fromarray(image), tensor, tensor[None]]
    forms += [tensor / 255, image.astype(np.float64) / 255, [image], (tensor,), image[None]]
    first = model(forms[0])
    assert first.slots.shape[:2] == (1, 4) and first.scores.shape == (1, 4, 32, 32)
    assert first.inputs.shape == (1, 3, 32, 32) and first.masks[0].dtype == torch.uint8
    np.testing.assert_allclose(first.inputs[0].movedim(0, -1), image / 255, atol=1e-6)
    for form in forms[1:]:
        torch.testing.assert_close(model(form).slots, first.slots, rtol=0, atol=1e-5)


def test_a_grey_picture_is_one_of_equal_channels(model):
    grey = noise(32, 32)
    expected = model(np.stack([grey] * 3, -1)).slots
    assert torch.equal(model(grey).slots, expected) and torch.equal(model(Image.fromarray(grey)).slots, expected)


def test_pictures_of_any_size_are_found_one_by_one_or_together(model):
    """More than fit into a group, from 1x1 on."""
    images = [noise(*size, 3, seed=i) for i, size in enumerate([(1, 1), (40, 90), (33, 32)] + [(32, 32)] * 32)]
    result = model(images)
    assert [tuple(mask.shape) for mask in result.masks] == [image.shape[:2] for image in images]
    for number in (0, 1, 2, 34):
        alone = model(images[number])
        torch.testing.assert_close(alone.slots[0], result.slots[number], rtol=0, atol=1e-5)
        assert (alone.masks[0] == result.masks[number]).float().mean() > 0.99


def test_the_central_square_is_shown_or_all_of_the_picture(model):
    wide = noise(32, 64, 3)
    cropped, (mask,) = model(wide), model(wide).masks
    assert torch.equal(cropped.slots, model(wide[:, 16:48]).slots)
    assert torch.equal(mask[:, 16:48], model(wide[:, 16:48]).masks[0])
    assert (mask[:, :16] == OUTSIDE).all() and (mask[:, 48:] == OUTSIDE).all()
    whole = model(wide, fit="stretch")
    assert whole.inputs.shape == (1, 3, 32, 32) and whole.masks[0].shape == (32, 64) and whole.masks[0].max() < 4
    half = torch.nn.functional.avg_pool2d(torch.from_numpy(wide / 255).movedim(-1, 0)[None], (1, 2))
    assert (whole.inputs - half).abs().mean() < (cropped.inputs - half).abs().mean() / 2
    with pytest.raises(ValueError, match="crop or stretch"):
        model(wide, fit="pad")


def test_a_swap_moves_all_that_belongs_to_a_slot(model):
    result = model([noise(32, 32, 3, seed=i) for i in range(3)])
    swapped = result.swap((0, 2), (1, 3))
    for name in ("slots", "scores"):
        before, after = getattr(result, name), getattr(swapped, name)
        assert torch.equal(after[0, 2], before[1, 3]) and torch.equal(after[1, 3], before[0, 2])
        assert torch.equal(after[0, [0, 1, 3]], before[0, [0, 1, 3]]) and torch.equal(after[2], before[2])
    assert torch.equal(swapped.swap((0, 2), (1, 3)).slots, result.slots)
    assert torch.equal(result.swap((0, 0), (0, 1)).slots[0, :2], result.slots[0, :2].flip(0))


def test_a_dropped_slot_is_not_decoded_and_has_no_pixels(model):
    """The others keep their numbers; what is decoded is that of a model which never had the slot."""
    result = model([noise(32, 32, 3, seed=i) for i in range(2)])
    dropped = result.drop(1, picture=0).drop(3)
    assert dropped.parts["is_empty"].tolist() == [[False, True, False, True], [False, False, False, True]]
    assert set(dropped.masks[0].unique().tolist()) <= {0, 2} and set(dropped.masks[1].unique().tolist()) <= {0, 1, 2}
    left = model.decode({"objects": result.slots[:1, [0, 2]]}, Sampling())
    torch.testing.assert_close(dropped.reconstruct()[:1], left, rtol=0, atol=1e-5)
    assert dropped.reconstruct().shape == (2, 3, 32, 32)


def test_impossible_edits_are_named(model):
    result = model(noise(32, 32, 3))
    with pytest.raises(ValueError, match="no slot 4: this model's slots are 0 to 3"):
        result.drop(4)
    with pytest.raises(ValueError, match="no picture 1"):
        result.swap((0, 0), (1, 0))
    with pytest.raises(ValueError, match="All 4 slots"):
        result.drop(0, 1, 2, 3)


def test_what_is_sampled_follows_the_seed(model):
    result = model(noise(32, 32, 3))
    one, same, other = (result.reconstruct(temperature=1.0, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(one, same) and not torch.equal(one, other)
    assert torch.equal(result.reconstruct(temperature=1.0, top_k=1), result.reconstruct())
    assert 0 <= one.min() and one.max() <= 1
    with pytest.raises(ValueError, match="temperature must be >= 0"):
        result.reconstruct(temperature=-1.0)


def test_slots_can_be_trained_with(model):
    """They come from inference mode, whose tensors refuse it."""
    slots = model(noise(32, 32, 3)).slots
    probe = torch.nn.Linear(slots.shape[-1], 1)
    probe(slots).sum().backward()
    assert probe.weight.grad.abs().sum() > 0


def test_half_precision_is_a_choice(model, slate_run):
    half = ocl_msf.load(slate_run, precision="bf16-mixed")
    image = noise(32, 32, 3)
    full, rounded = model(image).slots, half(image).slots
    assert not torch.equal(full, rounded) and (full - rounded).abs().max() < 0.3
    with pytest.raises(ValueError, match="precision must be one of 32-true"):
        ocl_msf.load(slate_run, precision="16")


@pytest.mark.parametrize(
    "images, message",
    [
        ([], "none was given"),
        (np.zeros((0, 5, 3), np.uint8), "has no pixels"),
        (np.zeros((5, 5, 4), np.uint8), "3 channels"),
        (np.full((5, 5, 3), 7.0), r"values in \[0, 1\], not 7 to 7"),
        (np.full((5, 5, 3), np.nan), r"values in \[0, 1\]"),
        (np.zeros((5, 5, 3), np.int64), "uint8, or floats"),
        (np.zeros((2, 2, 5, 5, 3), np.uint8), "takes pictures"),
        (3, "This is no picture: int"),
    ],
)
def test_what_is_no_picture_is_explained(model, images, message):
    with pytest.raises(ValueError, match=message):
        model(images)


def test_files_that_cannot_be_read_are_named(model, tmp_path, monkeypatch):
    (tmp_path / "text.png").write_text("text")
    Image.new("L", (60, 60)).save(tmp_path / "large.png")
    with pytest.raises(DataError, match="none.png cannot be read as a picture"):
        model(tmp_path / "none.png")
    with pytest.raises(DataError, match="text.png cannot be read as a picture"):
        model(tmp_path / "text.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    with pytest.raises(DataError, match="large.png has more than 2,000 pixels"):
        model(tmp_path / "large.png")


def test_a_checkpoint_is_a_model_too(slate_run, model):
    (checkpoint,) = slate_run.rglob("*.ckpt")
    image = noise(32, 32, 3)
    assert torch.equal(ocl_msf.load(str(checkpoint))(image).slots, model(image).slots)


def test_what_is_no_model_is_explained(tmp_path, make_run, slate_run, monkeypatch):
    with pytest.raises(DataError, match="There is no .*nothing. Give the folder of a run"):
        ocl_msf.load(tmp_path / "nothing")
    with pytest.raises(DataError, match="holds no model"):
        ocl_msf.load(tmp_path)
    with pytest.raises(DataError, match="is no run of stage 2"):
        ocl_msf.load(make_run("vqvae_clevrtex"))
    other = make_run("slate_clevrtex", "experiment.slots.dim=16")
    (other / "config" / "config.yaml").write_bytes((slate_run / "config" / "config.yaml").read_bytes())
    with pytest.raises(DataError, match="does not fit this version"):
        ocl_msf.load(other)


def test_videos_are_found_as_videos(steve):
    """Frames are the leading axis; what is seen in windows is what is seen at once."""
    video = noise(3, 40, 32, 3)
    result = steve(video)
    assert result.slots.shape == (1, 3, 4, 11) and result.scores.shape == (1, 3, 4, 32, 32)
    assert result.masks[0].shape == (3, 40, 32) and result.reconstruct().shape == (1, 3, 3, 32, 32)
    assert torch.equal(steve(list(video)).slots, result.slots)
    assert steve(video[0]).slots.shape == (1, 1, 4, 11)
    swapped = result.swap((0, 1), (0, 2)).drop(0)
    assert torch.equal(swapped.slots[0, :, 1], result.slots[0, :, 2])
    assert not (swapped.masks[0][:, 4:36] == 0).any()
    boxes = torch.tensor([[[0.1, 0.1, 0.5, 0.5], [0, 0, 0, 0]]])
    assert not torch.equal(steve(video, boxes=boxes).slots[:, :, 1], result.slots[:, :, 1])
    assert steve(video, boxes=boxes).parts["is_empty"][0, 0].tolist() == [False, False, True, True]
    with pytest.raises(ValueError, match="Boxes must be"):
        steve(video, boxes=torch.zeros(2, 1, 4))


def test_a_stream_goes_on_where_its_last_window_ended(steve, model):
    video = noise(35, 32, 32, 3)
    whole, parts = steve(video), list(steve.track(iter(video)))
    assert [part.slots.shape[1] for part in parts] == [32, 3]
    torch.testing.assert_close(torch.cat([part.slots for part in parts], 1), whole.slots, rtol=0, atol=1e-4)
    frames = torch.cat([part.slots for part in model.track(iter(video))])
    torch.testing.assert_close(frames, model(video).slots, rtol=0, atol=1e-5)
    with pytest.raises(ValueError, match="start without boxes"):
        model(video[0], boxes=torch.zeros(1, 1, 4))


def test_the_lines_of_the_readme_run_as_they_stand(tmp_path, monkeypatch):
    text = (Path(__file__).parent.parent / "README.md").read_text(encoding="utf-8")
    (block,) = re.findall(r"^```python\n(import ocl_msf\n.*?)^```", text, flags=re.DOTALL | re.MULTILINE)
    monkeypatch.chdir(tmp_path)
    for name in ("cat.jpg", "dog.jpg"):
        Image.fromarray(noise(40, 50, 3)).save(name)
    names = {}
    exec(block, names)
    assert names["result"].slots.shape[:2] == (2, 11) and names["result"].masks[1].shape == (40, 50)


def test_importing_the_package_is_light():
    code = "import sys, ocl_msf; assert 'torch' not in sys.modules and 'hydra' not in sys.modules; ocl_msf.load"
    code += "; assert 'torch' in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
