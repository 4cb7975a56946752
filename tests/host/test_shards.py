"""Shards as people write them: compressed, in folders with braces, by relative paths, their files in any order."""

import bz2
import gzip
import io
import lzma
import tarfile

import fsspec
import numpy as np
import pytest
import webdataset
from ocl.datasets import ShardError, WebdatasetDataModule
from ocl.transforms import SimpleTransform


def npy(value):
    buffer = io.BytesIO()
    np.save(buffer, np.full(48, value))  # with its header 512 bytes: the next file follows without padding
    return buffer.getvalue()


def tar(names):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for value, name in enumerate(names):
            info = tarfile.TarInfo(name)
            info.size = len(npy(value))
            archive.addfile(info, io.BytesIO(npy(value)))
    return buffer.getvalue()


def same(value):
    return value


def data_module(shards, *fields, **options):
    transforms = {"same": SimpleTransform(dict.fromkeys(fields or ("x",), same), batch_transform=False)}
    options = {"num_workers": 0, "batch_size": 2, **options}
    return WebdatasetDataModule(shards, shards, train_transforms=transforms, eval_transforms=transforms, **options)


def read(shards, *fields):
    return [(s["__key__"], s["x"].tolist()) for s in data_module(shards, *fields).val_data_iterator()]


NAMES = [f"{key:04d}.{field}.npy" for key in range(40) for field in ("a", "x", "y")]
COMPRESSIONS = {"tar": bytes, "tar.gz": gzip.compress, "tgz": gzip.compress, "tar.bz2": bz2.compress}
COMPRESSIONS["tar.xz"] = lzma.compress


@pytest.mark.parametrize("suffix", COMPRESSIONS)
@pytest.mark.parametrize("fields", ["x", "ax", "axy"])
def test_compressed_shards_are_read_as_webdataset_reads_them(tmp_path, suffix, fields):
    path = tmp_path / f"shard.{suffix}"
    path.write_bytes(COMPRESSIONS[suffix](tar(NAMES)))
    reader = webdataset.WebDataset(str(path), shardshuffle=False)
    judge = [(s["__key__"], np.load(io.BytesIO(s["x.npy"])).tolist()) for s in reader]
    assert read(str(path), *fields) == judge and len(judge) == 40
    with fsspec.open(f"memory://compressed/shard.{suffix}", "wb") as file:
        file.write(path.read_bytes())
    assert read(f"memory://compressed/shard.{suffix}", *fields) == judge


@pytest.mark.parametrize("suffix", ["tar.gz", "tar.bz2", "tar.xz"])
def test_a_compressed_shard_cut_off_or_changed_is_named(tmp_path, suffix):
    whole = COMPRESSIONS[suffix](tar(NAMES))
    path = tmp_path / f"shard.{suffix}"
    middle = len(whole) // 2
    for damaged in (whole[:-1], whole[:middle], whole[:8], whole[:middle] + b"other" + whole[middle + 5 :]):
        path.write_bytes(damaged)
        with pytest.raises(ShardError, match=f"shard.{suffix}` is damaged"):
            read(str(path))


@pytest.mark.parametrize("workers", [0, 1])
def test_files_of_a_sample_have_to_be_adjacent(tmp_path, workers):
    (tmp_path / "scattered.tar").write_bytes(tar([f"{key}.{field}.npy" for field in "xy" for key in range(9)]))
    for batch_size in (2, 20):
        module = data_module(str(tmp_path / "scattered.tar"), "x", "y", num_workers=workers, batch_size=batch_size)
        for loader in (module.train_dataloader(), module.val_dataloader()):
            with pytest.raises(ShardError, match=r"scattered\.tar` has files of sample `0` in several.*sorted by name"):
                list(loader)
    # A field that the first files have, and which suffices, hides nothing.
    with pytest.raises(ShardError, match=r"scattered\.tar"):
        read(str(tmp_path / "scattered.tar"), "x")


def test_a_key_may_occur_again_with_the_same_files(tmp_path):
    (tmp_path / "again.tar").write_bytes(tar(["0.x.npy", "1.x.npy", "0.x.npy"]))
    assert [key for key, _ in read(str(tmp_path / "again.tar"))] == ["0", "1", "0"]


@pytest.mark.parametrize("name", ["frame.{}.x.npy", "v1.5_{}.x.npy", "{}.png.x"])
def test_keys_with_dots_are_explained(tmp_path, name):
    (tmp_path / "dots.tar").write_bytes(tar([name.format(key) for key in range(3)]))
    with pytest.raises(ShardError, match=r"dots\.tar` has dots in the keys.*keys end at the first dot"):
        read(str(tmp_path / "dots.tar"))


def test_a_missing_field_with_another_cause_stays_a_key_error(tmp_path):
    (tmp_path / "fine.tar").write_bytes(tar(["0.x.npy", "1.y.npy"]))
    with pytest.raises(KeyError, match="'1' has no field `x`"):
        read(str(tmp_path / "fine.tar"))


def test_a_backslash_takes_the_meaning_from_a_brace(tmp_path):
    folder = tmp_path / "a{b,c}"
    folder.mkdir()
    for number in range(2):
        (folder / f"{number}.tar").write_bytes(tar([f"{number}.x.npy"]))
    assert len(read(f"{tmp_path}/a\\{{b,c\\}}/{{0..1}}.tar")) == 2


def test_relative_shards_start_where_the_program_was_started(tmp_path, run_program):
    folder = tmp_path / "shards" / "coco2014" / "20k"
    folder.mkdir(parents=True)
    for number in range(65):
        (folder / f"shard-{number:06d}.tar").write_bytes(tar([f"{number}.x.npy"]))
    options = {"cwd": tmp_path, "DATASET_PREFIX": "shards"}
    done = run_program("ocl.cli.compute_dataset_size", "+dataset=coco2014_20k", **options)
    assert done.returncode == 0 and "Validation split size: 65" in done.stdout, done.stdout + done.stderr
