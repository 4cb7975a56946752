import array
import functools
import json
import pickle
import runpy
import zipfile
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as mask_api
from pycocotools.coco import COCO

from ocl_msf.cli import main
from ocl_msf.data.raw import coco
from ocl_msf.data.raw._coco_annotations import decode_counts, rasterize
from ocl_msf.data.raw._sources import Sources
from ocl_msf.data.raw.filter import ObjectFilter
from ocl_msf.data.workers import Rejected
from ocl_msf.files import DataError

RAW = SimpleNamespace(**runpy.run_path(str(Path(__file__).with_name("raw_coco.py"))))  # the fixture's maker
SHARED = SimpleNamespace(**runpy.run_path(str(Path(__file__).with_name("converters.py"))))
TRAIN, VAL = RAW.TRAIN, RAW.VAL
TINY = "an object whose box is smaller than 16 pixels"
raw, own = SHARED.miniature(RAW.write_folder), SHARED.own
root = SHARED.packed_or_not(RAW.write_zips)
prepare, encode_all = SHARED.commands(coco, lambda image: str(image.annotations.id), lambda image: image.annotations.id)


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
    assert sample["instance_iscrowd"].tolist() == [1, 0]
    assert sample["instance_area"].tolist() == [400, 150]
    assert len(samples[25]["instance_mask"]) == 1 and "instance_mask" not in samples[9]
    sample = encode_all(raw, "--no-filter", "--size", "120", "--splits", "val")[0][632]
    assert sample["instance_area"].tolist() == [9217, 1025, 1023]
    assert sample["instance_mask"].sum(axis=(1, 2, 3)).tolist() == [97 * 95, 1025, 1023]
    assert sample["instance_mask"].dtype == np.uint8 and sample["instance_bbox"].dtype == np.float32
    halved = encode_all(raw, "--no-filter", "--size", "60", "--splits", "val")[0][632]
    np.testing.assert_array_equal(halved["instance_bbox"] * 2, sample["instance_bbox"])


def reference_mask(segmentation, height, width):
    """What the official API makes of a segmentation, as in its `annToMask`."""
    if isinstance(segmentation, list):
        return mask_api.decode(mask_api.merge(mask_api.frPyObjects(segmentation, height, width)))
    if isinstance(segmentation["counts"], list):
        segmentation = mask_api.frPyObjects(segmentation, height, width)
    return mask_api.decode(segmentation)


def random_polygon(rng, low, high):
    return rng.uniform(low, high, (rng.integers(3, 12), 2)).round(int(rng.integers(0, 3))).ravel().tolist()


def test_polygons_are_drawn_as_by_the_official_api():
    rng = np.random.default_rng(0)
    height, width = 40, 50
    for low, high in [((0, 0), (width, height)), ((-20, -20), (80, 70)), ((10, 10), (13, 14))]:
        for parts in rng.integers(1, 4, 200):
            polygons = [random_polygon(rng, low, high) for _ in range(parts)]
            expected = reference_mask(polygons, height, width)
            np.testing.assert_array_equal(rasterize(polygons, height, width), expected)
            packed = [array.array("d", polygon) for polygon in polygons]  # as annotations are kept in memory
            np.testing.assert_array_equal(rasterize(packed, height, width), expected)
    for x, side in rng.uniform((0, 1), (10, 30), (50, 2)):
        square = [[x, x, x + side, x, x + side, x + side, x, x + side]]
        np.testing.assert_array_equal(rasterize(square, height, width), reference_mask(square, height, width))
    hole = [[5, 5, 35, 5, 35, 35, 5, 35, 5, 5, 15, 15, 15, 25, 25, 25, 25, 15, 15, 15]]
    mask = rasterize(hole, height, width)
    np.testing.assert_array_equal(mask, reference_mask(hole, height, width))
    assert mask[10, 10] and not mask[20, 20]
    for nothing in ([], [[]], [[1, 1, 2, 2]], [[60, 1, 70, 1, 70, 9]], [[-9, -9, -5, -9, -5, -5]]):
        assert rasterize(nothing, height, width).sum() == 0
    assert rasterize([[-9, -9, 99, -9, 99, 99, -9, 99]], height, width).all()


@pytest.mark.parametrize("side, pixels", [(2.9, 4), (1.84, 1), (4.9, 16), (19.8, 361)])
def test_squares_have_the_official_number_of_pixels(side, pixels):
    """Which leaves out the outline on the right and below, where the corners are halves."""
    low, high = 10.5, 10.5 + side
    square = [[low, low, high, low, high, high, low, high]]
    assert rasterize(square, 64, 64).sum() == reference_mask(square, 64, 64).sum() == pixels


