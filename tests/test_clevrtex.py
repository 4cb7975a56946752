import gzip
import hashlib
import io
import json
import os
import signal
import subprocess
import sys
import tarfile
import time

import numpy as np
import pytest
from PIL import Image

from ocl_msf.data._work import replacing
from ocl_msf.data.clevrtex import find_scenes
from ocl_msf.data.convert import main

COLOURS = [0, 0, 0, 255, 0, 0, 0, 100, 0, 0, 0, 255, 255, 255, 0, 75, 75, 75, 9, 200, 30]


def write_scene(raw, index, boxes, variant="full", folder="0"):
    """An RGBA image of noise and a palette mask with a box (left, top, right, bottom) for every object."""
    rng = np.random.default_rng(index)
    mask = np.zeros((240, 320), np.uint8)
    for number, (left, top, right, bottom) in enumerate(boxes, 1):
        mask[top:bottom, left:right] = number
    path = raw / f"clevrtex_{variant}" / folder / f"CLEVRTEX_{variant}_{index:06d}.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(rng.integers(0, 256, (240, 320, 4), np.uint8)).save(path, compress_level=0)
    flat = Image.fromarray(mask)
    flat.putpalette(COLOURS)
    flat.save(path.with_name(f"{path.stem}_flat.png"))
    path.with_suffix(".json").write_text(json.dumps({"num_objects": len(boxes), "image_index": index}))
    return path


def random_boxes(rng, count):
    corners = rng.integers(0, (280, 200), (count, 2))
    return [(x, y, x + rng.integers(15, 90), y + rng.integers(15, 90)) for x, y in corners.tolist()]


@pytest.fixture(scope="module")
def raw(tmp_path_factory):
    """Ten scenes; the first has an object beside the central square and comes with auxiliary images."""
    raw = tmp_path_factory.mktemp("raw")
    rng = np.random.default_rng(0)
    image = write_scene(raw, 0, [(100, 50, 180, 120), (2, 5, 30, 200), (200, 100, 215, 115)])
    for name in ("albedo", "depth", "normal", "shadow"):
        Image.new("L", (320, 240)).save(image.with_name(f"{image.stem}_{name}_0001.png"))
    for index in range(1, 10):
        write_scene(raw, index, random_boxes(rng, 2 + index % 9))
    return raw


def convert(raw, out, *options):
    main(["clevrtex", str(raw), str(out), "--workers", "1", *options])
    return json.loads(next(out.glob("clevrtex*/summary.json")).read_text())


def read_samples(out, split):
    """{key: {field: array}} of all shards of a split."""
    samples = {}
    for path in sorted(out.glob(f"clevrtex*/{split}/shard-*.tar")):
        with tarfile.open(path) as tar:
            for member in tar.getmembers():
                key, field, *_ = member.name.split(".")
                content = tar.extractfile(member).read()
                if field == "image":
                    value = np.asarray(Image.open(io.BytesIO(content)))
                else:
                    value = np.load(io.BytesIO(gzip.decompress(content)))
                samples.setdefault(key, {})[field] = value
    return samples


