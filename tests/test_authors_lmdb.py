import io
import os
import pickle
import random
import runpy
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from ocl_msf.data.convert import convert
from ocl_msf.data.lmdb import decode_files
from ocl_msf.data.raw._images import central_square, crop_mask
from ocl_msf.data.raw._pickles import UnsafePickle, loads
from ocl_msf.data.raw.authors_lmdb import encode_sample, prepare
from ocl_msf.data.shards import read_shard
from ocl_msf.data.workers import Rejected
from ocl_msf.files import DataError

RAW = SimpleNamespace(**runpy.run_path(str(Path(__file__).with_name("raw_authors.py"))))
VALUES = {
    "text": ["a", "\u00e9" * 300],
    "bytes": (b"x" * 300, b""),
    "numbers": [0, -1, 300, 2**40, 0.5, True, None],
    "arrays": [np.arange(6).reshape(2, 3).astype(code) for code in ("u1", "i8", "<u2", ">f4", "f8", "?")],
    "columns": np.asfortranarray(np.arange(6).reshape(2, 3)),
    "none": np.zeros((0, 4), np.float32),
    "scalar": np.float32(0.25),
}


class Call:
    """Calls a function when it is read by the usual reader."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize("protocol", range(2, 6))
def test_plain_values_arrays_and_buffers_are_those_of_pickle(protocol):
    values = VALUES if protocol > 2 else {name: VALUES[name] for name in ("text", "numbers")}
    read = loads(pickle.dumps(values, protocol))
    assert repr(read) == repr(values)
    assert [x.dtype for x in read.get("arrays", [])] == [x.dtype for x in values.get("arrays", [])]
    if protocol > 2:
        assert loads(pickle.dumps({"video": io.BytesIO(b"abc")}, protocol)) == {"video": b"abc"}
        same = np.arange(3)
        assert all(np.array_equal(x, same) for x in loads(pickle.dumps([same, same], protocol)))


@pytest.mark.parametrize(
    "content",
    [
        Call(os.mkdir, "made"),
        Call(exec, "import os; os.mkdir('made')"),
        Call(getattr, "x", "__class__"),
        [Call(os.mkdir, "made")],
        Call(np.load, "x"),
        os.mkdir,
        np.array([Call(os.mkdir, "made")], object),
        np.dtype([("a", "u1")]),
        np.ndarray,
        Call(np.ndarray, (10**15,)),
        SimpleNamespace(a=1),
        {1, 2},
    ],
    ids="mkdir exec getattr listed load function objects fields class huge namespace set".split(),
)
@pytest.mark.parametrize("protocol", [3, 4, 5])
def test_nothing_that_a_pickle_names_is_called(content, protocol, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UnsafePickle):
        loads(pickle.dumps(content, protocol))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "text", [b"cposix\nmkdir\n(S'made'\ntR.", b"(S'made'\nios\nmkdir\n.", b"\x82\x01.", b"Pid\n.", b""]
)
def test_other_ways_to_name_a_function_are_refused(text, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UnsafePickle):
        loads(text)
    assert not list(tmp_path.iterdir())


def test_damaged_pickles_are_refused_or_read_and_nothing_else():
    content, generator = pickle.dumps(VALUES, 4), random.Random(0)
    for _ in range(1000):
        damaged = bytearray(content)
        for _ in range(generator.randint(1, 4)):
            damaged[generator.randrange(len(damaged))] = generator.randrange(256)
        try:
            loads(bytes(damaged[: generator.randint(1, len(damaged))] if generator.random() < 0.3 else damaged))
        except UnsafePickle:
            pass


def arrays(sample):
    return decode_files(sample)


def expected(seed, size=32):
    """The square's segments and the numbers of the original that are there."""
    image, numbers = RAW.scene(seed)
    square = crop_mask(numbers, central_square(64, 48), size)
    return square, [number for number in np.unique(square).tolist() if number]


@pytest.fixture
def single(tmp_path):
    """Writes one sample; returns what its conversion gives as arrays."""

    def encode(variant, sample, size=32):
        RAW.write(tmp_path / "train.lmdb", [sample])
        plan = prepare(tmp_path, variant, size)
        key, files = encode_sample(variant, size, plan.splits["train"][0])
        assert key == "000000"
        return arrays(files)

    return encode


def test_clevrtex_has_a_mask_for_each_number(single):
    sample = single("clevrtex", {**RAW.picture(0), "depth": np.zeros(3, np.uint8)})
    square, present = expected(0)
    assert sample["image"].shape == (32, 32, 3)
    assert np.array_equal(sample["mask"][..., 0], square == np.arange(11)[:, None, None])
    assert np.flatnonzero(sample["visibility"]).tolist() == [0, *present]


