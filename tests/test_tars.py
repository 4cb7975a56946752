import gzip
import io
import pickle
import tarfile

import numpy as np
import pytest

from ocl_msf.data.raw import _tars
from ocl_msf.data.raw._sources import READ_ERRORS, Sources
from ocl_msf.data.raw._tars import Concatenation, Inflated, list_members
from ocl_msf.files import DataError


@pytest.fixture
def content():
    """Bytes that gzip makes a little smaller."""
    return np.random.default_rng(0).integers(0, 64, 1 << 20, np.uint8).tobytes()


def archive(files):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return buffer.getvalue()


def write(folder, **contents):
    paths = []
    for name, data in contents.items():
        paths.append(folder / name)
        paths[-1].write_bytes(data)
    return paths


def test_files_in_a_row_are_one(tmp_path, content):
    paths = write(tmp_path, a=content[:1000], b=b"", c=content[1000:1001], d=content[1001:5000])
    file = io.BufferedReader(Concatenation(list(map(str, paths))))
    assert file.read() == content[:5000]
    for place in (999, 1000, 4999, 0, 1001):
        file.seek(place)
        assert file.read(2) == content[place : min(place + 2, 5000)]
    file.close()


@pytest.mark.parametrize("max_states", [3, 2048])
def test_any_place_of_what_gzip_compressed_can_be_read(tmp_path, content, monkeypatch, max_states):
    """Two streams with padding behind each, cut in two files; states of the decompressor stay few."""
    monkeypatch.setattr(_tars, "MAX_STATES", max_states)
    half = len(content) // 2
    packed = gzip.compress(content[:half]) + bytes(70000) + gzip.compress(content[half:]) + bytes(300)
    paths = write(tmp_path, a=packed[:12345], b=packed[12345:])
    inflated = Inflated(Concatenation(list(map(str, paths))), interval=10000)
    file = io.BufferedReader(inflated)
    rng = np.random.default_rng(0)
    for place in [*rng.integers(0, len(content), 60).tolist(), len(content) - 5, len(content) + 5, 0]:
        file.seek(place)
        assert file.read(100) == content[place : place + 100]
    assert len(inflated._states) <= max_states and (max_states == 3 or len(inflated._states) > 10)
    file.seek(0)
    assert file.read() == content
    file.close()


def test_a_jump_back_does_not_begin_anew(tmp_path, content):
    (path,) = write(tmp_path, a=gzip.compress(content))
    files = Concatenation([str(path)])
    file = io.BufferedReader(Inflated(files, interval=20000))
    file.read()
    read, places = files._content, []
    files._content = lambda count: places.append(files._position) or read(count)
    file.seek(len(content) - 60000)
    file.read(10)
    assert places and min(places) > path.stat().st_size // 2
    file.close()


@pytest.mark.parametrize("compress", [bytes, gzip.compress])
def test_members_are_listed_and_read(tmp_path, content, compress):
    """Of two archives in one file; folders and links are no files."""
    first = {"a/1": content[:100], "./a/2": b"", "long/" + "x" * 200: content[:3000]}
    second = {"b/é": content[-700:]}
    (path,) = write(tmp_path, x=compress(archive(first)) + compress(archive(second)))
    members = [pickle.loads(pickle.dumps(member)) for member in list_members([path])]
    assert {member.name: member.read() for member in members[::-1]} == {**first, **second}
    assert str(members[0]) == f"{path}:a/1"


@pytest.mark.parametrize("compress", [bytes, gzip.compress])
def test_a_damaged_archive_is_an_error(tmp_path, content, compress):
    whole = archive({"a": content[:5000], "b": content[5000:9000]})
    changed = bytearray(whole)
    changed[5632 + 10] ^= 1  # in the header of b
    cases = [whole[:8000] if compress is bytes else compress(whole)[:-20], compress(bytes(changed))]
    for case in cases:
        (path,) = write(tmp_path, x=case)
        with pytest.raises(READ_ERRORS):
            list(list_members([path]))
    (path,) = write(tmp_path, x=compress(whole))
    member = list(list_members([path]))[1]
    write(tmp_path, y=compress(whole)[:100])
    with pytest.raises(READ_ERRORS):
        member._replace(paths=(str(tmp_path / "y"),)).read()


def test_sources_look_into_the_tars_that_are_named(tmp_path, content):
    files = {"./root/a/1.txt": b"packed", "root/a/2.txt": b"2", "5": b"", "__MACOSX/a/3.txt": b"", "a/._4.txt": b""}
    (tmp_path / "root" / "a").mkdir(parents=True)
    (tmp_path / "root" / "a" / "1.txt").write_bytes(b"unpacked")
    (tmp_path / "one.tgz").write_bytes(gzip.compress(archive(files)))
    (tmp_path / "two.tar").write_bytes(b"not looked into")
    sources = Sources(tmp_path, ["a"], tars=["one*.tgz"])
    assert sources.count("a") == 2
    assert sources.find("a/1.txt").read() == b"unpacked" and sources.find("a/2.txt").read() == b"2"
    with pytest.raises(DataError, match=r"two\.tar is no intact tar archive"):
        Sources(tmp_path, ["a"], tars=["*.t*"])
