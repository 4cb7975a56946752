"""What the tests of converters share: miniatures and copies of them, samples as arrays, and damage."""

import gzip
import io
import shutil
import tarfile

import numpy as np
import pytest
from PIL import Image

from ocl_msf.cli.data import converters
from ocl_msf.data.workers import Rejected
from ocl_msf.files import DataError


def miniature(write_folder):
    """The fixture of what a maker of raw data writes, once for a file of tests, none of which changes it."""

    @pytest.fixture(scope="module")
    def raw(tmp_path_factory):
        folder = tmp_path_factory.mktemp("miniature") / "raw"
        write_folder(folder)
        return folder

    return raw


@pytest.fixture
def own(raw, tmp_path):
    """A copy to damage."""
    shutil.copytree(raw, tmp_path / "own")
    return tmp_path / "own"


def prepare(converter, raw, *options):
    """The conversion that the command with these options plans."""
    planned = []

    def convert(dataset, raw, *_, **chosen):
        planned.append(converter.prepare(raw, **chosen))
        return raw, {"format": "webdataset", "splits": {}}

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("ocl_msf.data.convert.convert", convert)
        converters([converter.__name__.rsplit(".", 1)[-1], str(raw), "out", *options], standalone_mode=False)
    return planned[0]


def encode_all(conversion, key_of, name_of=lambda item: item.name):
    """(samples, reasons for what is left out), each {name of the item: ...}; arrays instead of files."""
    samples, rejected = {}, {}
    for item in [item for items in conversion.splits.values() for item in items]:
        try:
            key, files = conversion.encode(item)
            assert key == key_of(item)
            samples[name_of(item)] = {name.split(".")[0]: decode(name, files[name]) for name in files}
        except Rejected as error:
            assert error.sample == item.name
            rejected[name_of(item)] = error.reason
    return samples, rejected


def decode(name, content):
    """The array of a file of a sample."""
    if name.endswith(".png"):
        return np.asarray(Image.open(io.BytesIO(content)))
    return np.load(io.BytesIO(gzip.decompress(content)))


def read_samples(shards):
    """{key: {field: array}} of the samples in some shards."""
    samples = {}
    for path in sorted(shards):
        with tarfile.open(path) as tar:
            for member in tar.getmembers():
                key, field, *_ = member.name.split(".")
                samples.setdefault(key, {})[field] = decode(member.name, tar.extractfile(member).read())
    return samples


def crop_and_resize(mask, size):
    """The largest central square, then the pixels under the centres of the new ones."""
    side = min(mask.shape)
    top, left = ((length - side) // 2 for length in mask.shape)
    places = np.floor((np.arange(size) + 0.5) * side / size).astype(int)
    return mask[top:, left:][np.ix_(places, places)]


def contents(folder):
    """{path: bytes} of all files below a folder."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def damaged(content, rng):
    """Flip bits, cut off, or put other bytes somewhere."""
    changed = bytearray(content)
    kind = rng.integers(3)
    if kind == 0:
        for place in rng.integers(0, len(changed), rng.integers(1, 8)):
            changed[place] ^= 1 << int(rng.integers(8))
    elif kind == 1:
        changed = changed[: rng.integers(len(changed))]
    else:
        start = int(rng.integers(len(changed)))
        changed[start : start + int(rng.integers(1, 9))] = rng.bytes(int(rng.integers(0, 9)))
    return bytes(changed)


def damage_in_turn(paths, times, encode, is_named=lambda path, message: path.name in message):
    """Damage one file at a time; what is neither a sample, nor rejected, nor a DataError that names it raises.

    Args:
        paths: of the files, taken in turn, each of them whole again before the next.
        times: how often.
        encode: called with the path of the damaged file; checks the samples and returns those that are rejected.
        is_named: whether the message of a DataError tells where the damage is.

    Returns:
        How often there were "samples" alone, some were "rejected", and all were "refused".
    """
    rng = np.random.default_rng(0)
    outcomes = {"samples": 0, "rejected": 0, "refused": 0}
    for i in range(times):
        path = paths[i % len(paths)]
        whole = path.read_bytes()
        path.write_bytes(damaged(whole, rng))
        try:
            outcomes["rejected" if encode(path) else "samples"] += 1
        except DataError as error:
            assert is_named(path, str(error)), error
            outcomes["refused"] += 1
        path.write_bytes(whole)
    return outcomes
