import functools
import runpy
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from ocl_msf.cli import main
from ocl_msf.data.raw import openimages
from ocl_msf.data.workers import Filtered
from ocl_msf.files import DataError

RAW = SimpleNamespace(**runpy.run_path(str(Path(__file__).with_name("raw_openimages.py"))))  # the fixture's maker
SHARED = SimpleNamespace(**runpy.run_path(str(Path(__file__).with_name("converters.py"))))
TRAIN, VAL = RAW.TRAIN, RAW.VAL
FACES, CHAIR, BOXES_ONLY, ELEVEN, TINY, ODD, OTHER = TRAIN
TINY_BOX = "an object whose box is smaller than 16 pixels"
raw, own = SHARED.miniature(RAW.write_folder), SHARED.own
root = SHARED.packed_or_not(RAW.write_zips)
prepare, encode_all = SHARED.commands(openimages, lambda image: str(int(image.name, 16)))


@pytest.fixture
def subset(tmp_path):
    (tmp_path / "subset.txt").write_text("\n".join(RAW.SUBSET))
    return str(tmp_path / "subset.txt")


def nearest(pixels, width, height):
    """The pixels under the centres of the new ones."""
    rows, columns = (
        np.floor((np.arange(new) + 0.5) * old / new).astype(int) for new, old in zip((height, width), pixels.shape)
    )
    return pixels[np.ix_(rows, columns)]


def pillow(pixels, width, height):
    return np.asarray(Image.fromarray(pixels).convert("L").resize((width, height), Image.NEAREST)) > 0


def expected_numbers(raw, image, size, resize):
    """Each mask is resized to its image, cropped and resized; the smaller shares of an image go on top."""
    path = next(raw.glob(f"*/{image}.jpg"))
    folder = raw / f"{path.parent.name}-masks-{image[0]}"
    names = [RAW.mask_name(image, n) for n in range(len({**TRAIN, **VAL}[image][1]))]
    masks = [np.asarray(Image.open(folder / name)) for name in names]
    width, height = Image.open(path).size
    side, left, top = min(width, height), (width - min(width, height)) // 2, (height - min(width, height)) // 2
    numbers = np.zeros((size, size), int)
    for number in sorted(range(len(masks)), key=lambda n: -masks[n].mean()):
        square = resize(masks[number], width, height)[top : top + side, left : left + side]
        numbers[resize(square, size, size)] = number + 1
    return numbers


@pytest.mark.parametrize("size, resize", [(128, nearest), (128, pillow), (256, pillow), (47, nearest)])
def test_samples_equal_a_plain_reference(raw, size, resize):
    samples, rejected = encode_all(raw, "--no-filter", "--size", str(size))
    assert not rejected and set(samples) == {*TRAIN, *VAL} - {BOXES_ONLY}
    for image, sample in samples.items():
        numbers = expected_numbers(raw, image, size, resize)
        left_over = [number for number in np.unique(numbers) if number]
        assert sample["segmentation"].dtype == np.uint8
        np.testing.assert_array_equal(np.array([0, *left_over])[sample["segmentation"][..., 0]], numbers)
        (height, width), objects = {**TRAIN, **VAL}[image]
        labels = [list(RAW.CLASSES).index(objects[number - 1][0]) + 1 for number in left_over]
        assert sample["segment_category"].dtype == np.uint16 and sample["segment_category"].tolist() == labels
        areas = [RAW.draw((height, width), *objects[number - 1][1:]).mean() for number in left_over]
        np.testing.assert_allclose(sample["segment_area"], np.array(areas) * height * width, rtol=1e-6)
        side, left, top = min(width, height), (width - min(width, height)) // 2, (height - min(width, height)) // 2
        with Image.open(next(raw.glob(f"*/{image}.jpg"))) as picture:
            square = picture.convert("RGB").crop((left, top, left + side, top + side))
            np.testing.assert_array_equal(sample["image"], square.resize((size, size), Image.BILINEAR))
    assert samples[FACES]["segment_category"].tolist() == [2, 3, 4]  # the tortoise is beside the square