def contents(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_splits_are_the_benchmarks(raw, tmp_path):
    summary = convert(raw, tmp_path)
    assert {name: split["samples"] for name, split in summary["splits"].items()} == {
        "test": 1,
        "val": 1,
        "train": 8,
    }
    assert list(read_samples(tmp_path, "test")) == ["000000"]
    assert list(read_samples(tmp_path, "val")) == ["000001"]
    assert sorted(read_samples(tmp_path, "train")) == [f"{i:06d}" for i in range(2, 10)]


def test_splits_by_option(raw, tmp_path):
    convert(raw.joinpath("clevrtex_full"), tmp_path, "--splits", "val=:3", "train=3:-1")
    assert sorted(read_samples(tmp_path, "val")) == ["000000", "000001", "000002"]
    assert sorted(read_samples(tmp_path, "train")) == [f"{i:06d}" for i in range(3, 9)]


def test_another_variant_is_all_test_and_goes_to_its_own_folder(tmp_path):
    for index in range(2):
        write_scene(tmp_path / "raw", index, [(100, 50, 180, 120)], variant="outd")
    summary = convert(tmp_path / "raw", tmp_path / "out", "--variant", "outd")
    assert summary["dataset"] == "clevrtex_outd" and list(summary["splits"]) == ["test"]
    assert len(read_samples(tmp_path / "out", "test")) == 2


@pytest.mark.parametrize("crop, size, box", [(1.0, 128, (40, 0, 280, 240)), (0.8, 50, (64, 24, 256, 216))])
def test_samples_equal_a_plain_reference(raw, tmp_path, crop, size, box):
    convert(raw, tmp_path, "--crop", str(crop), "--size", str(size), "--splits", "train=:")
    samples = read_samples(tmp_path, "train")
    assert len(samples) == 10
    for key, sample in samples.items():
        path = raw / "clevrtex_full" / "0" / f"CLEVRTEX_full_{key}.png"
        with Image.open(path) as image, Image.open(path.with_name(f"{path.stem}_flat.png")) as flat:
            colours = Image.fromarray(np.asarray(image)[..., :3])
            expected_image = np.asarray(colours.crop(box).resize((size, size), Image.BILINEAR))
            numbers = np.asarray(flat)[box[1] : box[3], box[0] : box[2]]
        np.testing.assert_array_equal(sample["image"], expected_image)
        assert sample["mask"].shape == (11, size, size, 1) and sample["mask"].dtype == np.uint8
        side = box[2] - box[0]
        for y in range(size):
            for x in range(size):
                number = numbers[
                    int(np.floor((y + 0.5) * side / size)), int(np.floor((x + 0.5) * side / size))
                ]
                assert sample["mask"][:, y, x, 0].tolist() == [int(number == i) for i in range(11)]
        assert sample["visibility"].dtype == np.float32
        assert sample["visibility"].tolist() == sample["mask"].any(axis=(1, 2, 3)).tolist()


def test_an_object_beside_the_crop_keeps_its_empty_mask(raw, tmp_path):
    convert(raw, tmp_path)
    visible = read_samples(tmp_path, "test")["000000"]["visibility"]
    assert visible.tolist() == [1, 1, 0, 1] + [0] * 7


def test_scenes_are_ordered_by_index_not_by_folder(tmp_path):
    for index, folder in enumerate(("10", "9", "2")):
        write_scene(tmp_path, index, [], folder=folder)
    assert [path.stem for path in find_scenes(tmp_path, "full")] == [
        f"CLEVRTEX_full_{i:06d}" for i in range(3)
    ]


def test_every_split_feeds_several_readers(raw, tmp_path):
    summary = convert(raw, tmp_path, "--splits", "train=:6", "val=6:8", "test=8:9")
    assert [shard["samples"] for shard in summary["splits"]["train"]["shards"]] == [1, 2, 1, 2]
    assert [shard["samples"] for shard in summary["splits"]["val"]["shards"]] == [1, 1]
    summary = convert(raw, tmp_path / "small", "--splits", "train=:", "--samples-per-shard", "2")
    assert [shard["samples"] for shard in summary["splits"]["train"]["shards"]] == [2] * 5


def test_the_summary_describes_the_shards(raw, tmp_path):
    summary = convert(raw, tmp_path)
    shards = [shard for split in summary["splits"].values() for shard in split["shards"]]
    files = {str(path.relative_to(tmp_path / "clevrtex")) for path in tmp_path.rglob("*") if path.is_file()}
    assert files == {shard["name"] for shard in shards} | {"summary.json"}
    assert summary["format"] == 1 and summary["options"]["crop"] == 1.0
    for shard in shards:
        content = (tmp_path / "clevrtex" / shard["name"]).read_bytes()
        assert (shard["bytes"], shard["sha256"]) == (len(content), hashlib.sha256(content).hexdigest())
        with tarfile.open(fileobj=io.BytesIO(content)) as tar:
            members = tar.getmembers()
        assert [member.name.split(".", 1)[1] for member in members] == [
            "image.png",
            "mask.npy.gz",
            "visibility.npy.gz",
        ] * shard["samples"]
        assert {(member.mtime, member.uid, member.gid, member.uname) for member in members} == {(0, 0, 0, "")}


def test_bytes_do_not_depend_on_workers_or_interruptions(raw, tmp_path):
    options = ["--splits", "train=:", "--samples-per-shard", "1"]
    convert(raw, tmp_path / "whole", *options)
    convert(raw, tmp_path / "two", *options, "--workers", "2")
    killed = tmp_path / "killed"
    command = [sys.executable, "-m", "ocl_msf.data.convert", "clevrtex", str(raw), str(killed), *options]
    process = subprocess.Popen(command, stderr=subprocess.PIPE)
    while not list(killed.glob("clevrtex/train/*.tar")) and process.poll() is None:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=120)  # returns when the workers, who share the pipe, have ended too
    convert(raw, killed, *options)
    whole = contents(tmp_path / "whole")
    assert contents(tmp_path / "two") == whole
    assert contents(killed) == whole


