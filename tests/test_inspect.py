import json
import re
import runpy
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from ocl_msf.cli import main
from ocl_msf.data.inspect import object_boxes, object_masks, outlined, tile
from ocl_msf.data.lmdb import write_lmdb
from ocl_msf.data.shards import Conversion, encode_array, write_dataset
from ocl_msf.data.synthetic.scenes import make_scenes


@pytest.fixture(scope="module")
def prefix(tmp_path_factory):
    """Scenes and videos in both formats."""
    folder = tmp_path_factory.mktemp("prefix")
    make_scenes(folder / "raw", 6, size=(32, 24), workers=1)
    options = ["--splits", "train=:4", "val=4:", "--size", "16", "--workers", "1"]
    for form, name in (("lmdb", "clevrtex_lmdb"), ("webdataset", "clevrtex")):
        main(["convert", "clevrtex", str(folder / "raw"), str(folder), *options, "--format", form, "--name", name])
    videos = Conversion({}, {"train": range(3, 6), "val": range(8, 10)}, encode_video)
    write_dataset(folder / "movi_c", videos, workers=1)
    write_lmdb(folder / "movi_c_lmdb", videos, workers=1)
    return folder


def encode_video(frames):
    """Black videos of different lengths: object 1 moves to the right, object 3 is seen in the last frame only."""
    masks, boxes = np.zeros((frames, 20, 20, 1), np.uint8), np.zeros((frames, 4, 4), np.float32)
    for frame in range(frames):
        masks[frame, 4:8, frame : frame + 4] = 1
        boxes[frame, 0] = np.array([frame, 4, frame + 4, 8]) / 20
    masks[-1, 10:20, 10:19] = 3
    boxes[-1, 2] = 0.5, 0.5, 0.95, 1
    arrays = {"video": np.zeros((frames, 20, 20, 3), np.uint8), "segmentations": masks, "instance_bbox": boxes}
    return f"{frames:07d}", {f"{name}.npy.gz": encode_array(array) for name, array in arrays.items()}


@pytest.mark.parametrize("name", ["clevrtex", "clevrtex_lmdb"])
def test_the_card_counts_samples_and_objects(prefix, tmp_path, capsys, name):
    main(["inspect", str(prefix / name), "--sheet", str(tmp_path / "sheet.png"), "--samples", "3"])
    printed = capsys.readouterr().out
    assert "train, 4 samples" in printed and "val, 2 samples" in printed
    counts = [int(n) for n in re.findall(r"^ +\d+ #* +(\d+)$", printed, flags=re.MULTILINE)]
    assert sum(counts) == 6
    objects = sum(int(k) * int(n) for k, n in re.findall(r"^ +(\d+) #* +(\d+)$", printed, flags=re.MULTILINE))
    areas = [int(n) for n in re.findall(r"to +[\d.]+% #* +(\d+)$", printed, flags=re.MULTILINE)]
    assert sum(areas) == objects > 0
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert sheet.size == (4 * (2 * 16 + 4), 2 * (16 + 4))  # 3 + 2 samples in rows of four


@pytest.mark.parametrize("name", ["movi_c", "movi_c_lmdb"])
def test_videos_are_counted_as_a_whole_and_drawn_in_frames(prefix, tmp_path, capsys, name):
    main(["inspect", str(prefix / name), "--sheet", str(tmp_path / "sheet.png")])
    printed = capsys.readouterr().out
    assert printed.count("objects in a sample, mean 2.00:") == printed.count("boxes in a sample, mean 2.00") == 2
    # Of 400 pixels 16 and 90: shares of the frames in which an object is seen
    assert printed.count("of the image, mean 13.25%") == 2
    assert re.search(r"to 5\.00% #+ +3\n.*\n +to 25\.00% #+ +3\n", printed)
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert sheet.size == (4 * (6 * 20 + 4), 2 * (2 * 20 + 4))
        first = np.asarray(sheet)[2:42, 2:62]  # three frames; the masks are below
    assert not first[:20].any()
    assert [first[20 + 6, 20 * frame + frame + 1].any() for frame in range(3)] == [True] * 3
    assert [first[20 + 15, 20 * frame + 15].any() for frame in range(3)] == [False, False, True]
    assert (first[20 + 6, 1] != first[20 + 15, 55]).any()  # another object, another colour


@pytest.mark.parametrize("name", ["clevrtex", "movi_c"])
def test_both_formats_have_one_card(prefix, tmp_path, capsys, name):
    cards, sheets = [], []
    for folder in (name, f"{name}_lmdb"):
        main(["inspect", str(prefix / folder), "--sheet", str(tmp_path / "sheet.png")])
        cards.append(capsys.readouterr().out.splitlines()[1:])
        sheets.append((tmp_path / "sheet.png").read_bytes())
    assert cards[0] == cards[1] and len(cards[0]) > 20
    assert sheets[0] == sheets[1]


