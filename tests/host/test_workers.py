"""Data workers: what they inherit, and what becomes of one that does not answer."""

import gc
import multiprocessing
import sys
import threading

import numpy as np
import pytest
import webdataset
from ocl.datasets import WebdatasetDataModule
from ocl.transforms import SimpleTransform

SCRIPT = """
import os, sys
from ocl.datasets import WebdatasetDataModule
from ocl.transforms import Map

class Odd(Exception):
    pass

def fail(sample):
    raise Odd("of the script")

def read(transform):
    transforms = {"t": Map(transform, ["x"], False)}
    module = WebdatasetDataModule(val_shards=sys.argv[1], eval_transforms=transforms, batch_size=4, num_workers=1)
    return list(module.val_dataloader())

print("begins")
factor = 3

def describe(sample):
    return {"y": factor * sample["x"], "where": os.getcwd(), "late": os.environ["LATE"]}

for late in ("1", "2"):
    os.environ["LATE"] = late
    os.mkdir(late)
    os.chdir(late)
    (batch,) = read(describe)
    assert batch["y"].tolist() == [0, 3, 6, 9] and batch["late"] == 4 * [late]
    assert batch["where"] == 4 * [os.getcwd()], batch
try:
    read(fail)
except Odd as error:
    print("caught", str(error).splitlines()[-1])
"""


@pytest.fixture
def shard(tmp_path):
    path = str(tmp_path / "0.tar")
    with webdataset.TarWriter(path) as sink:
        for key in range(4):
            sink.write({"__key__": str(key), "x.npy": np.array(key)})
    return path


def test_a_script_needs_no_guard_and_may_use_closures(shard, run_limited, tmp_path):
    """Workers have the environment and the folder of the moment, and do not run the script again."""
    (tmp_path / "script.py").write_text(SCRIPT)
    status, printed = run_limited([sys.executable, str(tmp_path / "script.py"), shard], cwd=tmp_path)
    assert status == 0, printed
    assert printed.count("begins") == 1 and "caught Odd: of the script" in printed


def test_where_there_is_no_server_torch_starts_workers_itself(shard, run_limited, tmp_path):
    """As on Windows."""
    without = "from multiprocessing import context\ndel context.ForkServerProcess, context.ForkServerContext\n"
    (tmp_path / "script.py").write_text(without + SCRIPT)
    status, printed = run_limited([sys.executable, str(tmp_path / "script.py"), shard], cwd=tmp_path)
    assert status == 0 and "caught Odd: of the script" in printed, printed


def stuck(value):
    threading.Event().wait()


def test_a_worker_that_gives_nothing_is_named_and_ended(shard):
    transforms = {"t": SimpleTransform({"x": stuck}, False)}
    module = WebdatasetDataModule(shard, train_transforms=transforms, batch_size=2, num_workers=1, worker_timeout=1)
    with pytest.raises(RuntimeError, match=r"Rank 0 got no batch from data worker 0 \(process \d+\) for 1 s"):
        next(iter(module.train_dataloader()))


def refuse_the_last(value):
    if value == 3:
        raise ValueError("the last")
    return value


def test_a_worker_whose_error_was_raised_here_ends_by_itself(shard):
    """It is not ended by a signal, for which torch would wait 5 s."""
    module = WebdatasetDataModule(
        val_shards=shard,
        eval_transforms={"t": SimpleTransform({"x": refuse_the_last}, False)},
        batch_size=2,
        num_workers=1,
    )
    batches = iter(module.val_dataloader())
    next(batches)
    (worker,) = multiprocessing.active_children()
    with pytest.raises(ValueError, match="the last"):
        next(batches)
    del batches
    gc.collect()
    assert worker.exitcode == 0


def test_a_program_over_its_limit_prints_where_its_threads_are(run_limited):
    """Those of all of its processes, which may write at the same time."""
    wait = "import threading; threading.Event().wait()"
    status, printed = run_limited([sys.executable, "-c", wait], seconds=3)
    assert status != 0 and "in wait" in printed
    program = f"import subprocess, sys; print('on', flush=True); subprocess.run([sys.executable, '-c', {wait!r}])"
    status, printed = run_limited([sys.executable, "-c", program], seconds=3)
    assert status != 0 and printed.count("Fatal Python error: ") == 2