def test_only_whole_shards_of_an_interrupted_run_are_kept(raw, tmp_path):
    convert(raw, tmp_path, "--splits", "train=:")
    whole = contents(tmp_path)
    folder = tmp_path / "clevrtex"
    shards = sorted(folder.glob("train/*.tar"))
    (folder / "summary.json").rename(folder / "unfinished.json")
    shards[0].unlink()
    shards[1].write_bytes(shards[1].read_bytes()[:5000])
    changed = bytearray(shards[2].read_bytes())
    changed[3000] ^= 1
    shards[2].write_bytes(changed)
    kept = shards[3].stat().st_ino
    convert(raw, tmp_path, "--splits", "train=:")
    assert contents(tmp_path) == whole
    assert shards[3].stat().st_ino == kept


def test_other_options_need_another_folder_or_overwrite(raw, tmp_path):
    convert(raw, tmp_path, "--samples-per-shard", "1")
    before = contents(tmp_path)
    with pytest.raises(
        SystemExit, match=r'other options: .*"crop": 1\.0.* there, .*"crop": 0\.8.*--overwrite'
    ):
        convert(raw, tmp_path, "--crop", "0.8")
    assert contents(tmp_path) == before
    convert(raw, tmp_path, "--crop", "0.8", "--overwrite")
    convert(raw, tmp_path / "new", "--crop", "0.8")
    new = contents(tmp_path / "new")
    assert {name: c for name, c in contents(tmp_path).items() if not name.startswith("new")} == new


def test_verify_names_what_has_changed(raw, tmp_path, capsys):
    convert(raw, tmp_path)
    main(["clevrtex", "gone", str(tmp_path), "--verify"])
    assert "all checksums right" in capsys.readouterr().out
    path = tmp_path / "clevrtex" / "train" / "shard-000001.tar"
    changed = bytearray(path.read_bytes())
    changed[3000] ^= 1
    path.write_bytes(changed)
    with pytest.raises(SystemExit, match=r"train/shard-000001\.tar has another checksum"):
        main(["clevrtex", "gone", str(tmp_path), "--verify"])
    with pytest.raises(SystemExit, match=r"clevrtex/summary\.json is missing"):
        main(["clevrtex", "gone", str(tmp_path / "nothing"), "--verify"])


def test_a_wrong_folder_is_refused(raw, tmp_path):
    with pytest.raises(
        SystemExit, match=r"looked for <n>/CLEVRTEX_full_\*\.png.*found CLEVRTEX_full_000000\.json,"
    ):
        convert(raw / "clevrtex_full" / "0", tmp_path)
    with pytest.raises(SystemExit, match="CLEVRTEX_outd.*found clevrtex_full"):
        convert(raw, tmp_path, "--variant", "outd")
    with pytest.raises(SystemExit, match="no such folder"):
        convert(raw / "nowhere", tmp_path)
    assert not list(tmp_path.iterdir())


