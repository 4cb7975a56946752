import io
import json
import runpy
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from ocl_msf.cli import main
from ocl_msf.data.raw import movi
from ocl_msf.data.shards import encode_png
from ocl_msf.data.tfrecord import encode_example, write_records
from ocl_msf.data.workers import Rejected
from ocl_msf.files import DataError

SHARED = SimpleNamespace(**runpy.run_path(str(Path(__file__).with_name("converters.py"))))
TIMES, SIDE = 24, 32


def png(array):
    return encode_png(Image.fromarray(array))


def moving_masks(seed, count, times=TIMES, side=SIDE):
    """Rectangles that pass through the frame and cover each other: (T, side, side) uint8."""
    rng = np.random.default_rng(seed)
    masks = np.zeros((times, side, side), np.uint8)
    for number in range(count, 0, -1):
        (x, y), (w, h) = rng.integers(-4, side - 4, 2), rng.integers(3, 9, 2)
        dx, dy = rng.uniform(-1, 1, 2)
        for t in range(times):
            left, top = int(x + dx * t), int(y + dy * t)
            masks[t, max(top, 0) : max(top + h, 0), max(left, 0) : max(left + w, 0)] = number
    return masks


def boxes_of(masks, count):
    """{object: [(frame, (ymin, xmin, ymax, xmax))]}, tight, the maxima exclusive."""
    boxes = {number: [] for number in range(1, count + 1)}
    for t, mask in enumerate(masks):
        for number in boxes:
            y, x = np.nonzero(mask == number)
            if len(y):
                corners = np.array([y.min(), x.min(), y.max() + 1, x.max() + 1]) / mask.shape[0]
                boxes[number].append((t, corners))
    return boxes


def features_of(masks, boxes, seed=0):
    """The features of a MOVi record, some that nobody wants among them, in random order."""
    rng = np.random.default_rng(seed)
    frames = rng.integers(0, 256, (*masks.shape, 3), np.uint8)
    rows = list(boxes.values())
    lengths = np.array([len(row) for row in rows], np.int64)
    features = {
        "video": [png(frame) for frame in frames],
        "segmentations": [png(mask) for mask in masks],
        "depth": [png(mask.astype(np.uint16)) for mask in masks],
        "forward_flow": rng.integers(0, 65536, 100),
        "instances/bboxes/ragged_flat_values": np.array([box for row in rows for _, box in row], np.float32),
        "instances/bboxes/ragged_row_lengths_0": lengths,
        "instances/bbox_frames/ragged_flat_values": np.array([t for row in rows for t, _ in row], np.int64),
        "instances/bbox_frames/ragged_row_lengths_0": lengths,
        "instances/asset_id": [b"thing"] * len(rows),
        "metadata/num_instances": np.array([len(rows)]),
        "background": [b"studio"],
    }
    return {key: features[key] for key in rng.permutation(list(features))}


def record(seed, count):
    masks = moving_masks(seed, count)
    return features_of(masks, boxes_of(masks, count), seed)


def write_shards(raw, shards, split="train", variant="c"):
    folder = raw / f"movi_{variant}" / "128x128" / "1.0.0"
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for index, records in enumerate(shards):
        paths.append(folder / f"movi_{variant}-{split}.tfrecord-{index:05d}-of-{len(shards):05d}")
        with open(paths[-1], "wb") as file:
            write_records(file, map(encode_example, records))
    return paths


def prepare(raw, variant="c", max_objects=None, size=SIDE):
    return movi.prepare(raw, variant, max_objects, size)


def encode(tmp_path, features, **options):
    """Convert one record; returns video, masks and boxes."""
    write_shards(tmp_path, [[features]])
    conversion = prepare(tmp_path, **options)
    (item,) = conversion.splits["train"]
    files = conversion.encode(item)[1]
    names = [f"{field}.npy.gz" for field in ("video", "segmentations", "instance_bbox")]
    assert sorted(files) == sorted(names)
    return [SHARED.decode(name, files[name]) for name in names]


