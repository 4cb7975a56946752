import gzip
import hashlib
import io
import json
import os
import runpy
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from ocl_msf.cli import main
from ocl_msf.data.raw.clevrtex import encode_scene, find_scenes
from ocl_msf.data.workers import Rejected
from ocl_msf.files import replacing

SHARED = SimpleNamespace(**runpy.run_path(str(Path(__file__).with_name("converters.py"))))
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
    main(["convert", "clevrtex", str(raw), str(out), "--workers", "1", *options])
    return json.loads(next(out.glob("clevrtex*/summary.json")).read_text())


def read_samples(out, split):
    """{key: {field: array}} of all shards of a split."""
    return SHARED.read_samples(out.glob(f"clevrtex*/{split}/shard-*.tar"))


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
                number = numbers[int(np.floor((y + 0.5) * side / size)), int(np.floor((x + 0.5) * side / size))]
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
    scenes = find_scenes(tmp_path, "full")
    assert [scene.index for scene in scenes] == [0, 1, 2]
    assert [Path(scene.image.path).stem for scene in scenes] == [f"CLEVRTEX_full_{i:06d}" for i in range(3)]
    assert [Path(scene.mask.path).stem for scene in scenes] == [f"CLEVRTEX_full_{i:06d}_flat" for i in range(3)]


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
    assert summary["format"] == "webdataset" and summary["options"]["crop"] == 1.0
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
    command = [sys.executable, "-m", "ocl_msf", "convert", "clevrtex", str(raw), str(killed), *options]
    process = subprocess.Popen(command, stderr=subprocess.PIPE)
    while not list(killed.glob("clevrtex/train/*.tar")) and process.poll() is None:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=600)  # returns when the workers, who share the pipe, have ended too
    convert(raw, killed, *options)
    whole = SHARED.contents(tmp_path / "whole")
    assert SHARED.contents(tmp_path / "two") == whole
    assert SHARED.contents(killed) == whole


def test_only_whole_shards_of_an_interrupted_run_are_kept(raw, tmp_path):
    convert(raw, tmp_path, "--splits", "train=:")
    whole = SHARED.contents(tmp_path)
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
    assert SHARED.contents(tmp_path) == whole
    assert shards[3].stat().st_ino == kept


def test_other_options_need_another_folder_or_overwrite(raw, tmp_path):
    convert(raw, tmp_path, "--samples-per-shard", "1")
    before = SHARED.contents(tmp_path)
    with pytest.raises(SystemExit, match=r'other options: .*"crop": 1\.0.* there, .*"crop": 0\.8.*--overwrite'):
        convert(raw, tmp_path, "--crop", "0.8")
    assert SHARED.contents(tmp_path) == before
    convert(raw, tmp_path, "--crop", "0.8", "--overwrite")
    convert(raw, tmp_path / "new", "--crop", "0.8")
    new = SHARED.contents(tmp_path / "new")
    assert {name: c for name, c in SHARED.contents(tmp_path).items() if not name.startswith("new")} == new


def test_verify_names_what_has_changed(raw, tmp_path, capsys):
    convert(raw, tmp_path)
    main(["convert", "clevrtex", "gone", str(tmp_path), "--verify"])
    assert "all checksums right" in capsys.readouterr().out
    path = tmp_path / "clevrtex" / "train" / "shard-000001.tar"
    changed = bytearray(path.read_bytes())
    changed[3000] ^= 1
    path.write_bytes(changed)
    with pytest.raises(SystemExit, match=r"train/shard-000001\.tar has another checksum"):
        main(["convert", "clevrtex", "gone", str(tmp_path), "--verify"])
    with pytest.raises(SystemExit, match=r"clevrtex/summary\.json is missing"):
        main(["convert", "clevrtex", "gone", str(tmp_path / "nothing"), "--verify"])


def test_a_wrong_folder_is_refused(raw, tmp_path):
    with pytest.raises(SystemExit, match=r"looked for <n>/CLEVRTEX_full_\*\.png.*found CLEVRTEX_full_000000\.json,"):
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
    shutil.rmtree(twin.parent)