def test_incomplete_raw_data_are_refused(tmp_path):
    images = [write_scene(tmp_path / "raw", index, [(100, 50, 180, 120)]) for index in range(3)]
    mask = images[2].with_name("CLEVRTEX_full_000002_flat.png")
    mask.rename(tmp_path / "mask.png")
    with pytest.raises(SystemExit, match=r"CLEVRTEX_full_000002_flat\.png is missing"):
        convert(tmp_path / "raw", tmp_path / "out")
    (tmp_path / "mask.png").rename(mask)
    twin = write_scene(tmp_path / "raw", 1, [], folder="1")
    with pytest.raises(SystemExit, match="Scene 1 is there twice"):
        convert(tmp_path / "raw", tmp_path / "out")
    twin.unlink()
    images[1].unlink()
    with pytest.raises(SystemExit, match="Scene 1 is missing"):
        convert(tmp_path / "raw", tmp_path / "out")


def test_broken_files_are_named_and_leave_no_summary(tmp_path):
    images = [write_scene(tmp_path / "raw", index, [(100, 50, 180, 120)]) for index in range(2)]
    whole = images[1].read_bytes()
    images[1].write_bytes(whole[: len(whole) // 2])
    for workers in ("1", "2"):
        with pytest.raises(SystemExit, match=r"CLEVRTEX_full_000001\.png cannot be read"):
            convert(tmp_path / "raw", tmp_path / "out", "--splits", "train=:", "--workers", workers)
    assert not list(tmp_path.glob("out/clevrtex/summary.json"))
    images[1].write_bytes(whole)
    assert (
        convert(tmp_path / "raw", tmp_path / "out", "--splits", "train=:")["splits"]["train"]["samples"] == 2
    )


@pytest.mark.parametrize(
    "mask, message",
    [
        (Image.new("RGB", (320, 240)), "is a RGB image"),
        (Image.new("L", (240, 240)), r"of \(240, 240\)"),
        (Image.new("L", (320, 240), 11), "has object 11, more than 10"),
    ],
)
def test_masks_that_cannot_be_right_are_refused(tmp_path, mask, message):
    image = write_scene(tmp_path / "raw", 0, [])
    mask.save(image.with_name(f"{image.stem}_flat.png"))
    with pytest.raises(SystemExit, match=rf"CLEVRTEX_full_000000_flat\.png .*{message}"):
        convert(tmp_path / "raw", tmp_path / "out", "--splits", "train=:")


@pytest.mark.parametrize(
    "options, message",
    [
        (["--splits", "train=10:"], "Split train=10: is empty: there are 10 scenes"),
        (["--splits", "dev=0:5"], "--splits dev=0:5 is not like train=0:100"),
        (["--splits", "train=0:5", "train=5:"], "names train twice"),
        (["--crop", "1.5"], "--crop 1.5"),
    ],
)
def test_options_that_make_no_sense_are_refused(raw, tmp_path, options, message):
    with pytest.raises(SystemExit, match=message):
        convert(raw, tmp_path, *options)


def test_a_file_takes_its_name_when_it_is_complete(tmp_path):
    path = tmp_path / "new" / "file"
    with replacing(path) as file:
        file.write(b"first")
        assert not path.exists()
    with pytest.raises(KeyError), replacing(path) as file:
        file.write(b"second, cut")
        raise KeyError
    assert contents(tmp_path) == {"new/file": b"first"}


def test_a_full_disk_is_one_message_and_the_run_goes_on_later(raw, tmp_path):
    """A limit on the size of files stands for the disk: the second shard is over it."""
    arguments = ["clevrtex", str(raw), str(tmp_path), "--workers", "1", "--splits", "train=:"]
    script = (
        "import resource, sys; from ocl_msf.data.convert import main; "
        "resource.setrlimit(resource.RLIMIT_FSIZE, (130_000,) * 2); main(sys.argv[1:])"
    )
    command = [sys.executable, "-c", script, *arguments]
    result = subprocess.run(command, stderr=subprocess.PIPE, env=dict(os.environ), check=False)
    message = result.stderr.decode().splitlines()[-1]
    assert result.returncode == 1
    assert message.startswith("error: ") and "shard-000001.tar was not written: File too large" in message
    assert [path.name for path in tmp_path.glob("clevrtex/train/*")] == ["shard-000000.tar"]
    convert(raw, tmp_path, "--splits", "train=:")
    convert(raw, tmp_path / "whole", "--splits", "train=:")
    whole = contents(tmp_path / "whole")
    assert {name: c for name, c in contents(tmp_path).items() if not name.startswith("whole")} == whole
