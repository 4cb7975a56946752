import dataclasses
import json
import multiprocessing
import os
import random
import shutil
import subprocess
import sys
import tarfile
import time
from contextlib import nullcontext

import pytest

from ocl_msf.data.lmdb import write_lmdb
from ocl_msf.data.shards import Conversion, write_dataset
from ocl_msf.data.summary import describe, verify
from ocl_msf.data.synthetic.scenes import make_scenes
from ocl_msf.data.workers import Filtered, Rejected, run_tasks
from ocl_msf.files import DataError


def encode(item):
    """Every third item is too dark, and number 7 is torn."""
    if item % 3 == 0:
        raise Rejected("too dark", f"file {item}", "mean 0")
    if item == 7:
        raise Rejected("torn", f"file {item}")
    return f"{item:06d}", {"count.txt": str(item).encode()}


def conversion(count=20):
    return Conversion(options={}, splits={"train": range(count), "val": range(100, 110)}, encode=encode)


def contents(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def keys(folder, split):
    return [
        member.name.split(".")[0]
        for path in sorted(folder.glob(f"{split}/*.tar"))
        for member in tarfile.open(path).getmembers()
    ]


@pytest.mark.parametrize("workers", [1, 2])
def test_rejected_samples_are_left_out_counted_and_named(tmp_path, workers):
    summary = write_dataset(tmp_path, conversion(), 5, workers)
    kept = {
        "train": [i for i in range(20) if i % 3 and i != 7],
        "val": [i for i in range(100, 110) if i % 3],
    }
    for split, numbers in kept.items():
        assert keys(tmp_path, split) == [f"{i:06d}" for i in numbers]
        shards = summary["splits"][split]["shards"]
        assert summary["splits"][split]["samples"] == len(numbers) == sum(shard["samples"] for shard in shards)
    dark = [i for i in [*range(20), *range(100, 110)] if i % 3 == 0]
    assert summary["rejected"] == {
        "too dark": {"count": len(dark), "names": [f"file {i}" for i in dark]},
        "torn": {"count": 1, "names": ["file 7"]},
    }
    assert json.loads((tmp_path / "summary.json").read_text()) == summary == verify(tmp_path)
    assert describe(summary).splitlines()[1:] == [
        f"left out {len(dark)}: too dark (file 0, file 3, file 6, ...)",
        "left out 1: torn (file 7)",
    ]


def test_the_names_are_bounded_but_the_counts_are_not(tmp_path):
    summary = write_dataset(tmp_path, conversion(900), 1000, 1)
    assert summary["rejected"]["too dark"]["count"] == 303
    assert summary["rejected"]["too dark"]["names"] == [f"file {i}" for i in range(0, 300, 3)]


def test_resuming_leaves_the_same_bytes_as_one_run(tmp_path):
    whole = write_dataset(tmp_path / "a" / "data", conversion(), 5, 1)
    write_dataset(tmp_path / "b" / "data", conversion(), 5, 1)
    (tmp_path / "b" / "data" / "summary.json").rename(tmp_path / "b" / "data" / "unfinished.json")
    (tmp_path / "b" / "data" / "train" / "shard-000001.tar").unlink()
    assert write_dataset(tmp_path / "b" / "data", conversion(), 5, 1) == whole
    assert contents(tmp_path / "a") == contents(tmp_path / "b")


@pytest.mark.parametrize("workers", [1, 2])
def test_strict_makes_the_first_rejection_an_error(tmp_path, workers):
    with pytest.raises(DataError, match=r"file \d+: too dark \(mean 0\)\. .*without --strict"):
        write_dataset(tmp_path, conversion(), 5, workers, strict=True)
    assert not (tmp_path / "summary.json").exists()


def test_strict_also_looks_at_shards_of_an_earlier_run(tmp_path):
    write_dataset(tmp_path, conversion(), 5, 1)
    with pytest.raises(DataError, match="too dark"):
        write_dataset(tmp_path, conversion(), 5, 1, strict=True)


@pytest.mark.slow
@pytest.mark.parametrize("form", ["webdataset", "lmdb"])
def test_killed_at_any_moment_it_goes_on_to_the_same_bytes(tmp_path, form):
    """SIGKILL, twelve times for each format, at random moments of runs that resume each other."""
    make_scenes(tmp_path / "raw", 24, size=(32, 24), workers=1)
    options = ["--splits", "train=:18", "val=18:", "--size", "16", "--samples-per-shard", "3", "--format", form]
    module = [sys.executable, "-c", RUN, "clevrtex", str(tmp_path / "raw")]
    subprocess.run([*module, str(tmp_path / "whole"), *options, "--workers", "1"], check=True)
    whole = contents(tmp_path / "whole")
    rng = random.Random(0)
    killed = tmp_path / "killed"
    for _ in range(4):
        shutil.rmtree(killed, ignore_errors=True)
        for _ in range(3):  # the later ones resume and are killed, too
            process = subprocess.Popen(
                [*module, str(killed), *options, "--workers", "1"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
            )
            process.stdout.readline()  # it is about to convert
            time.sleep(rng.uniform(0, 0.15))
            process.kill()
            process.communicate()
        subprocess.run([*module, str(killed), *options, "--workers", "1"], check=True)
        left = {name: content for name, content in contents(killed).items() if not name.endswith(".partial")}
        assert left == whole


RUN = "import sys; from ocl_msf.cli import main; print('ready', flush=True); main(['convert', *sys.argv[1:]])"


def test_what_a_filter_leaves_out_is_counted_but_no_error_to_strict(tmp_path):
    def encode(item):
        raise Filtered("more than 10 objects", f"file {item}")

    summary = write_dataset(tmp_path, dataclasses.replace(conversion(), encode=encode), 5, 1, strict=True)
    assert summary["rejected"]["more than 10 objects"]["count"] > 0


def filtered(item):
    """What a filter leaves out of every shard, and one torn file."""
    if item % 3 == 0:
        raise Filtered("more than 10 objects", f"file {item}")
    return encode(item)


def forbidden(item):
    raise AssertionError(f"{item} is encoded again")


@pytest.mark.parametrize("write", [write_dataset, write_lmdb])
def test_strict_leaves_alone_what_a_filter_has_cut(tmp_path, write):
    torn = dataclasses.replace(conversion(), encode=filtered)
    whole = dataclasses.replace(torn, splits={"train": range(6), "val": range(100, 110)})
    summary = write(tmp_path / "whole", whole, 5, 1)
    names = ["file 0", "file 3", "file 102", "file 105", "file 108"]
    assert summary["rejected"] == {"more than 10 objects": {"count": 5, "names": names, "filtered": True}}
    again = dataclasses.replace(whole, encode=forbidden)
    assert write(tmp_path / "whole", again, 5, 1, strict=True) == summary
    write(tmp_path / "torn", torn, 5, 1)
    with pytest.raises(DataError, match="file 7: torn"):
        write(tmp_path / "torn", torn, 5, 1, strict=True)


def test_only_damage_is_looked_at_again_by_a_strict_run(tmp_path):
    torn = dataclasses.replace(conversion(), encode=filtered)
    write_dataset(tmp_path, torn, 5, 1)
    seen = []

    def repaired(item):
        seen.append(item)
        return filtered(item) if item != 7 else (f"{item:06d}", {"count.txt": b"7"})

    summary = write_dataset(tmp_path, dataclasses.replace(torn, encode=repaired), 5, 1, strict=True)
    assert seen == [5, 6, 7, 8, 9] and set(summary["rejected"]) == {"more than 10 objects"}


def test_a_layout_names_folders_and_numbers_of_shards(tmp_path):
    laid_out = dataclasses.replace(conversion(), layout={"train": ("trainaug", 7), "val": ("val", 99)})
    summary = write_dataset(tmp_path / "a", laid_out, workers=1)
    assert [path.name for path in sorted((tmp_path / "a" / "trainaug").iterdir())] == [
        f"shard-{number:06d}.tar" for number in range(7)
    ]
    assert len(summary["splits"]["val"]["shards"]) == 10  # one for each sample
    assert keys(tmp_path / "a", "trainaug") == [f"{i:06d}" for i in range(20) if i % 3 and i != 7]
    write_dataset(tmp_path / "b", laid_out, 5, 1)
    assert len(list((tmp_path / "b" / "trainaug").iterdir())) == 4  # what the user asks for counts
    write_dataset(tmp_path / "b", laid_out, 3, 1, overwrite=True)
    assert len(list((tmp_path / "b" / "trainaug").iterdir())) == 7


def test_a_split_without_samples_is_empty(tmp_path):
    summary = write_dataset(tmp_path, dataclasses.replace(conversion(), splits={"train": [], "val": range(4)}), 5, 1)
    assert [content["samples"] for content in summary["splits"].values()] == [0, 2]


def end_process(item):
    os._exit(1)  # like a process that the system kills


def test_the_end_of_a_worker_is_an_error_and_no_wait_for_ever(tmp_path):
    with pytest.raises(DataError, match="A worker process was killed.*continue"):
        write_dataset(tmp_path, dataclasses.replace(conversion(), encode=end_process), 5, 2)


def test_an_interruption_ends_the_workers(tmp_path):
    before = set(multiprocessing.active_children())
    results = run_tasks(time.sleep, [0, 600, 600], 2, "sleep")
    assert next(results) is None
    assert len(set(multiprocessing.active_children()) - before) == 2
    results.close()
    assert set(multiprocessing.active_children()) == before


@pytest.mark.parametrize("first, second", [(write_dataset, write_lmdb), (write_lmdb, write_dataset)])
@pytest.mark.parametrize("interrupted", [False, True])
def test_a_folder_holds_one_format(tmp_path, monkeypatch, first, second, interrupted):
    def stop(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt) if interrupted else nullcontext():
        if interrupted:
            patch.setattr(
                "ocl_msf.data.shards._write_shard" if first is write_dataset else "ocl_msf.data.lmdb._pack", stop
            )
        first(tmp_path, conversion(), 5, 1)
    before = contents(tmp_path)
    assert before
    forms = {write_dataset: "webdataset", write_lmdb: "lmdb"}
    message = f"holds the format {forms[first]}, not {forms[second]}. Choose another --name, or --overwrite"
    with pytest.raises(DataError, match=message):
        second(tmp_path, conversion(), 5, 1)
    assert contents(tmp_path) == before
    assert second(tmp_path, conversion(), 5, 1, overwrite=True)["format"] == forms[second]
    alone = tmp_path / "alone" / tmp_path.name
    second(alone, conversion(), 5, 1)
    expected = contents(alone)
    shutil.rmtree(tmp_path / "alone")
    assert contents(tmp_path) == expected


@pytest.mark.parametrize("write", [write_dataset, write_lmdb])
def test_summaries_of_version_0_1_are_read(tmp_path, write):
    summary = write(tmp_path, conversion(), 5, 1)
    old = {key: value for key, value in summary.items() if key not in ("version", "format")}
    if write is write_lmdb:
        old["options"] = {**old["options"], "format": "lmdb"}
    (tmp_path / "summary.json").write_text(json.dumps({"format": 1, **old}))
    assert verify(tmp_path) == summary
    assert write(tmp_path, dataclasses.replace(conversion(), encode=forbidden), 5, 1) == summary
