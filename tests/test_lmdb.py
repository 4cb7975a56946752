import io
import json
import multiprocessing
import shutil

import lmdb
import numpy as np
import pytest
import safetensors.numpy
from PIL import Image

from ocl_msf.data.lmdb import LMDBFile, write_lmdb
from ocl_msf.data.shards import Conversion, encode_array, encode_png
from ocl_msf.data.summary import verify
from ocl_msf.data.workers import Rejected
from ocl_msf.files import DataError


def encode(number):
    """A sample with a field of every kind; number 4 is rejected."""
    if number == 4:
        raise Rejected("torn", f"file {number}")
    return f"{number:06d}", {
        "image.png": encode_png(Image.fromarray(image(number))),
        "mask.npy.gz": encode_array(mask(number)),
        "objects.bbox.npy": npy(boxes(number)),
        "title.txt": f"Größe {number}".encode(),
        "extra.json": json.dumps({"number": number}).encode(),
    }


def image(number):
    return np.random.default_rng(number).integers(0, 256, (6, 5, 3), np.uint8)


def mask(number):
    return np.random.default_rng(number).integers(0, 2, (3, 6, 5, 1), np.uint8)


def boxes(number):
    return np.random.default_rng(number).random((number % 3, 4)).astype(np.float32)  # none, too


def npy(array):
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


def conversion(encode=encode):
    return Conversion(options={"size": 6}, splits={"train": range(12), "val": range(90, 93)}, encode=encode)


def contents(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole") / "data_lmdb"
    write_lmdb(folder, conversion(), 4, 1)
    return folder


def test_samples_come_back_as_they_were(whole):
    numbers = [number for number in range(12) if number != 4]
    file = LMDBFile(whole / "train.lmdb")
    assert file.keys() == [f"{number:06d}" for number in numbers]
    for number in numbers:
        sample = file.read(f"{number:06d}")
        assert set(sample) == {"__key__", "image", "mask", "objects.bbox", "title", "extra"}
        for field, expected in {"image": image, "mask": mask, "objects.bbox": boxes}.items():
            np.testing.assert_array_equal(sample[field], expected(number))
            assert sample[field].dtype == expected(number).dtype
            assert sample[field].flags.writeable
        assert sample["title"] == f"Größe {number}" and sample["extra"] == {"number": number}


def test_only_the_fields_asked_for_are_read(whole):
    file = LMDBFile(whole / "val.lmdb")
    assert set(file.read("000090", ["image", "obj"])) == {"__key__", "image", "objects.bbox"}
    assert set(file.read("000090", [])) == {"__key__"}


def test_the_layout_is_the_documented_one(whole, tmp_path):
    path = str(shutil.copy(whole / "val.lmdb", tmp_path))  # a process opens a file once
    with lmdb.open(path, subdir=False, readonly=True, lock=False) as file, file.begin() as reading:
        assert reading.get(b"__schema__") == b"1"
        assert reading.get(b"__keys__") == b"000090\n000091\n000092"
        sample = safetensors.numpy.load(reading.get(b"000091"))
    np.testing.assert_array_equal(sample["image"], image(91))
    np.testing.assert_array_equal(sample["mask"], mask(91))
    assert bytes(sample["title.txt"]).decode() == "Größe 91"


def test_the_summary_has_counts_and_checksums(whole):
    summary = verify(whole)
    assert {split: content["samples"] for split, content in summary["splits"].items()} == {"train": 11, "val": 3}
    assert summary["rejected"] == {"torn": {"count": 1, "names": ["file 4"]}}
    assert sorted(contents(whole)) == ["summary.json", "train.lmdb", "val.lmdb"]


def test_damage_is_found_and_made_good(whole, tmp_path):
    folder = tmp_path / "data_lmdb"
    write_lmdb(folder, conversion(), 4, 1)
    path = folder / "val.lmdb"
    changed = bytearray(path.read_bytes())
    changed[-1000] ^= 1
    path.write_bytes(changed)
    with pytest.raises(DataError, match=r"val\.lmdb has another checksum"):
        verify(folder)
    write_lmdb(folder, conversion(), 4, 1)
    assert contents(folder) == contents(whole)


@pytest.mark.parametrize("workers", [1, 2])
def test_an_interrupted_conversion_goes_on_to_the_same_bytes(whole, tmp_path, monkeypatch, workers):
    folder = tmp_path / "data_lmdb"

    def interrupted(path, shards):
        list(shards)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("ocl_msf.data.lmdb._pack", interrupted)
        write_lmdb(folder, conversion(), 4, workers)
    with pytest.raises(DataError, match="was interrupted"):
        verify(folder)
    (folder / "parts" / "train" / "shard-000002.tar").unlink()
    (folder / "train.lmdb.partial").write_bytes(b"cut")
    write_lmdb(folder, conversion(), 4, workers)
    assert contents(folder) == contents(whole)


def test_a_finished_one_is_left_alone_and_other_options_are_refused(whole):
    before = (whole / "train.lmdb").stat().st_mtime_ns
    write_lmdb(whole, conversion(), 4, 1)
    assert (whole / "train.lmdb").stat().st_mtime_ns == before
    with pytest.raises(DataError, match="other options"):
        write_lmdb(whole, conversion(), 5, 1)
    with pytest.raises(DataError, match="torn"):
        other = whole.parent / "strict_lmdb"
        write_lmdb(other, conversion(), 4, 1, strict=True)


def test_a_field_without_a_plain_form_is_refused(tmp_path):
    with pytest.raises(DataError, match=r"no \.pickle fields"):
        write_lmdb(tmp_path, conversion(lambda number: ("1", {"a.pickle": b""})), 4, 1)
    with pytest.raises(DataError, match="Key 1 is there twice"):
        write_lmdb(tmp_path, conversion(lambda number: ("1", {"a.txt": b""})), 4, 1)


def test_another_schema_is_refused(tmp_path):
    with lmdb.open(str(tmp_path / "a.lmdb"), subdir=False, lock=False) as file, file.begin(write=True) as writing:
        writing.put(b"__schema__", b"2")
    with pytest.raises(DataError, match="schema '2', not '1'"):
        LMDBFile(tmp_path / "a.lmdb").keys()


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_an_open_file_is_read_by_other_processes(whole, method):
    file = LMDBFile(whole / "val.lmdb")
    file.read("000090")
    with multiprocessing.get_context(method).Pool(1) as pool:
        sample = pool.apply_async(file.read, ("000091",)).get(timeout=600)
    np.testing.assert_array_equal(sample["image"], image(91))


def test_the_file_is_not_larger_than_its_samples_need(whole):
    assert (whole / "train.lmdb").stat().st_size < 300_000
