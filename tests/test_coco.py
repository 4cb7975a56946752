import json
import pickle
import runpy
import zipfile
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from ocl_msf.data.convert import main
from ocl_msf.data.raw import coco
from ocl_msf.data.raw._coco_annotations import decode_counts, decode_runs, rasterize
from ocl_msf.data.raw._filter import ObjectFilter
from ocl_msf.data.raw._sources import Sources
from ocl_msf.data.workers import Rejected
from ocl_msf.files import DataError

RAW = SimpleNamespace(**runpy.run_path(str(Path(__file__).with_name("raw_coco.py"))))  # the fixture's maker
SHARED = SimpleNamespace(**runpy.run_path(str(Path(__file__).with_name("converters.py"))))
TRAIN, VAL = RAW.TRAIN, RAW.VAL
TINY = "an object whose box is smaller than 16 pixels"
raw, own = SHARED.miniature(RAW.write_folder), SHARED.own


def prepare(raw, *options):
    return SHARED.prepare(coco, raw, *options)


def encode_all(raw, *options):
    """(samples, reasons for what is left out), each {image id: ...}; arrays instead of files."""
    return SHARED.encode_all(prepare(raw, *options), lambda item: str(item.record.id), lambda item: item.record.id)


@pytest.mark.parametrize("size", [128, 47])
def test_samples_equal_a_plain_reference(raw, size):
    samples, rejected = encode_all(raw, "--no-filter", "--size", str(size))
    assert not rejected and set(samples) == set(TRAIN) | set(VAL)
    for number, (shape, segments) in {**TRAIN, **VAL}.items():
        sample, ids = samples[number], RAW.segment_ids(shape, segments)
        resized = SHARED.crop_and_resize(ids, size)
        left_over = [segment for segment in segments if (resized == segment).any()]
        expected = np.zeros((size, size), int)
        for position, segment in enumerate(left_over, 1):
            expected[resized == segment] = position
        np.testing.assert_array_equal(sample["segmentation"][..., 0], expected)
        assert sample["segmentation"].dtype == np.uint8 and sample["segmentation"].shape == (size, size, 1)
        assert sample["segment_category"].tolist() == [segments[s][0] for s in left_over]
        assert sample["segment_isthing"].tolist() == [segments[s][0] in (RAW.PERSON, RAW.BALL) for s in left_over]
        assert sample["segment_iscrowd"].tolist() == [segments[s][1] for s in left_over]
        assert sample["segment_area"].tolist() == [(ids == s).sum() for s in left_over]
        path = next(raw.glob(f"*2017/{number:012d}.jpg"))
        with Image.open(path) as image:
            height, width = shape
            side, left, top = min(shape), (width - min(shape)) // 2, (height - min(shape)) // 2
            square = image.convert("RGB").crop((left, top, left + side, top + side))
            np.testing.assert_array_equal(sample["image"], square.resize((size, size), Image.BILINEAR))
    assert samples[285]["segment_category"].tolist() == [RAW.BALL]  # the person is beside the square
    assert samples[142238]["segment_iscrowd"].tolist() == [0, 0, 1, 0]
    assert (samples[142238]["segmentation"][:, -1] != 0).all()  # the void strip is beside the square
    assert not samples[34]["segmentation"].any() and samples[34]["segment_area"].shape == (0,)


def test_the_filter_and_its_readings(raw):
    """The 4 x 4 object is on the limit in the original; resizing by 128 / 60 makes both small ones larger."""
    assert encode_all(raw)[1] == {25: "more than 10 objects"}
    assert encode_all(raw, "--measure", "original")[1] == {25: "more than 10 objects", 139: TINY}
    assert encode_all(raw, "--size", "30")[1] == {25: "more than 10 objects", 30: TINY, 139: TINY}
    assert encode_all(raw, "--max-objects", "11")[1] == {}
    many = encode_all(raw, "--max-objects", "1")[1]
    assert set(many) == {142238, 9, 25, 30, 139}
    things = encode_all(raw, "--max-objects", "1", "--count", "things")[1]
    assert set(things) == {142238, 25}
    assert set(encode_all(raw, "--max-objects", "1", "--measure", "original")[1]) == {*many, 285}


def test_small_objects_can_be_left_out_instead(raw):
    samples, rejected = encode_all(raw, "--measure", "original", "--small", "object")
    assert rejected == {25: "more than 10 objects"}
    assert samples[139]["segment_category"].tolist() == [RAW.GRASS]
    whole = encode_all(raw, "--no-filter")[0][139]["segmentation"]
    assert set(np.unique(whole)) == {0, 1, 2}
    np.testing.assert_array_equal(samples[139]["segmentation"], np.where(whole == 2, 0, whole))


