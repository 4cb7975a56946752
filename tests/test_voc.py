import functools
import json
import runpy
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image
from scipy.io import loadmat, savemat

from ocl_msf.cli import main
from ocl_msf.data.raw import voc
from ocl_msf.files import DataError

RAW = SimpleNamespace(**runpy.run_path(str(Path(__file__).with_name("raw_voc.py"))))  # the fixture's maker
SHARED = SimpleNamespace(**runpy.run_path(str(Path(__file__).with_name("converters.py"))))
TRAIN, VAL, SBD, VOID = RAW.TRAIN, RAW.VAL, RAW.SBD, RAW.VOID
IMAGES = {**TRAIN, **VAL}
TINY = "an object whose box is smaller than 16 pixels"
MANY = "more than 10 objects"
VOC = Path("VOCdevkit") / "VOC2012"
DATASET = Path("benchmark_RELEASE") / "dataset"
raw, own = SHARED.miniature(RAW.write_folder), SHARED.own
root = SHARED.packed_or_not(RAW.write_tars)
prepare, encode_all = SHARED.commands(voc, lambda image: image.name.replace("_", ""))


def renumbered(mask):
    """Objects in their order, without gaps."""
    numbers = [number for number in np.unique(mask).tolist() if number not in (0, VOID)]
    expected = np.where(mask == VOID, VOID, 0)
    for new, number in enumerate(numbers, 1):
        expected[mask == number] = new
    return expected, len(numbers)