@pytest.mark.parametrize("variant, most", [("c", 10), ("d", 23), ("e", 23)])
def test_every_video_arrives_whole(tmp_path, variant, most):
    train = [[record(0, 1), record(1, most)], [record(2, 5)]]
    write_shards(tmp_path / "raw", train, variant=variant)
    write_shards(tmp_path / "raw", [[record(3, 4)]], "validation", variant)
    write_shards(tmp_path / "raw", [[]], "test", variant)
    options = ["--variant", variant, "--size", str(SIDE), "--workers", "1"]
    main(["convert", "movi", str(tmp_path / "raw"), str(tmp_path), *options])
    folder = tmp_path / f"movi_{variant}"
    summary = json.loads((folder / "summary.json").read_text())
    counts = {name: split["samples"] for name, split in summary["splits"].items()}
    assert counts == {"train": 3, "val": 1}
    samples = SHARED.read_samples(folder.glob("train/shard-*.tar"))
    assert sorted(samples) == ["0000000", "0000001", "0000002"]
    assert list(SHARED.read_samples(folder.glob("val/shard-*.tar"))) == ["0000000"]
    for seed, count in enumerate([1, most, 5]):
        sample = samples[f"{seed:07d}"]
        frames = np.random.default_rng(seed).integers(0, 256, (TIMES, SIDE, SIDE, 3), np.uint8)
        np.testing.assert_array_equal(sample["video"], frames)
        masks = moving_masks(seed, count)
        np.testing.assert_array_equal(sample["segmentations"], masks[..., None])
        assert sample["segmentations"].dtype == sample["video"].dtype == np.uint8
        expected = np.zeros((TIMES, most, 4), np.float32)
        for number, row in boxes_of(masks, count).items():
            for t, (ymin, xmin, ymax, xmax) in row:
                expected[t, number - 1] = xmin, ymin, xmax, ymax
        np.testing.assert_array_equal(sample["instance_bbox"], expected)
        assert sample["instance_bbox"].dtype == np.float32


def test_an_object_may_come_late_and_leave_for_a_while(tmp_path):
    masks = np.zeros((TIMES, SIDE, SIDE), np.uint8)
    masks[3:10, 4:6, 20:30] = masks[15:20, 4:6, 20:30] = 1
    boxes = encode(tmp_path, features_of(masks, boxes_of(masks, 1)))[2]
    present = [*range(3, 10), *range(15, 20)]
    assert np.flatnonzero(boxes.any(axis=(1, 2))).tolist() == present
    assert (boxes[present, 0] == np.float32([20, 4, 30, 6]) / SIDE).all()
    assert not boxes[:, 1:].any()


def test_a_box_without_a_pixel_stays(tmp_path):
    masks = np.zeros((TIMES, SIDE, SIDE), np.uint8)
    boxes = {1: [(5, (0.25, 0.5, 0.26, 0.51))]}
    _, found, table = encode(tmp_path, features_of(masks, boxes))
    assert not found.any() and table[5, 0].tolist() == np.float32([0.5, 0.25, 0.51, 0.26]).tolist()


def test_rows_without_boxes(tmp_path):
    masks = moving_masks(0, 2)
    boxes = boxes_of(masks, 2)
    boxes[3] = []
    boxes = {1: [], 2: boxes[2], 3: []}
    table = encode(tmp_path, features_of(masks, boxes))[2]
    assert not table[:, [0, 2]].any() and table[:, 1].any()
    table = encode(tmp_path, features_of(masks, {1: [], 2: []}))[2]
    assert table.shape == (TIMES, 10, 4) and not table.any()


def test_a_limit_of_objects_is_one_of_boxes_alone(tmp_path):
    masks = moving_masks(1, 10)
    _, found, table = encode(tmp_path, features_of(masks, boxes_of(masks, 10)), max_objects=4)
    np.testing.assert_array_equal(found[..., 0], masks)
    assert found.dtype == np.uint8
    whole = encode(tmp_path, features_of(masks, boxes_of(masks, 10)))[2]
    np.testing.assert_array_equal(table, whole[:, :4])