def test_instances_are_those_of_the_official_api(own):
    """Polygons of one part and of several, with holes and over the border, and both forms of run lengths."""
    rng = np.random.default_rng(0)
    path = own / "annotations" / "instances_val2017.json"
    content = json.loads(path.read_text())
    places = [((0, 0), (120, 120)), ((-60, -60), (180, 180)), ((50, 50), (53, 54))]
    shapes = [[random_polygon(rng, *places[i % 3]) for _ in range(i % 4 + 1)] for i in range(60)]
    shapes += [[[5, 5, 95, 5, 95, 95, 5, 95, 5, 5, 15, 15, 15, 55.5, 55.5, 55.5, 55.5, 15, 15, 15]]]
    for mask in [rng.random((120, 120)) < share for share in (0.02, 0.5, 1)]:
        packed = mask_api.encode(np.asfortranarray(mask.astype(np.uint8)))
        shapes.append({"size": [120, 120], "counts": packed["counts"].decode()})
        shapes.append({"size": [120, 120], "counts": decode_counts(packed["counts"].decode())})
    template = next(entry for entry in content["annotations"] if entry["image_id"] == 632)
    content["annotations"] = [{**template, "id": i, "segmentation": shape} for i, shape in enumerate(shapes, 1)]
    path.write_text(json.dumps(content))
    official = COCO(path)
    expected = [mask for mask in map(official.annToMask, official.loadAnns(official.getAnnIds())) if mask.any()]
    sample = encode_all(own, "--no-filter", "--size", "120", "--splits", "val")[0][632]
    np.testing.assert_array_equal(sample["instance_mask"][..., 0], expected)
    assert len(expected) > 50


def test_run_lengths_are_drawn_as_by_the_official_api():
    rng = np.random.default_rng(0)
    masks = [rng.random((40, 50)) < share for share in (0, 0.02, 0.5, 0.98, 1)]
    masks += [rasterize([random_polygon(rng, (0, 0), (50, 40))], 40, 50) for _ in range(50)]
    masks += [rng.random((1500, 1)) < 0.001]  # run lengths of several digits
    for mask in masks:
        packed = mask_api.encode(np.asfortranarray(mask.astype(np.uint8)))
        text = {"size": packed["size"], "counts": packed["counts"].decode()}
        edges = np.flatnonzero(np.diff(mask.T.ravel().astype(int), prepend=0, append=2))
        runs = {"size": packed["size"], "counts": np.diff(edges, prepend=0).tolist()}
        assert decode_counts(text["counts"]) == runs["counts"]
        for segmentation in (text, runs):
            np.testing.assert_array_equal(rasterize(segmentation, *mask.shape), mask)
            np.testing.assert_array_equal(reference_mask(segmentation, *mask.shape), mask)


COUNTS = [[20, -1, 1], [19], [21], [10, True, 2**70], [4.0, 16], [[20]], ["20"], {"20": 0}, None, 20, True]
TEXTS = ["", "d", "P", "0P", "d0P", " ", "\x00", "d0\x00", "é", "~~", "o" * 99, "O", "o" * 12 + "0", "d0" * 9]
POLYGONS = [None, "text", 3, {}, [None], ["text"], [3], [[None] * 6], [[1, 2, 3, 4, 5]], [[[1, 2], [3, 4], [5, 6]]]]
POLYGONS += [[[1, 1, 9, 1, 9, value]] for value in (np.nan, np.inf, -np.inf, 1e300, -1e300, 2**40, 101, "x", [], {})]


@pytest.mark.parametrize("segmentation", [*POLYGONS, *({"size": [4, 5], "counts": c} for c in [*COUNTS, *TEXTS])])
def test_malformed_segmentations_are_refused(segmentation):
    """Before the C code of pycocotools sees them, which reads and writes where such ones lead it."""
    with pytest.raises((TypeError, ValueError, KeyError, OverflowError)):
        rasterize(segmentation, 4, 5) if isinstance(segmentation, dict) else rasterize(segmentation, 40, 50)


def test_random_strings_are_run_lengths_or_refused():
    rng = np.random.default_rng(0)
    sizes = set()
    for _ in range(3000):
        text = "".join(chr(code) for code in rng.integers(44, 116, rng.integers(0, 6)))
        try:
            sizes.add(rasterize({"size": [4, 5], "counts": text}, 4, 5).shape)
        except ValueError:
            continue
    assert sizes == {(4, 5)}


@pytest.mark.parametrize("inner", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_zips_and_folders_give_the_same_bytes(raw, tmp_path, inner):
    RAW.write_zips(raw, tmp_path / "zips", inner)
    outs = [tmp_path / "out" / name for name in ("folder", "zips", "workers")]
    for source, out, workers in zip((raw, *[tmp_path / "zips"] * 2), outs, "112"):
        main(["convert", "coco", str(source), str(out), "--no-filter", "--size", "24", "--workers", workers])
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


def test_damage_ends_in_a_named_rejection(root):
    """150 damaged inputs each; what is neither a sample, nor rejected, nor a DataError raises here."""
    folder, packed = root
    paths = sorted(path for path in folder.rglob("*") if path.is_file() and "train" in path.name + path.parent.name)
    encode = functools.partial(encode_all, folder, "--splits", "train", "--size", "8", "--no-filter")
    outcomes = SHARED.damage_in_turn(paths, 150, encode, names=[""] * packed)
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