def test_the_smaller_object_is_on_top_whatever_the_order_of_the_lines(raw, own):
    path = own / "train-annotations-object-segmentation.csv"
    header, *lines = path.read_text().splitlines()
    path.write_text("\n".join([header, *lines[::-1]]))
    ours, theirs = (encode_all(root, "--no-filter", "--splits", "train")[0][FACES] for root in (raw, own))
    by_category = [np.array([0, *sample["segment_category"]])[sample["segmentation"]] for sample in (ours, theirs)]
    np.testing.assert_array_equal(*by_category)
    assert theirs["segment_category"].tolist() == ours["segment_category"].tolist()[::-1]
    ear = np.asarray(Image.open(raw / "train-masks-0" / RAW.mask_name(FACES, 0)).resize((128, 96), 0))[:, 16:112]
    sample = encode_all(raw, "--no-filter", "--size", "96", "--splits", "train")[0][FACES]
    assert (sample["segmentation"][..., 0][ear] == 1).mean() > 0.5


def test_the_filter_and_its_readings(raw):
    """The object of 3 x 3 pixels in the original is one of 4 x 4 or more when 96 become 128 or 256."""
    assert encode_all(raw)[1] == encode_all(raw, "--size", "128")[1] == {ELEVEN: "more than 10 objects"}
    assert encode_all(raw, "--max-objects", "11")[1] == {}
    assert encode_all(raw, "--max-objects", "11", "--size", "96")[1] == {TINY: TINY_BOX}
    assert encode_all(raw, "--max-objects", "11", "--measure", "original")[1] == {TINY: TINY_BOX}
    assert set(encode_all(raw, "--max-objects", "3")[1]) == {ELEVEN}
    assert set(encode_all(raw, "--max-objects", "3", "--measure", "original")[1]) == {ELEVEN, FACES, TINY}
    samples, rejected = encode_all(raw, "--measure", "original", "--small", "object")
    assert set(rejected) == {ELEVEN} and samples[TINY]["segment_category"].tolist() == [3]
    whole = encode_all(raw, "--no-filter")[0][TINY]["segmentation"]
    np.testing.assert_array_equal(samples[TINY]["segmentation"], np.where(whole == 1, 1, 0))


def test_boxes_are_those_that_the_crop_leaves(raw, tmp_path):
    sample = encode_all(raw, "--no-filter", "--size", "48")[0][FACES]  # 96 x 128: the square starts at 16
    man, group = (0.25 * 128 - 16, 0.125 * 96, 64, 84), (0, 48, 0.95 * 128 - 16, 24)
    np.testing.assert_allclose(sample["bbox"][[1, 3]], np.array([man, (0, 48, 96, 24)]) / 2, rtol=1e-5)
    assert sample["bbox_category"].tolist() == [2, 3, 4, 3] and sample["bbox_isgroup"].tolist() == [0, 0, 0, 1]
    assert group[2] > 96 and sample["bbox"].dtype == np.float32
    RAW.write_folder(tmp_path / "without", with_boxes=False)
    samples, _ = encode_all(tmp_path / "without", "--no-filter")
    assert not [field for sample in samples.values() for field in sample if field.startswith("bbox")]


def test_a_subset_is_converted_and_its_images_without_masks_are_named(raw, subset):
    samples, rejected = encode_all(raw, "--no-filter", "--ids", subset)
    assert OTHER not in samples and set(samples) == {*TRAIN, *VAL} - {OTHER, BOXES_ONLY}
    assert rejected == {BOXES_ONLY: "no masks"}
    options = prepare(raw, "--ids", subset).options
    assert options["size"] == 256  # from which the experiments make 128
    assert options["ids"]["number"] == len(RAW.SUBSET) and options["boxes"] == ["train", "val"]


@pytest.mark.parametrize("line", ["{}", "train/{}", "{},train,https://example.org/{}.jpg,0.0"])
def test_ids_are_read_from_the_lists_that_there_are(raw, tmp_path, line):
    path = tmp_path / "ids"
    path.write_text("ImageID,Subset,OriginalURL,Rotation\r\n" * ("," in line) + line.replace("{}", CHAIR) + "\r\n\r\n")
    assert set(encode_all(raw, "--splits", "train", "--ids", str(path))[0]) == {CHAIR}


def test_odd_ids_are_named(raw, tmp_path):
    np.save(tmp_path / "ids.npy", {CHAIR: ["/m/04yx4"]}, allow_pickle=True)
    with pytest.raises(DataError, match=r"ids\.npy, line 1, is no image id .* pickled \.npy file cannot be read"):
        prepare(raw, "--ids", str(tmp_path / "ids.npy"))
    (tmp_path / "empty").write_text("\n")
    with pytest.raises(DataError, match="empty is empty"):
        prepare(raw, "--ids", str(tmp_path / "empty"))
    with pytest.raises(DataError, match="nowhere cannot be read: No such file"):
        prepare(raw, "--ids", str(tmp_path / "nowhere"))
    (tmp_path / "others").write_text("0" * 16)
    with pytest.raises(DataError, match=r"has no masks of the images in --ids"):
        prepare(raw, "--ids", str(tmp_path / "others"))


