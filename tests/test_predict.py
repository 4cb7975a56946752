"""Slots and masks of many pictures as files: `ocl-msf predict`."""

import csv
import shutil
import tarfile

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.numpy import load_file

import ocl_msf
from ocl_msf.cli import main
from ocl_msf.data.shards import read_shard
from ocl_msf.files import DataError
from ocl_msf.inference.inputs import OUTSIDE, read_picture
from ocl_msf.inference.model import Model
from ocl_msf.results.finding import draw_overlay
from ocl_msf.results.predict import predict

pytestmark = [pytest.mark.needs_host, pytest.mark.oclf]


@pytest.fixture(scope="module")
def model(slate_run):
    return ocl_msf.load(slate_run)


@pytest.fixture
def photos(tmp_path):
    """A folder with three pictures, two of which have the same name, and what is none."""
    folder = tmp_path / "photos"
    (folder / "inner").mkdir(parents=True)
    for number, name in enumerate(["b.png", "b.jpg", "inner/a.png"]):
        pixels = np.random.default_rng(number).integers(0, 256, (32, 40 + number, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / name)
    (folder / "notes.txt").write_text("no picture")
    (folder / "._b.png").write_text("no picture either")
    return folder


def index(out):
    with open(out / "index.csv", newline="") as file:
        return list(csv.DictReader(file))


def files(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_files_are_what_the_model_says(slate_run, model, photos, tmp_path, capsys):
    """Also of pictures with the same name, of which none replaces the other."""
    out = tmp_path / "out"
    main(["predict", str(slate_run), str(photos), "--out", str(out), "--batch-size", "2", "--device", "cpu"])
    assert "slots and masks of 3 pictures; 0 inputs could not be read" in capsys.readouterr().out
    rows = index(out)
    assert [(row["key"], row["frame"], row["row"]) for row in rows] == [
        *(("b", "0", "0"), ("b-2", "0", "1"), ("inner/a", "0", "2"))
    ]
    assert [row["source"] for row in rows] == [str(photos / name) for name in ("b.jpg", "b.png", "inner/a.png")]
    slots = load_file(out / "slots.safetensors")["slots"]
    assert slots.shape[:2] == (3, 4) and slots.dtype == np.float32
    for row, its in zip(rows, slots):
        image = read_picture(row["source"])
        result = model(image)
        np.testing.assert_allclose(its, result.slots[0], rtol=0, atol=1e-5)
        mask = Image.open(out / "masks" / f"{row['key']}.png")
        assert mask.mode == "P" and np.asarray(mask).shape == image.shape[:2]
        assert (np.asarray(mask) == result.masks[0].numpy()).mean() > 0.99  # batches round differently
        assert (np.asarray(mask)[:, :4] == OUTSIDE).all()
        assert Image.open(out / "overlays" / f"{row['key']}.png").size == image.shape[1::-1]
    assert Image.open(out / "contact.png").size[0] > 300
    assert not [name for name in files(out) if name.endswith(".partial")]


def test_an_overlay_is_half_the_picture_and_half_the_colour_of_the_slot():
    image = np.full((4, 6, 3), 100, np.uint8)
    mask = np.repeat([[0, 0, 0, 1, 1, 1]], 4, 0).astype(np.uint8)
    colors = np.zeros((256, 3), np.uint8)
    colors[1] = (200, 40, 0)
    overlay = np.asarray(draw_overlay(image, mask, colors)).astype(int)
    assert (abs(overlay[:, :3] - 50) <= 1).all() and (abs(overlay[:, 4:] - [150, 70, 50]) <= 1).all()
    assert (abs(overlay[:, 3] - 177) <= 1).all()  # white between neighbours


def test_an_interrupted_run_goes_on_and_ends_as_if_it_had_not_been(slate_run, photos, tmp_path, monkeypatch):
    whole, out = tmp_path / "whole", tmp_path / "out"
    predict(slate_run, [str(photos)], whole, batch_size=1, device="cpu")
    forward, shown = Model.forward, []

    def interrupted(self, images, fit):
        if len(shown) == 2:
            raise KeyboardInterrupt
        shown.append(images)
        return forward(self, images, fit)

    monkeypatch.setattr(Model, "forward", interrupted)
    with pytest.raises(KeyboardInterrupt):
        predict(slate_run, [str(photos)], out, batch_size=1, device="cpu")
    monkeypatch.undo()
    assert len(list((out / "slots").rglob("*.safetensors"))) == 2 and not (out / "slots.safetensors").exists()
    assert predict(slate_run, [str(photos)], out, batch_size=1, device="cpu") == (1, 0, 2, 0)
    assert files(out) == files(whole)
    assert predict(slate_run, [str(photos)], out, device="cpu") == (0, 0, 3, 0)


def test_a_picture_that_has_changed_or_lost_a_file_is_done_again(slate_run, photos, tmp_path):
    out = tmp_path / "out"
    predict(slate_run, [str(photos / "b.png")], out, device="cpu")
    before = load_file(out / "slots.safetensors")["slots"]
    shutil.copyfile(photos / "inner" / "a.png", photos / "b.png")
    assert predict(slate_run, [str(photos / "b.png")], out, device="cpu") == (1, 0, 0, 0)
    after = load_file(out / "slots.safetensors")["slots"]
    assert after.shape == before.shape and not np.array_equal(after, before)
    (out / "masks" / "b.png").unlink()
    assert predict(slate_run, [str(photos / "b.png")], out, device="cpu") == (1, 0, 0, 0)
    assert (out / "masks" / "b.png").exists()


def test_a_later_call_adds_pictures_and_replaces_none(slate_run, photos, tmp_path):
    """Results below the inputs are no inputs, and a pattern finds what its folder does."""
    out = photos / "out"
    predict(slate_run, [str(photos / "b.png")], out, device="cpu")
    first = (out / "masks" / "b.png").read_bytes()
    assert predict(slate_run, [str(photos), str(photos / "**" / "*.png")], out, device="cpu") == (2, 0, 1, 0)
    assert (out / "masks" / "b.png").read_bytes() == first
    assert [row["key"] for row in index(out)] == ["b", "b-2", "inner/a"]


def test_what_cannot_be_read_is_named_and_the_others_are_done(slate_run, photos, tmp_path, capsys):
    (photos / "broken.png").write_bytes((photos / "b.png").read_bytes()[:200])
    (photos / "broken.tar").write_text("no shard")
    (tmp_path / "empty").mkdir()
    out = tmp_path / "out"
    command = ["predict", str(slate_run), str(photos), str(tmp_path / "nothing"), str(tmp_path / "empty")]
    main([*command, "--out", str(out), "--device", "cpu"])
    printed = capsys.readouterr()
    assert "of 3 pictures; 4 inputs could not be read" in printed.out
    for reason in ("broken.png cannot be read as a picture", "broken.tar cannot be read as a shard"):
        assert reason in printed.err
    assert "nothing does not exist" in printed.err and "empty holds no pictures or videos (" in printed.err


@pytest.mark.parametrize("name", ["broken.png", "nothing"])
def test_a_run_that_reads_nothing_fails_and_leaves_nothing(slate_run, tmp_path, name):
    (tmp_path / "broken.png").write_text("no picture")
    reason = "broken.png cannot be read as a picture" if name == "broken.png" else "nothing does not exist"
    with pytest.raises(SystemExit, match=f"error: .*{reason}"):
        main(["predict", str(slate_run), str(tmp_path / name), "--out", str(tmp_path / "out"), "--device", "cpu"])
    assert not (tmp_path / "out").exists()


def write_bad_inputs(folder):
    """A picture of one pixel, one that would take a gigabyte, a folder without any, a model of a later version."""
    (folder / "empty").mkdir()
    Image.new("RGB", (1, 1)).save(folder / "one.png")
    Image.new("1", (20_000, 20_000)).save(folder / "huge.png")
    (folder / "later").mkdir()
    (folder / "later" / "config.json").write_text('{"format": 99, "version": "9.0"}')


@pytest.mark.parametrize(
    "chosen, name, message",
    [
        ("", "nothing", "nothing does not exist."),
        ("", "", "An input is empty: give a path."),
        ("", "empty", r"empty holds no pictures or videos \(.avi, .*"),
        ("", "huge.png", "huge.png has more than 178,956,970 pixels, which can be a trap: make it smaller first."),
        ("nowhere", "one.png", "There is no nowhere. Give the folder of a run .*"),
        ("later", "one.png", ".*later.config.json was written by a newer ocl_msf, 9.0, and this is .*: update it."),
        ("hf://me/model", "one.png", "hf://me/model cannot be downloaded, and is not in the cache: .*"),
    ],
)
def test_bad_input_is_explained_in_a_sentence_and_leaves_nothing(
    slate_run, tmp_path, monkeypatch, chosen, name, message
):
    def without_network(*_, **__):
        raise ConnectionError("no network")

    write_bad_inputs(tmp_path)
    monkeypatch.setattr("huggingface_hub.snapshot_download", without_network)
    monkeypatch.chdir(tmp_path)
    before = files(tmp_path)
    with pytest.raises(SystemExit, match=f"^error: {message}$") as failure:
        main(["predict", chosen or str(slate_run), name, "--out", "out", "--device", "cpu"])
    assert "\n" not in failure.value.code and files(tmp_path) == before  # a text as code: printed, and status 1


def test_a_picture_of_one_pixel_has_a_slot(slate_run, tmp_path):
    write_bad_inputs(tmp_path)
    assert predict(slate_run, [str(tmp_path / "one.png")], tmp_path / "out", device="cpu") == (1, 0, 0, 0)
    assert Image.open(tmp_path / "out" / "masks" / "one.png").size == (1, 1)


def test_shards_of_converted_data_are_read(slate_run, model, shards, tmp_path):
    folder = shards / "clevrtex" / "val"
    out = tmp_path / "out"
    assert predict(slate_run, [str(folder)], out, device="cpu") == (4, 0, 0, 0)
    slots, rows = load_file(out / "slots.safetensors")["slots"], index(out)
    samples = {
        f"{path.stem}/{key}": its["image.png"] for path in sorted(folder.glob("*.tar")) for key, its in read_shard(path)
    }
    assert [row["key"] for row in rows] == sorted(samples)
    for row, its in zip(rows, slots):
        image = read_picture(row["key"], samples[row["key"]])
        np.testing.assert_allclose(its, model(image).slots[0], rtol=0, atol=1e-5)


def test_a_shard_of_anybodys_is_read(slate_run, photos, tmp_path):
    """Its pictures have no field, and its other files are none."""
    with tarfile.open(tmp_path / "photos.tar", "w") as tar:
        tar.add(photos / "b.jpg", "1.jpg")
        tar.add(photos / "b.png", "1.mask.png")
        tar.add(photos / "notes.txt", "1.txt")
    out = tmp_path / "out"
    assert predict(slate_run, [str(tmp_path / "photos.tar")], out, device="cpu") == (1, 0, 0, 0)
    assert [row["key"] for row in index(out)] == ["photos/1"]


def test_a_model_of_videos_takes_pictures_as_videos_of_one_frame(make_run, photos, tmp_path):
    run = make_run("steve_movi_c")
    predict(run, [str(photos)], tmp_path / "out", device="cpu")
    slots = load_file(tmp_path / "out" / "slots.safetensors")["slots"]
    image = read_picture(photos / "inner" / "a.png")
    assert slots.shape == (3, 4, 11)  # 8 channels, a position and a scale
    torch.testing.assert_close(torch.from_numpy(slots[2]), ocl_msf.load(run)(image).slots[0, 0], rtol=0, atol=1e-5)


def test_folders_and_devices_that_will_not_do_are_explained(slate_run, photos, tmp_path):
    with pytest.raises(DataError, match="holds something else"):
        predict(slate_run, [str(photos)], photos, device="cpu")
    predict(slate_run, [str(photos)], tmp_path / "out", device="cpu")
    with pytest.raises(DataError, match="predictions made with other fit .*crop"):
        predict(slate_run, [str(photos)], tmp_path / "out", device="cpu", fit="stretch")
    with pytest.raises(DataError, match="device cupboard cannot be used"):
        predict(slate_run, [str(photos)], tmp_path / "new", device="cupboard")