def test_coco_keeps_classes_and_things_of_the_segments_in_the_square(single):
    raw = RAW.annotated(1)
    sample = single("coco_panoptic", raw)
    square, present = expected(1)
    positions = np.array(present) - 1
    assert len(present) < raw["clazz"].size
    assert np.array_equal(sample["segment_category"], raw["clazz"][positions])
    assert np.array_equal(sample["segment_isthing"], raw["isthing"][positions])
    for new, old in enumerate(present, 1):
        assert np.array_equal(sample["segmentation"][..., 0] == new, square == old)
        assert sample["segment_area"][new - 1] == (RAW.scene(1)[1] == old).sum()


def test_voc_has_its_objects(single):
    sample = single("voc", RAW.picture(2))
    square, present = expected(2)
    assert np.array_equal(sample["segmentation-instance"], sample["segmentation-class"])
    for new, old in enumerate(present, 1):
        mask = sample["segmentation-instance"][..., 0] == new
        assert np.array_equal(mask, square == old)
        left, top, width, height = sample["instance_bbox"][new - 1].astype(int)
        assert mask[top : top + height, left : left + width].sum() == mask.sum() > 0


def test_movi_has_frames_masks_and_boxes(single):
    import av

    generator = np.random.default_rng(0)
    video = generator.integers(0, 256, (3, 64, 64, 3), np.uint8)
    masks = generator.integers(0, 4, (3, 64, 64), np.uint8)
    boxes = generator.random((3, 3, 4), np.float32)

    def encode(frames, codec, form):
        buffer = io.BytesIO()
        with av.open(buffer, "w", format="avi") as container:
            stream = container.add_stream(codec, rate=12)
            stream.width, stream.height, stream.pix_fmt = 64, 64, form
            for frame in frames:
                container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format=form)))
            container.mux(stream.encode())
        return io.BytesIO(buffer.getvalue())

    raw = {"video": encode(video, "rawvideo", "bgr24"), "bbox": boxes}
    sample = single("movi_c", {**raw, "segment": encode(masks, "ffv1", "gray")}, size=64)
    assert np.array_equal(sample["segmentations"][..., 0], masks)
    assert np.array_equal(sample["video"], video[..., ::-1])
    assert np.array_equal(sample["instance_bbox"][:, :3], boxes) and not sample["instance_bbox"][:, 3:].any()


def test_both_splits_of_a_folder_are_converted_with_their_keys(tmp_path):
    RAW.write(tmp_path / "raw" / "train.lmdb", [RAW.picture(seed) for seed in range(3)])
    RAW.write(tmp_path / "raw" / "val.lmdb", [RAW.picture(seed) for seed in range(2)], protocol=5)
    folder, summary = convert("authors-lmdb", tmp_path / "raw", tmp_path / "out", workers=2, variant="voc", size=32)
    assert folder.name == "voc" and {split: x["samples"] for split, x in summary["splits"].items()} == {
        "train": 3,
        "val": 2,
    }
    shards = sorted((folder / "val").glob("*.tar"))
    assert [key for shard in shards for key, _ in read_shard(shard)] == ["000000", "000001"]
    _, summary = convert(
        "authors-lmdb", tmp_path / "raw" / "val.lmdb", tmp_path / "one", workers=1, variant="voc", size=32
    )
    assert list(summary["splits"]) == ["val"]


@pytest.mark.parametrize(
    "sample, reason",
    [
        (b"no pickle", "damaged sample"),
        (pickle.dumps(Call(os.mkdir, "made")), "damaged sample"),
        ({"image": b"x"}, "no sample of voc"),
        ([1], "no sample of voc"),
        ({**RAW.picture(0), "image": b"x"}, "damaged image"),
        ({**RAW.picture(0), "image": 3}, "image is no file"),
        ({**RAW.picture(0), "segment": RAW.picture(0)["segment"][:40]}, "damaged segment"),
        (RAW.annotated(0), "no sample of voc"),
    ],
)
def test_a_damaged_sample_is_named(single, sample, reason):
    with pytest.raises(Rejected, match=reason):
        single("voc", sample)


def test_what_is_no_file_of_the_authors_is_one_sentence(tmp_path):
    with pytest.raises(DataError, match="neither a file like train.lmdb"):
        prepare(tmp_path)
    (tmp_path / "train.lmdb").write_bytes(b"x" * 5000)
    with pytest.raises(DataError, match="damaged, or no LMDB file"):
        prepare(tmp_path)


def test_mutated_files_are_errors_or_left_out(tmp_path):
    """200 files with damage in places of their own: a message or fewer samples, and never a traceback."""
    RAW.write(tmp_path / "train.lmdb", [RAW.picture(0)])
    content, generator = (tmp_path / "train.lmdb").read_bytes(), random.Random(0)
    content = content[: max(i for i, byte in enumerate(content) if byte) + 1]
    for number in range(200):
        path = tmp_path / str(number) / "train.lmdb"
        path.parent.mkdir()
        damaged = bytearray(content)
        for _ in range(generator.randint(1, 20)):
            damaged[generator.randrange(8192, len(damaged))] = generator.randrange(256)
        path.write_bytes(damaged)
        try:
            for raw in prepare(path.parent, "voc", 16).splits["train"]:
                encode_sample("voc", 16, raw)
        except (DataError, Rejected):
            pass