def test_odd_files_are_read_or_named(own):
    masks = own / "train-masks-a"
    (own / "train" / f"{CHAIR}.jpg").unlink()
    (own / "train-masks-0" / RAW.mask_name(FACES, 1)).unlink()
    Image.new("RGB", (128, 96)).save(masks / RAW.mask_name(TINY, 0))
    odd = masks / RAW.mask_name(ODD, 0)
    whole = encode_all(own, "--no-filter")[0][ODD]["segmentation"]
    pixels = np.asarray(Image.open(odd))
    for grey in (Image.fromarray(pixels.astype(np.uint8)), Image.fromarray(pixels.astype(np.uint16) * 65535)):
        grey.save(odd)
        np.testing.assert_array_equal(encode_all(own, "--no-filter")[0][ODD]["segmentation"], whole)
    Image.new("1", (96, 128)).save(own / "validation-masks-1" / RAW.mask_name(list(VAL)[0], 0))
    Image.new("1", (120, 120)).save(own / "validation-masks-a" / RAW.mask_name(list(VAL)[1], 0))
    samples, rejected = encode_all(own, "--no-filter")
    assert rejected == {
        CHAIR: "missing image",
        FACES: "missing mask",
        TINY: "mask is not greyscale",
        list(VAL)[0]: "mask of another shape than its image",
    }
    assert samples[list(VAL)[1]]["segment_category"].tolist() == [5]  # the first mask is empty


@pytest.mark.parametrize(
    "old, new, problem",
    [
        (",0.25,0.75,0.25,0.75,", ",0.75,0.25,0.25,0.75,", "is no box in an image"),
        (",0.25,0.75,0.25,0.75,", ",nan,0.75,0.25,0.75,", "is no box in an image"),
        (",0.25,0.75,0.25,0.75,", ",0.25,0.75,x,0.75,", "could not convert"),
        (",0.85000,", ",", "has 9 values instead of 10"),
        (",/m/0dzct,", ",/m/0,", "is not among the class descriptions"),
        ("a200000000000005_m", "../a200000000000005_m", "is no mask file of this image"),
    ],
)
def test_broken_lines_reject_their_image(own, old, new, problem):
    path = own / "train-annotations-object-segmentation.csv"
    lines = path.read_text().splitlines()
    (number,) = [i for i, line in enumerate(lines) if line.startswith(ODD)]
    assert old in lines[number]
    lines[number] = lines[number].replace(old, new)
    path.write_text("\n".join(lines))
    images = prepare(own, "--splits", "train").splits["train"]
    assert [problem in image.annotations.problem for image in images if image.annotations.problem] == [True]
    assert encode_all(own, "--no-filter", "--splits", "train")[1] == {ODD: "damaged annotation"}


def test_a_line_without_an_image_is_named_by_its_number(own):
    path = own / "train-annotations-object-segmentation.csv"
    path.write_text(path.read_text() + "\n\x00garbage\n,,,\n")
    name, end = path.name, len(path.read_text().splitlines())
    expected = {f"{name} line {end - 1}": "damaged annotation", f"{name} line {end}": "damaged annotation"}
    assert encode_all(own, "--no-filter", "--splits", "train")[1] == expected


def test_strict_stops_at_damage_and_not_at_the_filter(own, tmp_path, subset):
    command = ["convert", "openimages", str(own), str(tmp_path / "out"), "--ids", subset, "--workers", "1", "--strict"]
    main(command)
    (own / "train" / f"{CHAIR}.jpg").write_bytes(b"no image")
    with pytest.raises(SystemExit, match=rf"{CHAIR}: damaged image .* without --strict"):
        main([*command, "--overwrite"])