def test_small_objects_do_not_count_when_they_are_left_out():
    areas = np.array([15.0, 16, 17, 3])
    assert ObjectFilter(2, 16, "object")("image", areas).tolist() == [False, True, True, False]
    with pytest.raises(Rejected, match=r"image: more than 1 objects \(2 objects\)"):
        ObjectFilter(1, 16, "object")("image", areas)
    with pytest.raises(Rejected, match=r"smaller than 16 pixels \(3 pixels\)"):
        ObjectFilter(9, 16, "image")("image", areas)
    assert ObjectFilter(9, 16, "image")("image", np.zeros(0)).shape == (0,)


def test_instances_keep_what_the_crop_leaves(raw):
    """Sizes of 60 and 120 keep the pixels, so masks are the boxes that the fixture draws."""
    samples, _ = encode_all(raw, "--no-filter", "--size", "60")
    sample = samples[142238]  # 60 x 80: the square starts at 10; crowd first, as in the file
    crowd, ball = sample["instance_mask"][..., 0]
    expected = SHARED.crop_and_resize((RAW.segment_ids(*TRAIN[142238]) == 131079).astype(np.uint8), 60)
    np.testing.assert_array_equal(crowd, expected)
    assert ball[10:22, 40:50].all() and ball[40:50, 2:8].sum() in range(25, 36)
    assert ball.sum() == ball[10:22, 40:50].sum() + ball[40:50, 2:8].sum()
    assert sample["instance_bbox"].tolist() == [[10, 20, 20, 20], [2, 10, 48, 40]]
    assert sample["instance_category"].tolist() == [RAW.PERSON, RAW.BALL]
    assert sample["instance_area"].tolist() == [400, 150]
    assert len(samples[25]["instance_mask"]) == 1 and "instance_mask" not in samples[9]
    sample = encode_all(raw, "--no-filter", "--size", "120", "--splits", "val")[0][632]
    assert sample["instance_area"].tolist() == [9217, 1025, 1023]
    assert sample["instance_mask"].sum(axis=(1, 2, 3)).tolist() == [97 * 95, 1025, 1023]
    assert sample["instance_mask"].dtype == np.uint8 and sample["instance_bbox"].dtype == np.float32
    halved = encode_all(raw, "--no-filter", "--size", "60", "--splits", "val")[0][632]
    np.testing.assert_array_equal(halved["instance_bbox"] * 2, sample["instance_bbox"])


def test_run_lengths_of_known_answer():
    mask = np.zeros((4, 5), np.uint8)
    mask[1:3, 1:4] = 1
    counts = [5, 2, 2, 2, 2, 2, 5]
    np.testing.assert_array_equal(decode_runs(counts, 4, 5), mask)
    assert RAW.run_lengths(mask) == counts
    assert decode_counts("5220003") == counts
    for runs in (counts, [0, 20], [1, 3000, 40, 2, 70000, 1, 1]):
        assert decode_counts(RAW.compress(runs)) == runs
    text = {"size": [4, 5], "counts": RAW.compress(RAW.run_lengths(mask))}
    np.testing.assert_array_equal(rasterize(text, 4, 5), mask)


def test_polygons_own_the_pixels_whose_centres_they_hold():
    rng = np.random.default_rng(0)
    ys, xs = np.mgrid[:40, :50] + 0.5
    for _ in range(20):
        corners = rng.uniform((0, 0), (50, 40), (3, 2))
        sides = []
        for (x0, y0), (x1, y1) in zip(corners, np.roll(corners, -1, axis=0)):
            distance = ((x1 - x0) * (ys - y0) - (y1 - y0) * (xs - x0)) / np.hypot(x1 - x0, y1 - y0)
            sides.append(distance)
        signed = np.stack(sides)
        inside = (signed > 0).all(axis=0) | (signed < 0).all(axis=0)
        clear = np.abs(signed).min(axis=0) > 0.3  # drawn on a grid of fifths of a pixel
        mask = rasterize([corners.ravel().tolist()], 40, 50)
        np.testing.assert_array_equal(mask[clear], inside[clear])
    for nothing in ([], [[]], [[1, 1, 2, 2]], [[60, 1, 70, 1, 70, 9]], [[-9, -9, -5, -9, -5, -5]]):
        assert rasterize(nothing, 40, 50).sum() == 0
    assert rasterize([[-9, -9, 99, -9, 99, 99, -9, 99]], 40, 50).all()