@pytest.mark.parametrize("size", [128, 47])
def test_samples_equal_a_plain_reference(raw, size):
    samples, rejected = encode_all(raw, "--no-filter", "--size", str(size))
    assert not rejected and list(samples) == list(IMAGES)
    for name, sample in samples.items():
        read = [Image.open(raw / VOC / f"Segmentation{kind}" / f"{name}.png") for kind in ("Class", "Object")]
        assert [image.mode for image in read] == ["P", "P"]
        classes, objects = (SHARED.crop_and_resize(np.asarray(image), size) for image in read)
        np.testing.assert_array_equal(sample["segmentation-class"][..., 0], classes)
        expected, count = renumbered(objects)
        np.testing.assert_array_equal(sample["segmentation-instance"][..., 0], expected)
        for field in ("segmentation-class", "segmentation-instance"):
            assert sample[field].dtype == np.uint8 and sample[field].shape == (size, size, 1)
        assert sample["instance_category"].tolist() == [classes[expected == n + 1][0] for n in range(count)]
        for number, (left, top, width, height) in enumerate(sample["instance_bbox"].astype(int).tolist(), 1):
            ys, xs = np.nonzero(expected == number)
            assert [left, top, width, height] == [xs.min(), ys.min(), np.ptp(xs) + 1, np.ptp(ys) + 1]
        assert sample["instance_bbox"].shape == (count, 4) and sample["instance_bbox"].dtype == np.float32
        with Image.open(raw / VOC / "JPEGImages" / f"{name}.jpg") as image:
            side, left, top = min(image.size), *((length - min(image.size)) // 2 for length in image.size)
            square = image.convert("RGB").crop((left, top, left + side, top + side))
            np.testing.assert_array_equal(sample["image"], square.resize((size, size), Image.BILINEAR))
    two_persons = samples["2007_000032"]
    assert two_persons["instance_category"].tolist() == [RAW.PERSON, RAW.PERSON, RAW.MONITOR]
    assert samples["2011_003276"]["instance_category"].tolist() == [RAW.BICYCLE]  # the cat is beside the square
    nothing = samples["2007_000063"]
    assert set(np.unique(nothing["segmentation-instance"])) == {0, VOID} and len(nothing["instance_bbox"]) == 0


def test_the_filter_and_its_readings(raw):
    assert encode_all(raw)[1] == {"2007_000033": MANY}
    assert encode_all(raw, "--count", "objects")[1] == {"2007_000033": MANY, "2007_000042": MANY}
    assert encode_all(raw, "--measure", "original")[1] == {"2007_000033": MANY, "2011_003271": TINY}
    assert encode_all(raw, "--size", "30")[1] == {"2007_000033": MANY, "2008_000002": TINY, "2011_003271": TINY}
    assert encode_all(raw, "--max-objects", "11")[1] == {}
    assert set(encode_all(raw, "--max-objects", "1")[1]) == {"2007_000032", "2007_000033", "2008_000002", "2011_003271"}
    outside = encode_all(raw, "--max-objects", "1", "--measure", "original", "--min-box-area", "1")[1]
    assert outside["2011_003276"] == "more than 1 objects"


@pytest.mark.parametrize("count", ["classes", "objects"])
def test_small_objects_that_are_left_out_become_void(raw, count):
    samples, rejected = encode_all(raw, "--measure", "original", "--small", "object", "--count", count)
    assert "2011_003271" not in rejected
    sample, whole = samples["2011_003271"], encode_all(raw, "--no-filter")[0]["2011_003271"]
    assert whole["instance_category"].tolist() == [RAW.CAT, RAW.MONITOR]
    assert sample["instance_category"].tolist() == [RAW.CAT] and len(sample["instance_bbox"]) == 1
    monitor = whole["segmentation-class"] == RAW.MONITOR
    for field in ("segmentation-class", "segmentation-instance"):
        np.testing.assert_array_equal(sample[field], np.where(monitor, VOID, whole[field]))


def test_trainaug_adds_sbd_without_what_voc_has(raw):
    conversion = prepare(raw, "--variant", "trainaug", "--no-filter")
    names = {split: [item.name for item in items] for split, items in conversion.splits.items()}
    assert names == {"train": [*TRAIN, "2008_000008", "2008_000015"], "val": list(VAL)}
    samples, rejected = encode_all(raw, "--variant", "trainaug", "--no-filter", "--size", "60")
    assert not rejected
    for name in ("2008_000008", "2008_000015"):
        classes, objects = (SHARED.crop_and_resize(mask, 60) for mask in RAW.masks(*SBD[name], outlined=False))
        np.testing.assert_array_equal(samples[name]["segmentation-class"][..., 0], classes)
        np.testing.assert_array_equal(samples[name]["segmentation-instance"][..., 0], objects)
    assert (samples["2007_000032"]["segmentation-class"] == VOID).any()  # VOC's own masks, with outlines


def test_images_of_sbd_serve_where_voc_lacks_them(own):
    (own / VOC / "JPEGImages" / "2008_000008.jpg").unlink()
    assert "2008_000008" in encode_all(own, "--variant", "trainaug")[0]
    (own / DATASET / "img" / "2008_000008.jpg").unlink()
    assert encode_all(own, "--variant", "trainaug")[1]["2008_000008"] == "missing image"


def test_voc_2007_may_be_there_too(own):
    shutil.copytree(own / VOC, own / "VOCdevkit" / "VOC2007")
    (own / "VOCdevkit" / "VOC2007" / "ImageSets" / "Segmentation" / "train.txt").write_text("000032\n")
    (own / "VOCtrainval_06-Nov-2007.tar").write_bytes(b"not looked into")
    assert list(encode_all(own, "--no-filter", "--size", "8")[0]) == list(IMAGES)


def test_tars_and_folders_give_the_same_bytes_in_both_formats(raw, tmp_path):
    RAW.write_tars(raw, tmp_path / "tars")
    outs = [tmp_path / "out" / name for name in ("folder", "tars", "workers")]
    for source, out, workers in zip((raw, *[tmp_path / "tars"] * 2), outs, "112"):
        for kind in ("webdataset", "lmdb"):
            options = ["--variant", "trainaug", "--size", "24", "--no-filter", "--workers", workers, "--format", kind]
            main(["convert", "voc", str(source), str(out), *options, "--name", kind])
            main(["convert", "voc", "nowhere", str(out), "--variant", "trainaug", "--name", kind, "--verify"])
    folder, tars, workers = map(SHARED.contents, outs)
    assert {"webdataset/val/shard-000002.tar", "lmdb/train.lmdb"} <= set(folder)
    assert folder == tars == workers


def test_a_killed_conversion_goes_on_to_the_same_bytes(raw, tmp_path):
    RAW.write_tars(raw, tmp_path / "tars")
    options = ["--size", "400", "--samples-per-shard", "1", "--workers", "1"]
    main(["convert", "voc", str(raw), str(tmp_path / "whole"), *options])
    killed = tmp_path / "killed"
    command = [sys.executable, "-m", "ocl_msf", "convert", "voc", str(tmp_path / "tars"), str(killed), *options]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    while not list(killed.rglob("shard-000001.tar")) and process.poll() is None:
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL and not list(killed.rglob("summary.json"))
    main(["convert", "voc", str(tmp_path / "tars"), str(killed), *options])
    left = {name: content for name, content in SHARED.contents(killed).items() if not name.endswith(".partial")}
    assert left == SHARED.contents(tmp_path / "whole")


def test_odd_samples_are_read_or_named(own):
    pixels = np.random.default_rng(0).integers(0, 256, (80, 60, 4), np.uint8)
    Image.fromarray(pixels, "CMYK").save(own / VOC / "JPEGImages" / "2007_000039.jpg")
    path = own / VOC / "JPEGImages" / "2007_000032.jpg"
    path.write_bytes(path.read_bytes()[:-300])
    (own / VOC / "SegmentationObject" / "2007_000063.png").unlink()
    colours = Image.open(own / VOC / "SegmentationClass" / "2011_003276.png").convert("RGB")
    colours.save(own / VOC / "SegmentationClass" / "2011_003276.png")
    Image.new("P", (80, 61)).save(own / VOC / "SegmentationObject" / "2007_000033.png")
    classes = RAW.masks(*VAL["2007_000042"])[0]
    classes[5, 20] = RAW.CAT
    RAW.write_mask(own / VOC / "SegmentationClass" / "2007_000042.png", classes)
    RAW.write_mask(own / VOC / "SegmentationClass" / "2011_003271.png", np.full((80, 60), 21, np.uint8))
    samples, rejected = encode_all(own)
    assert set(samples) == {"2007_000039", "2008_000002"}  # CMYK and greyscale
    assert rejected == {
        "2007_000032": "damaged image",
        "2007_000063": "missing object mask",
        "2011_003276": "class mask is neither a palette nor a grey image of 8 bits",
        "2007_000033": "object mask of another size",
        "2007_000042": "an object of several classes",
        "2011_003271": "class mask with a class that VOC does not have",
    }
    with pytest.raises(SystemExit, match=r"2007_000032: damaged image .*2007_000032\.jpg.*--strict"):
        main(["convert", "voc", str(own), str(own / "out"), "--strict", "--workers", "1"])


def test_masks_that_differ_are_made_one(own):
    """Background and void are where the classes say so, and a class without an object is void among objects."""
    name = "2007_000039"
    classes, objects = RAW.masks(*TRAIN[name])
    classes[30, 30], classes[31, 31], objects[32, 32], classes[2, 2] = 0, VOID, 0, VOID
    RAW.write_mask(own / VOC / "SegmentationClass" / f"{name}.png", classes)
    RAW.write_mask(own / VOC / "SegmentationObject" / f"{name}.png", objects)
    sample = encode_all(own, "--size", "60")[0][name]
    objects[30, 30], objects[31, 31], objects[32, 32], objects[2, 2] = 0, VOID, VOID, VOID
    np.testing.assert_array_equal(sample["segmentation-class"][..., 0], classes[10:70])
    np.testing.assert_array_equal(sample["segmentation-instance"][..., 0], objects[10:70])


def test_missing_parts_are_named(own):
    with pytest.raises(DataError, match="nowhere is no folder"):
        prepare(own / "nowhere")
    with pytest.raises(DataError, match=r"No files of a folder JPEGImages .*VOCtrainval_11-May-2012\.tar"):
        prepare(own / VOC / "SegmentationClass")
    path = own / VOC / "ImageSets" / "Segmentation" / "val.txt"
    path.write_text("000032\n")
    with pytest.raises(DataError, match=r"val\.txt has the line '000032', which is no id of VOC 2012"):
        prepare(own)
    path.unlink()
    with pytest.raises(DataError, match=r"The list Segmentation/val\.txt is missing"):
        prepare(own)
    path.write_text("")
    assert prepare(own, "--splits", "val").splits == {"val": []}
    shutil.rmtree(own / "benchmark_RELEASE")
    with pytest.raises(DataError, match=r"--variant trainaug needs SBD: put benchmark\.tgz"):
        prepare(own, "--variant", "trainaug")
    (own / "VOCtrainval-2012.tar").write_bytes(b"cut off")
    with pytest.raises(DataError, match=r"VOCtrainval-2012\.tar is no intact tar archive"):
        prepare(own)


def check(sample):
    """A sample of 8 x 8 pixels is one that the data modules and the host's transforms for VOC take."""
    classes, objects = (sample[f"segmentation-{kind}"] for kind in ("class", "instance"))
    shapes = [(array.shape, array.dtype.name) for array in (sample["image"], classes, objects)]
    assert shapes == [((8, 8, 3), "uint8"), ((8, 8, 1), "uint8"), ((8, 8, 1), "uint8")]
    assert set(np.unique(classes)) <= {*range(21), VOID}
    numbers = set(np.unique(objects)) - {0, VOID}
    assert numbers == set(range(1, len(sample["instance_category"]) + 1))
    for number, category in enumerate(sample["instance_category"], 1):
        assert set(classes[objects == number]) == {category} and category not in (0, VOID)
    assert sample["instance_bbox"].shape == (len(numbers), 4)


def test_damage_ends_in_a_valid_sample_or_a_named_rejection(root):
    """125 damaged inputs each; what is neither a sample, nor rejected, nor a DataError raises here."""
    folder, packed = root
    paths = sorted(path for path in folder.rglob("*") if path.suffix and path.stem not in VAL)
    options = ("--variant", "trainaug", "--splits", "train", "--size", "8", "--no-filter")
    encode = functools.partial(encode_all, folder, *options)
    outcomes = SHARED.damage_in_turn(paths, 125, encode, check, [""] * packed)
    assert outcomes["samples"] and outcomes["refused"] and (outcomes["rejected"] or packed), outcomes


SWAPS = [np.float64(3), np.zeros((60, 80, 2)), np.full((60, 80), 0.5), np.full((60, 80), -1), np.full((60, 80), 300)]
SWAPS += [np.full((60, 80), np.nan), "text", np.zeros((0, 0)), np.zeros((60, 80), complex), [[{"a": 1}, 2], [3, 4]]]


@pytest.mark.parametrize("folder, variable", [("cls", "GTcls"), ("inst", "GTinst")])
def test_swapped_types_in_sbd_end_in_a_named_rejection(own, folder, variable):
    path = own / DATASET / folder / "2008_000008.mat"
    whole = {name: value for name, value in loadmat(path).items() if not name.startswith("_")}
    contents = [{variable: {"Segmentation": value}} for value in SWAPS]
    contents += [{variable: value} for value in SWAPS] + [{"other": 1.0}, {variable: {"Boundaries": 1.0}}]
    for content in contents:
        savemat(path, content)
        rejected = encode_all(own, "--variant", "trainaug", "--size", "8", "--splits", "train", "--no-filter")[1]
        what = "class mask" if folder == "cls" else "object mask"
        assert rejected["2008_000008"] in (f"damaged {what}", f"{what} of another size")
    savemat(path, whole)
    assert not encode_all(own, "--variant", "trainaug", "--size", "8", "--no-filter")[1]


def test_the_summary_tells_the_options(raw, tmp_path):
    main(["convert", "voc", str(raw), str(tmp_path), "--workers", "1", "--count", "objects"])
    options = json.loads((tmp_path / "voc" / "summary.json").read_text())["options"]
    assert options["variant"] == "train" and options["size"] == 128
    expected = {"max_objects": 10, "min_box_area": 16.0, "small": "image", "count": "objects", "measure": "resized"}
    assert options["filter"] == expected