@pytest.mark.parametrize("first", [1, 5000])
@pytest.mark.parametrize("archive", [False, True])
def test_a_part_of_the_scenes_is_converted(tmp_path, first, archive):
    for index in range(first, first + 22):
        write_scene(tmp_path / "raw", index, [(100, 50, 180, 120)])
    if archive:  # the second part of a download whose parts are archives of their own
        content = gzip.compress(pack(tmp_path / "raw" / "clevrtex_full", ""))
        shutil.rmtree(tmp_path / "raw" / "clevrtex_full")
        (tmp_path / "raw" / "clevrtex_full_part2.tar.gz").write_bytes(content)
    summary = convert(tmp_path / "raw", tmp_path / "default")
    counts = {name: split["samples"] for name, split in summary["splits"].items()}
    assert counts == {"test": 2, "val": 2, "train": 18} and not summary["rejected"]
    assert sorted(read_samples(tmp_path / "default", "val")) == [f"{first + i:06d}" for i in (2, 3)]
    chosen = [f"val=:{first + 3}", f"test={first + 3}:-10", f"train={first + 12}:{first + 99}"]
    convert(tmp_path / "raw", tmp_path / "chosen", "--splits", *chosen)
    keys = [sorted(map(int, read_samples(tmp_path / "chosen", split))) for split in ("val", "test", "train")]
    assert sum(keys, []) == list(range(first, first + 22)) and [len(split) for split in keys] == [3, 9, 10]
    with pytest.raises(SystemExit, match=rf"train=0:1 is empty: there are 22 scenes, {first} to {first + 21}"):
        convert(tmp_path / "raw", tmp_path / "none", "--splits", "train=0:1")


def test_a_gap_between_scenes_is_counted_and_named(tmp_path):
    for index in [*range(3, 15), *range(17, 27)]:
        write_scene(tmp_path / "raw", index, [(100, 50, 180, 120)])
    image = next((tmp_path / "raw").rglob("CLEVRTEX_full_000020.png"))
    image.unlink()  # its mask alone is no scene
    summary = convert(tmp_path / "raw", tmp_path / "out")
    assert summary["rejected"] == {
        "missing scene": {"count": 3, "names": ["scene 15", "scene 16", "scene 20"]},
    }
    counts = {name: split["samples"] for name, split in summary["splits"].items()}
    assert counts == {"test": 2, "val": 2, "train": 17}
    with pytest.raises(SystemExit, match="scene 15: missing scene.*--strict"):
        convert(tmp_path / "raw", tmp_path / "out", "--strict")
    with pytest.raises(SystemExit, match=r"split val is empty.*2 for \"missing scene\" \(scene 15, scene 16\)"):
        convert(tmp_path / "raw", tmp_path / "gap", "--splits", "val=15:17", "train=17:")