@pytest.mark.parametrize("size", [16, 20, 48])
def test_resizing_equals_a_plain_reference(tmp_path, size):
    video, found, _ = encode(tmp_path, record(0, 5), size=size)
    frames = np.random.default_rng(0).integers(0, 256, (TIMES, SIDE, SIDE, 3), np.uint8)
    masks = moving_masks(0, 5)
    places = [int(np.floor((i + 0.5) * SIDE / size)) for i in range(size)]
    for t in range(TIMES):
        resized = Image.fromarray(frames[t]).resize((size, size), Image.BILINEAR)
        np.testing.assert_array_equal(video[t], np.asarray(resized))
        assert found[t, :, :, 0].tolist() == [[masks[t, y, x] for x in places] for y in places]


def test_videos_of_another_length_and_of_full_size(tmp_path):
    masks = moving_masks(0, 2, times=3, side=128)
    video, found, table = encode(tmp_path, features_of(masks, boxes_of(masks, 2)), size=128)
    assert video.shape == (3, 128, 128, 3) and table.shape == (3, 10, 4)
    np.testing.assert_array_equal(found[..., 0], masks)


def broken(name):
    """Records that cannot be used, by what is wrong with them."""
    features = record(0, 3)
    lengths = "instances/bboxes/ragged_row_lengths_0"
    if name == "missing feature":
        del features["instances/bbox_frames/ragged_flat_values"]
    elif name == "feature of another type":
        features["video"] = np.arange(24)
    elif name == "unreadable frame":
        features["video"][7] = features["video"][7][:-40]
    elif name == "frame turned by EXIF data":
        exif, file = Image.Exif(), io.BytesIO()
        exif[0x0112] = 6
        Image.new("RGB", (SIDE, SIDE)).save(file, "PNG", exif=exif)
        features["video"][7] = file.getvalue()
    elif name == "frame of another mode":
        features["segmentations"][2] = png(np.zeros((SIDE, SIDE, 3), np.uint8))
    elif name == "frames not square or of different sizes":
        features["video"][3] = png(np.zeros((SIDE, SIDE + 1, 3), np.uint8))
    elif name == "video and masks do not fit":
        features["segmentations"] = features["segmentations"][:-1]
    elif name == "boxes do not fit":
        features[lengths] = features[lengths] + 1
    elif name == "mask of an unknown object":
        features["segmentations"][0] = png(np.full((SIDE, SIDE), 4, np.uint8))
    return features


@pytest.mark.parametrize(
    "reason",
    [
        "missing feature",
        "feature of another type",
        "unreadable frame",
        "frame turned by EXIF data",
        "frame of another mode",
        "frames not square or of different sizes",
        "video and masks do not fit",
        "boxes do not fit",
        "mask of an unknown object",
    ],
)
def test_a_record_that_cannot_be_used_is_rejected_by_name(tmp_path, reason):
    with pytest.raises(Rejected) as caught:
        encode(tmp_path, broken(reason))
    assert caught.value.reason == reason
    assert caught.value.sample == "movi_c-train.tfrecord-00000-of-00001 at byte 0"


@pytest.mark.parametrize(
    "box, frame",
    [((0.1, 0.2, 0.3, 1.5), 0), ((0.5, 0.2, 0.3, 0.5), 0), ((0.1, np.nan, 0.3, 0.5), 0), ((0, 0, 1, 1), 24)],
)
def test_an_impossible_box_is_rejected(tmp_path, box, frame):
    with pytest.raises(Rejected, match="boxes do not fit"):
        encode(tmp_path, features_of(moving_masks(0, 1), {1: [(frame, box)]}))


