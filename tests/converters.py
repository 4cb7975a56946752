"""What the tests of converters share: miniatures and copies of them, samples as arrays, and damage."""

import gzip
import io
import shutil
import tarfile

import numpy as np
import pytest
from PIL import Image

from ocl_msf.cli.convert import converters
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


def commands(converter, key_of, name_of=lambda raw_image: raw_image.name):
    """What a converter does by its command: two functions of a folder and options.

    Args:
        converter: Its module.
        key_of: The key that a raw sample must get.
        name_of: A name for each raw sample, in what is returned.

    Returns:
        `prepare`, which returns the conversion that the command plans, and `encode_all`, which returns samples, with
        arrays instead of files, and the reasons for what is left out, both by name.
    """

    def prepare(raw, *options):
        planned = []

        def convert(dataset, raw, *_, **chosen):
            planned.append(converter.prepare(raw, **chosen))
            return raw, {"format": "webdataset", "splits": {}}

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("ocl_msf.data.convert.convert", convert)
            converters([converter.__name__.rsplit(".", 1)[-1], str(raw), "out", *options], standalone_mode=False)
        return planned[0]

    def encode_all(raw, *options):
        conversion = prepare(raw, *options)
        samples, rejected = {}, {}
        for raw_sample in [raw_sample for split in conversion.splits.values() for raw_sample in split]:
            try:
                key, files = conversion.encode(raw_sample)
                assert key == key_of(raw_sample)
                samples[name_of(raw_sample)] = {name.split(".")[0]: decode(name, files[name]) for name in files}
            except Rejected as error:
                assert error.sample == raw_sample.name
                rejected[name_of(raw_sample)] = error.reason
        return samples, rejected

    return prepare, encode_all


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


def damage_in_turn(paths, times, encode, check=lambda sample: None, names=()):
    """Damage one file at a time; what is neither a valid sample, nor rejected, nor a DataError that names it raises.

    Args:
        paths: Of the files, taken in turn, each of them whole again before the next.
        times: How often.
        encode: Called for each damage; returns samples and those rejected, as `encode_all` does.
        check: Called with every sample; raises if it is not valid.
        names: What the message of a DataError may say instead of the name of the file.

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
            samples, rejected = encode()
            for sample in samples.values():
                check(sample)
            outcomes["rejected" if rejected else "samples"] += 1
        except DataError as error:
            assert any(name in str(error) for name in (path.name, *names)), error
            outcomes["refused"] += 1
        path.write_bytes(whole)
    return outcomes


def packed_or_not(write_archives):
    """The fixture of a folder to damage, once as it is and once in archives, and which of the two it is."""

    @pytest.fixture(params=[False, True], ids=["folder", "archives"])
    def root(own, tmp_path, request):
        if request.param:
            write_archives(own, tmp_path / "archives")
        return (tmp_path / "archives" if request.param else own), request.param

    return root