@pytest.mark.parametrize("name, folder", [("coco", "coco_panoptic"), ("voc", "voc"), ("openimages", "openimages")])
def test_every_other_data_set_has_a_card(tmp_path, capsys, name, folder):
    raw = SimpleNamespace(**runpy.run_path(str(Path(__file__).with_name(f"raw_{name}.py"))))
    raw.write_folder(tmp_path / "raw")
    main(["convert", name, str(tmp_path / "raw"), str(tmp_path), "--size", "24", "--no-filter", "--workers", "1"])
    main(["inspect", str(tmp_path / folder)])
    printed = capsys.readouterr().out
    summary = json.loads((tmp_path / folder / "summary.json").read_text())
    samples = [split["samples"] for split in summary["splits"].values()]
    assert [int(n) for n in re.findall(r"^\w+, (\d+) samples", printed, flags=re.MULTILINE)] == samples
    assert printed.count("boxes in a sample") == len(samples)
    with Image.open(tmp_path / folder / "samples.png") as sheet:
        assert sheet.size == (4 * (2 * 24 + 4), -(-sum(samples) // 4) * (24 + 4))


def test_objects_are_found_in_every_kind_of_mask():
    numbers = np.array([[0, 1, 1], [3, 255, 1]], np.uint8)
    image = np.full((2, 3, 3), 100, np.uint8)
    one_hot = np.stack([numbers == i for i in range(4)])[..., None].astype(np.uint8)
    expected = np.stack([numbers == 1, numbers == 3])
    for sample in (
        {"image": image, "mask": one_hot},
        {"image": image, "instance_mask": one_hot[1:]},
        {"image": image, "segmentation": numbers[..., None]},
        {"image": image, "segmentation": numbers[..., None], "instance_mask": one_hot[:1]},
        {"image": image, "segmentation-class": one_hot[0], "segmentation-instance": numbers[..., None]},
        {"video": np.stack([image, image]), "segmentations": np.stack([numbers, 0 * numbers])[..., None]},
        {"video": np.stack([image, image]), "mask": np.stack([one_hot, 0 * one_hot])},
    ):
        masks = object_masks(sample)
        assert list(masks) == [1, 3]
        np.testing.assert_array_equal(np.stack([mask[0] for mask in masks.values()]), expected)
        assert not any(mask[1:].any() for mask in masks.values())
        changed = (outlined(sample) != image).any(axis=-1)
        np.testing.assert_array_equal(changed[0], expected.any(axis=0))
        assert not changed[1:].any()
    assert object_masks({"image": image}) == {}
    assert object_masks({"image": image, "segmentation": 0 * numbers[..., None]}) == {}


def test_boxes_are_drawn_where_they_are():
    image = np.zeros((6, 8, 3), np.uint8)
    pixels = {"image": image, "bbox": np.array([[1, 2, 4, 3], [0, 0, 0, 0]], np.float32)}
    shares = {"video": np.stack([image, image]), "instance_bbox": np.zeros((2, 3, 4), np.float32)}
    shares["instance_bbox"][0, 1] = 1 / 8, 2 / 6, 5 / 8, 5 / 6
    frame = np.zeros((6, 8), bool)
    frame[2:5, 1:5] = True
    frame[3, 2:4] = False
    for sample in (pixels, shares):
        assert object_boxes(sample)[0].max(axis=0).tolist() == pytest.approx([1, 2, 5, 5])
        np.testing.assert_array_equal(outlined(sample)[0].any(axis=-1), frame)
        assert not outlined(sample)[1:].any()
    assert tile(shares).size == (16, 12) and tile(pixels).size == (16, 6)


@pytest.mark.parametrize(
    "damaged, message",
    [
        (lambda folder: shutil.rmtree(folder), "clevrtex is no folder"),
        (lambda folder: (folder / "summary.json").unlink(), r"summary\.json is missing: nothing was converted there"),
        (lambda folder: (folder / "summary.json").rename(folder / "unfinished.json"), "conversion was interrupted"),
        (lambda folder: (folder / "summary.json").write_text("{"), r"summary\.json is damaged"),
        (lambda folder: (folder / "summary.json").write_text("[]"), "was not written by a conversion"),
        (lambda folder: (folder / "summary.json").write_text('{"format": 1}'), "was not written by a conversion"),
        (lambda folder: (folder / "train/shard-000001.tar").unlink(), r"shard-000001\.tar is missing"),
        (lambda folder: (folder / "val/shard-000000.tar").write_bytes(b""), "has 0 bytes instead of"),
        (lambda folder: flip(folder / "val/shard-000000.tar"), r"shard-000000\.tar is damaged"),
    ],
)
def test_what_is_wrong_is_named_in_one_line(prefix, tmp_path, damaged, message):
    shutil.copytree(prefix / "clevrtex", tmp_path / "clevrtex")
    damaged(tmp_path / "clevrtex")
    with pytest.raises(SystemExit, match=f"^error: .*{message}") as error:
        main(["inspect", str(tmp_path / "clevrtex")])
    assert "\n" not in str(error.value)
    assert not (tmp_path / "clevrtex" / "samples.png").exists()


def flip(path):
    content = bytearray(path.read_bytes())
    content[512:1024] = bytes(byte ^ 255 for byte in content[512:1024])  # in the first member
    path.write_bytes(content)


def test_files_and_folders_of_data_sets_are_told_from_data_sets(prefix, tmp_path):
    with pytest.raises(SystemExit, match=r"holds clevrtex, clevrtex_lmdb, movi_c.* Give one of these: .*clevrtex$"):
        main(["inspect", str(prefix)])
    with pytest.raises(SystemExit, match=r"summary\.json is no folder"):
        main(["inspect", str(prefix / "clevrtex" / "summary.json")])
    (tmp_path / "file").touch()
    with pytest.raises(SystemExit, match=r"error: .*sheet\.png was not written"):
        main(["inspect", str(prefix / "clevrtex"), "--sheet", str(tmp_path / "file" / "sheet.png")])