def test_broken_files_are_counted_or_stop_a_strict_conversion(tmp_path):
    images = [write_scene(tmp_path / "raw", index, [(100, 50, 180, 120)]) for index in range(3)]
    whole = images[1].read_bytes()
    images[1].write_bytes(whole[: len(whole) // 2])
    for workers in ("1", "2"):
        with pytest.raises(SystemExit, match=r"scene 1: damaged image .*CLEVRTEX_full_000001\.png.*--strict"):
            convert(tmp_path / "raw", tmp_path / "out", "--splits", "train=:", "--workers", workers, "--strict")
    assert not list(tmp_path.glob("out/clevrtex/summary.json"))
    summary = convert(tmp_path / "raw", tmp_path / "out", "--splits", "train=:")
    assert summary["splits"]["train"]["samples"] == 2
    assert summary["rejected"]["damaged image"]["names"] == ["scene 1"]
    images[1].write_bytes(whole)
    summary = convert(tmp_path / "raw", tmp_path / "out", "--splits", "train=:", "--overwrite")
    assert summary["splits"]["train"]["samples"] == 3 and not summary["rejected"]


@pytest.mark.parametrize(
    "mask, reason, detail",
    [
        (Image.new("I;16", (320, 240)), "mask is neither a palette nor a grey image of 8 bits", r"_flat\.png: I;16"),
        (Image.new("RGB", (320, 240)), "mask is neither a palette nor a grey image of 8 bits", r"_flat\.png: RGB"),
        (Image.new("L", (240, 240)), "mask of another size", r"\(240, 240\), not \(320, 240\)"),
        (Image.new("L", (320, 240), 11), "mask has an object above 10", r"_flat\.png: 11"),
    ],
)
def test_masks_that_cannot_be_right_are_refused(tmp_path, mask, reason, detail):
    image = write_scene(tmp_path / "raw", 0, [])
    mask.save(image.with_name(f"{image.stem}_flat.png"))
    (scene,) = find_scenes(tmp_path / "raw", "full")
    with pytest.raises(Rejected, match=rf"^scene 0: {reason} \(.*{detail}\)$"):
        encode_scene(1.0, 16, scene)


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
    assert SHARED.contents(tmp_path) == {"new/file": b"first"}


def test_a_full_disk_is_one_message_and_the_run_goes_on_later(raw, tmp_path):
    """A limit on the size of files stands for the disk: the second shard is over it."""
    arguments = ["clevrtex", str(raw), str(tmp_path), "--workers", "1", "--splits", "train=:"]
    script = (
        "import resource, sys; from ocl_msf.cli import main; "
        "resource.setrlimit(resource.RLIMIT_FSIZE, (130_000,) * 2); main(['convert', *sys.argv[1:]])"
    )
    command = [sys.executable, "-c", script, *arguments]
    result = subprocess.run(command, stderr=subprocess.PIPE, env=dict(os.environ), check=False)
    message = result.stderr.decode().splitlines()[-1]
    assert result.returncode == 1
    assert message.startswith("error: ") and "shard-000001.tar was not written: File too large" in message
    assert [path.name for path in tmp_path.glob("clevrtex/train/*")] == ["shard-000000.tar"]
    convert(raw, tmp_path, "--splits", "train=:")
    convert(raw, tmp_path / "whole", "--splits", "train=:")
    whole = SHARED.contents(tmp_path / "whole")
    assert {name: c for name, c in SHARED.contents(tmp_path).items() if not name.startswith("whole")} == whole


def pack(folder, *names):
    """An uncompressed archive of the files below a folder whose paths contain one of the names, in reverse order."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for path in sorted(folder.rglob("*.*"), reverse=True):
            if any(name in path.name for name in names):
                archive.add(path, f"clevrtex_full/{path.relative_to(folder)}")
    return buffer.getvalue()


def one_archive(folder):
    return {"clevrtex_full.tar.gz": gzip.compress(pack(folder, ""))}


def archives_by_part(folder):
    halves = pack(folder, *(f"00000{i}" for i in range(5))), pack(folder, *(f"00000{i}" for i in range(5, 10)))
    return {f"clevrtex_full_part{n}.tar.gz": gzip.compress(half) for n, half in enumerate(halves, 1)}


def archive_in_parts(folder):
    whole = gzip.compress(pack(folder, ""))
    cuts = [0, 1000, len(whole) // 2, len(whole)]
    return {f"clevrtex_full_part{n + 1}.tar.gz": whole[cuts[n] : cuts[n + 1]] for n in range(3)}


@pytest.mark.parametrize("archives, workers", [(one_archive, 1), (archives_by_part, 1), (archive_in_parts, 2)])
def test_archives_and_folders_give_the_same_bytes(raw, tmp_path, archives, workers):
    (tmp_path / "packed").mkdir()
    for name, content in archives(raw / "clevrtex_full").items():
        (tmp_path / "packed" / name).write_bytes(content)
    (tmp_path / "packed" / "clevrtex_fullest.tar.gz").write_bytes(b"another one's")
    convert(raw, tmp_path / "plain", "--splits", "train=:")
    convert(tmp_path / "packed", tmp_path / "out", "--splits", "train=:", "--workers", str(workers))
    assert SHARED.contents(tmp_path / "out") == SHARED.contents(tmp_path / "plain")


def test_archives_that_are_not_whole_are_named(raw, tmp_path):
    for name, content in archive_in_parts(raw / "clevrtex_full").items():
        (tmp_path / name).write_bytes(content)
    last = tmp_path / "clevrtex_full_part3.tar.gz"
    last.write_bytes(last.read_bytes()[:-2000])
    with pytest.raises(SystemExit, match=r"clevrtex_full_part1\.tar\.gz, .* cannot be read \(the archive is cut off\)"):
        convert(tmp_path, tmp_path / "out")
    (tmp_path / "clevrtex_full_part2.tar.gz").unlink()
    with pytest.raises(SystemExit, match=r"Part 2 of .*clevrtex_full_part3\.tar\.gz is missing"):
        convert(tmp_path, tmp_path / "out")


def is_valid(sample):
    """Whether a sample of 8 x 8 pixels is one that the data modules take."""
    key, files = sample
    image, mask, visibility = (SHARED.decode(name, files[name]) for name in sorted(files))
    shapes = [(array.shape, array.dtype.name) for array in (image, mask, visibility)]
    expected = [((8, 8, 3), "uint8"), ((11, 8, 8, 1), "uint8"), ((11,), "float32")]
    return key.isdigit() and shapes == expected and (mask.sum(axis=0) == 1).all()


@pytest.mark.parametrize("packed", [False, True])
def test_damage_ends_in_a_valid_sample_or_a_named_rejection(tmp_path, packed):
    """150 damaged files each; what is neither a sample, nor rejected, nor a DataError raises here."""
    rng = np.random.default_rng(0)
    folder = tmp_path / "clevrtex_full" / "0"
    folder.mkdir(parents=True)
    for index in range(2):
        numbers = Image.fromarray(rng.integers(0, 11, (12, 16), np.uint8))
        numbers.putpalette(COLOURS)
        numbers.save(folder / f"CLEVRTEX_full_{index:06d}_flat.png")
        pixels = rng.integers(0, 256, (12, 16, 4), np.uint8)
        Image.fromarray(pixels).save(folder / f"CLEVRTEX_full_{index:06d}.png")
    paths = sorted(folder.iterdir())
    if packed:
        paths = [tmp_path / "plain" / "clevrtex_full.tar", tmp_path / "packed" / "clevrtex_full.tar.gz"]
        for path, compress in zip(paths, (bytes, gzip.compress)):
            path.parent.mkdir()
            path.write_bytes(compress(pack(folder.parent, "")))

    def encode():
        rejected = []
        for folder in {path.parent for path in paths} if packed else [tmp_path]:
            for scene in find_scenes(folder, "full"):
                try:
                    assert is_valid(encode_scene(1.0, 8, scene))
                except Rejected as error:
                    assert error.sample == f"scene {scene.index}" and "damaged" in error.reason
                    rejected.append(error)
        return {}, rejected

    outcomes = SHARED.damage_in_turn(paths, 150, encode, names=("Scene", "No ClevrTex scenes"))
    assert outcomes["samples"] and outcomes["rejected"], outcomes
    assert bool(outcomes["refused"]) == packed, outcomes


@pytest.mark.parametrize("what", ["image", "mask"])
def test_other_kinds_of_files_are_read_or_named(tmp_path, what):
    """Every kind of image that Pillow can write as PNG, JPEG or something else, and what is no image."""
    write_scene(tmp_path, 0, [(100, 50, 180, 120)])
    (scene,) = find_scenes(tmp_path, "full")
    outcomes = {}
    for mode in ("1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "I;16"):
        for kind in ("PNG", "JPEG", "TIFF", "GIF"):
            buffer = io.BytesIO()
            try:
                Image.new(mode, (320, 240)).save(buffer, kind)
            except (OSError, ValueError):
                continue  # no such file
            Path(getattr(scene, what).path).write_bytes(buffer.getvalue())
            try:
                assert is_valid(encode_scene(1.0, 8, scene))
                outcomes[mode, kind] = "sample"
            except Rejected as error:
                outcomes[mode, kind] = error.reason
    for content in (b"", b"{}", b"\x89PNG\r\n\x1a\n"):
        Path(getattr(scene, what).path).write_bytes(content)
        with pytest.raises(Rejected, match=f"damaged {what}"):
            encode_scene(1.0, 8, scene)
    taken = {key for key, outcome in outcomes.items() if outcome == "sample"}
    if what == "mask":
        assert taken == {("L", "PNG"), ("P", "PNG")}
    else:
        assert taken >= {(mode, "PNG") for mode in ("1", "L", "LA", "P", "RGB", "RGBA")} | {("CMYK", "JPEG")}
    assert {outcomes[key] for key in outcomes if key[1] in ("TIFF", "GIF")} == {f"damaged {what}"}