@pytest.mark.parametrize("inner", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_zips_and_folders_give_the_same_bytes(raw, tmp_path, inner):
    RAW.write_zips(raw, tmp_path / "zips", inner)
    outs = [tmp_path / "out" / name for name in ("folder", "zips", "workers")]
    for source, out, workers in zip((raw, *[tmp_path / "zips"] * 2), outs, "112"):
        main(["coco", str(source), str(out), "--no-filter", "--size", "24", "--workers", workers])
    folder, zips, workers = map(SHARED.contents, outs)
    assert "coco_panoptic/train/shard-000000.tar" in folder
    assert folder == zips == workers


def test_archives_are_found_by_every_process_anew(raw, tmp_path):
    RAW.write_zips(raw, tmp_path / "zips")
    sources = Sources(tmp_path / "zips", ["panoptic_val2017", "val2017"], ["panoptic_val2017.json"])
    assert sources.count("val2017") == sources.count("panoptic_val2017") == 3  # without ._ files
    source = pickle.loads(pickle.dumps(sources.find("panoptic_val2017/000000000139.png")))
    assert len(source.member) == 2
    assert source.read() == (raw / "panoptic_val2017" / "000000000139.png").read_bytes()
    assert sources.find("panoptic_val2017.json").member == ("annotations/panoptic_val2017.json",)
    assert sources.find("val2017/1.jpg") is None


def test_odd_images_are_read_or_named(own):
    pixels = np.random.default_rng(0).integers(0, 256, (80, 60, 4), np.uint8)
    Image.fromarray(pixels, "CMYK").save(own / "train2017" / "000000000009.jpg")
    (own / "panoptic_train2017" / "000000000030.png").unlink()
    (own / "train2017" / "000000142238.jpg").unlink()
    Image.new("RGB", (60, 81)).save(own / "panoptic_val2017" / "000000000139.png")
    Image.new("RGB", (120, 120)).save(own / "panoptic_val2017" / "000000000632.png")
    Image.new("P", (80, 60)).save(own / "panoptic_val2017" / "000000000285.png")
    (own / "panoptic_train2017" / "000000000034.png").unlink()  # it has no segments and needs none
    samples, rejected = encode_all(own)
    assert samples[9]["image"].shape == (128, 128, 3) and 34 in samples
    assert rejected == {
        25: "more than 10 objects",
        30: "missing panoptic PNG",
        139: "panoptic PNG of another size",
        285: "panoptic PNG is not RGB",
        632: "panoptic PNG and its annotation name different segments",
        142238: "missing image",
    }


def test_missing_parts_are_named(own, tmp_path):
    with pytest.raises(DataError, match="nowhere is no folder"):
        prepare(own / "nowhere")
    with pytest.raises(DataError, match=r"No panoptic_train2017\.json or .* panoptic_annotations_trainval2017\.zip"):
        prepare(own / "train2017")
    (own / "annotations" / "panoptic_val2017.json").unlink()
    assert list(prepare(own).splits) == ["train"]
    with pytest.raises(DataError, match=r"panoptic_val2017\.json is missing"):
        prepare(own, "--splits", "val")
    (own / "train2017").rename(tmp_path / "elsewhere")
    with pytest.raises(DataError, match=r"No files of a folder train2017.* Download train2017\.zip"):
        prepare(own)


def test_damaged_json_and_archives_are_named(own):
    path = own / "annotations" / "instances_val2017.json"
    path.write_text(path.read_text()[:-10])
    with pytest.raises(DataError, match=r"instances_val2017\.json is damaged"):
        prepare(own)
    path.write_text(json.dumps({"images": []}))
    with pytest.raises(DataError, match=r"instances_val2017\.json has not the structure .*'annotations'"):
        prepare(own)
    path.unlink()
    (own / "val2017.zip").write_bytes(b"PK\3\4 cut off")
    with pytest.raises(DataError, match=r"val2017\.zip is no intact zip archive"):
        prepare(own)


@pytest.mark.parametrize("packed", [False, True])
def test_damage_ends_in_a_named_rejection(raw, own, tmp_path, packed):
    """150 damaged inputs each; what is neither a sample, nor rejected, nor a DataError raises here."""
    root = own
    if packed:
        root = tmp_path / "zips"
        RAW.write_zips(raw, root)
    paths = sorted(path for path in root.rglob("*") if path.is_file() and "train" in path.name + path.parent.name)

    def encode(path):
        return encode_all(root, "--splits", "train", "--size", "8", "--no-filter")[1]

    outcomes = SHARED.damage_in_turn(paths, 150, encode, lambda path, message: packed or path.name in message)
    assert outcomes["rejected"] and outcomes["refused"], outcomes


def test_swapped_types_in_json_end_in_a_named_rejection(own):
    """Every value of the annotations of the validation images, replaced by those of other types in turn."""
    outcomes = set()
    for kind in ("panoptic", "instances"):
        path = own / "annotations" / f"{kind}_val2017.json"
        whole = json.loads(path.read_text())
        for n, (container, key) in enumerate(list(places(whole))):
            kept = container[key]
            for value in [None, "x", -1, 1e300, [], {}, True, 10**30][n % 3 :: 3]:
                container[key] = value
                path.write_text(json.dumps(whole))
                try:
                    outcomes.update(encode_all(own, "--splits", "val", "--size", "8")[1].values())
                except DataError as error:
                    assert path.name in str(error)
                    outcomes.add("refused")
            container[key] = kept
        path.write_text(json.dumps(whole))
    assert {"refused", "missing panoptic PNG", "damaged instance"} <= outcomes, outcomes


def places(value):
    if isinstance(value, (dict, list)):
        for key in value if isinstance(value, dict) else range(len(value)):
            yield value, key
            yield from places(value[key])