def test_a_wrong_checksum_is_rejected(tmp_path):
    (path,) = write_shards(tmp_path, [[record(0, 2), record(1, 2)]])
    content = bytearray(path.read_bytes())
    content[500] ^= 1
    path.write_bytes(content)
    conversion = prepare(tmp_path)
    first, second = conversion.splits["train"]
    with pytest.raises(Rejected, match="damaged record.*checksum"):
        conversion.encode(first)
    assert conversion.encode(second)[0] == "0000001"


def test_a_cut_off_shard_is_named(tmp_path):
    path = write_shards(tmp_path, [[record(0, 2)], [record(1, 2)]])[1]
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(DataError, match="train.tfrecord-00001-of-00002 is cut off in record 0"):
        prepare(tmp_path)


def test_a_missing_shard_is_named(tmp_path):
    write_shards(tmp_path, [[], [], []])[1].unlink()
    with pytest.raises(DataError, match="movi_c-train.tfrecord-00001-of-00003 is missing, 1 of 3"):
        prepare(tmp_path)


def test_shards_must_be_there_once(tmp_path):
    write_shards(tmp_path, [[]])
    with pytest.raises(DataError, match="No MOVI-D shards"):
        prepare(tmp_path, "d")
    with pytest.raises(DataError, match="hold no videos"):
        prepare(tmp_path, "c")
    write_shards(tmp_path, [[], []])
    with pytest.raises(DataError, match="in 00001 and in 00002 shards"):
        prepare(tmp_path)
    write_shards(tmp_path / "more", [[]])
    with pytest.raises(DataError, match="more than once"):
        prepare(tmp_path)


def test_mutated_records_end_in_a_rejection_or_a_sample(tmp_path):
    """Payloads damaged, shuffled in part, or with other numbers; their checksums are right again."""
    masks = moving_masks(0, 3, times=2, side=16)
    features = features_of(masks, boxes_of(masks, 3))
    payload = encode_example(features)
    numeric = [key for key in features if "/bbox" in key]
    (path,) = write_shards(tmp_path, [[]])
    rng = np.random.default_rng(0)
    rejected = set()
    for trial in range(400):
        if trial % 2:
            mutated = SHARED.damaged(payload, rng)
        elif trial % 4:
            mutated = bytearray(payload)
            start, stop = sorted(rng.integers(0, len(payload), 2))
            mutated[start:stop] = rng.permutation(mutated[start:stop]).tolist()
        else:
            key = str(rng.choice(numeric))
            values = features[key].copy()
            values[rng.integers(0, len(values))] = rng.choice([-1, 0, 1, 2, 2**62])
            mutated = encode_example({**features, key: values})
        with open(path, "wb") as file:
            write_records(file, [bytes(mutated)])
        conversion = prepare(tmp_path, size=16)
        try:
            conversion.encode(conversion.splits["train"][0])
        except Rejected as error:
            rejected.add(error.reason)
    assert {"damaged record", "missing feature", "unreadable frame", "boxes do not fit"} <= rejected


def test_mutated_shards_end_in_an_error_that_names_them(tmp_path):
    """Bits flipped and parts cut out anywhere in a file of two records, lengths and checksums included."""
    masks = moving_masks(0, 2, times=1, side=8)
    features = features_of(masks, boxes_of(masks, 2))
    (path,) = write_shards(tmp_path, [[features, features]])
    whole, rng, outcomes = path.read_bytes(), np.random.default_rng(0), set()
    second = len(whole) // 2
    for trial in range(200):
        mutated = bytearray(whole)
        position = int(rng.integers(0, len(whole)) if trial % 2 else rng.choice([0, second]) + rng.integers(0, 12))
        if trial % 5:
            mutated[position] ^= 1 << rng.integers(0, 8)
        else:
            del mutated[position : position + rng.integers(1, 30)]
        path.write_bytes(bytes(mutated))
        try:
            conversion = prepare(tmp_path, size=8)
            for item in conversion.splits["train"]:
                conversion.encode(item)
        except (DataError, Rejected) as error:
            assert path.name in str(error)
            outcomes.add(type(error))
        else:
            pytest.fail("the checksums did not notice")
    assert outcomes == {DataError, Rejected}