def test_missing_parts_are_named(own, tmp_path):
    with pytest.raises(DataError, match="nowhere is no folder"):
        prepare(own / "nowhere")
    with pytest.raises(DataError, match=r"No train-annotations-object-segmentation\.csv in .* Download"):
        prepare(own / "train")
    with pytest.raises(DataError, match=r"test-annotations-object-segmentation\.csv is missing.* other --splits"):
        prepare(own, "--splits", "test")
    shutil.rmtree(own / "validation")
    with pytest.raises(DataError, match=r"None of the images of val is in .*<id>\.jpg"):
        prepare(own)
    for letter in "01af":
        shutil.rmtree(own / f"train-masks-{letter}")
    with pytest.raises(DataError, match=r"None of the masks of train .* train-masks-0\.zip to train-masks-f\.zip"):
        prepare(own, "--splits", "train")
    table = own / "oidv6-train-annotations-bbox.csv"
    table.write_text(table.read_text().replace("IsGroupOf", "Group"))
    with pytest.raises(DataError, match=r"bbox\.csv has no column IsGroupOf"):
        prepare(own)
    descriptions = own / "class-descriptions-boxable.csv"
    descriptions.write_text(descriptions.read_text() + "/m/04yx4,Again\n")
    with pytest.raises(DataError, match=r"class-descriptions-boxable\.csv is damaged \(no labels, or one twice\)"):
        prepare(own)
    descriptions.unlink()
    with pytest.raises(DataError, match=r"No class-descriptions-boxable\.csv"):
        prepare(own)


@pytest.mark.parametrize("form", ["webdataset", "lmdb"])
def test_zips_and_folders_give_the_same_bytes(raw, tmp_path, form):
    RAW.write_zips(raw, tmp_path / "zips")
    found = []
    for source, workers in ((raw, "1"), (tmp_path / "zips", "1"), (tmp_path / "zips", "2")):
        out = tmp_path / f"out{len(found)}"
        main(["convert", "openimages", str(source), str(out), "--size", "24", "--workers", workers, "--format", form])
        main(["convert", "openimages", str(source), str(out), "--format", form, "--verify"])
        found.append(SHARED.contents(out))
    folder, zips, parallel = found
    name = "openimages/train/shard-000000.tar" if form == "webdataset" else "openimages/train.lmdb"
    assert name in folder and folder == zips == parallel


def check(sample):
    numbers = np.unique(sample["segmentation"])
    assert numbers.max() == (numbers > 0).sum() == len(sample["segment_category"]) == len(sample["segment_area"])
    assert sample["image"].shape == (8, 8, 3) and sample["segmentation"].shape == (8, 8, 1)
    starts, sides = np.split(sample["bbox"], 2, axis=1)
    assert (starts >= 0).all() and (sides > 0).all() and (starts + sides <= 8 + 1e-4).all()


def test_damage_ends_in_a_named_rejection(root):
    """150 damaged inputs each; what is neither a sample, nor rejected, nor a DataError raises here."""
    folder, _ = root
    paths = sorted(path for path in folder.rglob("*") if path.is_file() and "validation" not in str(path))
    encode = functools.partial(encode_all, folder, "--splits", "train", "--size", "8", "--no-filter")
    outcomes = SHARED.damage_in_turn(paths, 150, encode, check)
    assert all(outcomes.values()), outcomes


def test_swapped_values_end_in_a_named_rejection(own):
    """Every value of every line of the validation images' tables, replaced by others in turn."""
    outcomes = set()
    for path in (own / "validation-annotations-object-segmentation.csv", own / "validation-annotations-bbox.csv"):
        lines = path.read_text().splitlines()
        cells = [(i, j) for i, line in enumerate(lines) for j in range(len(line.split(",")))]
        for n, (i, j) in enumerate(cells):
            for value in ["", "x", "-1", "1e300", "nan", '"', "0.5,0.5", "\x00", "/", "af00000000000007"][n % 5 :: 5]:
                values = lines[i].split(",")
                values[j] = value
                path.write_text("\n".join([*lines[:i], ",".join(values), *lines[i + 1 :]]))
                try:
                    samples, rejected = encode_all(own, "--splits", "val", "--size", "8")
                    outcomes.update(rejected.values())
                    for sample in samples.values():
                        check(sample)
                except DataError as error:
                    assert path.name in str(error)
                    outcomes.add("refused")
        path.write_text("\n".join(lines))
    assert outcomes == {"refused", "damaged annotation"}, outcomes


def test_no_masks_is_no_damage():
    image = openimages.RawImage("0" * 16, None, (), openimages.ImageAnnotations(), False)
    with pytest.raises(Filtered):
        openimages.encode_image(8, None, image)
