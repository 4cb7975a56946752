"""Several devices, here processes on the CPU, share the work of `ocl-msf predict` and write what one writes."""

import multiprocessing
import os
import re
import signal
from fractions import Fraction

import numpy as np
import pytest
import torch
from PIL import Image

from ocl_msf.cli import main
from ocl_msf.files import DataError
from ocl_msf.inference.videos import write_video
from ocl_msf.results.devices import choose_devices
from ocl_msf.results.predict import _Bars, predict

pytestmark = [pytest.mark.needs_host, pytest.mark.oclf]


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    """Seven pictures, two videos, and three files that cannot be read."""
    folder = tmp_path_factory.mktemp("devices") / "inputs"
    (folder / "inner").mkdir(parents=True)
    pixels = np.random.default_rng(0).integers(0, 256, (80, 32, 48, 3), dtype=np.uint8)
    for number in range(7):
        Image.fromarray(pixels[number]).save(folder / ("inner" if number % 2 else ".") / f"{number}.png")
    for name, frames in (("inner/a.mp4", pixels[:70]), ("inner/b.mp4", pixels[70:])):
        write_video(folder / name, frames, Fraction(10))
    for name in ("broken.png", "inner/broken.mp4", "broken.tar"):
        (folder / name).write_text("neither picture nor video")
    return folder


@pytest.fixture(scope="module")
def expected(slate_run, inputs, tmp_path_factory):
    """The files that one device writes."""
    out = tmp_path_factory.mktemp("expected") / "out"
    assert predict(slate_run, [str(inputs)], out, batch_size=2, device="cpu") == (7, 2, 0, 3)
    return files(out)


def files(folder):
    """Names and contents; without contents, those of videos, since encoders may choose otherwise with their threads."""
    paths = [path for path in folder.rglob("*") if path.is_file()]
    return {path.relative_to(folder).as_posix(): path.suffix == ".mp4" or path.read_bytes() for path in paths}


def share(run, inputs, out):
    return predict(run, [str(inputs)], out, batch_size=2, device="cpu", devices="2")


def test_two_write_what_one_does_and_name_each_input_once(slate_run, inputs, expected, tmp_path, capsys):
    out = tmp_path / "out"
    command = ["predict", str(slate_run), str(inputs), "--out", str(out), "--batch-size", "2"]
    main([*command, "--device", "cpu", "--devices", "2"])
    printed = capsys.readouterr()
    assert "slots and masks of 7 pictures and 2 videos; 3 inputs could not be read" in printed.out
    assert len(re.findall(r"broken\.\w+ cannot be read", printed.err)) == 3
    assert files(out) == expected
    assert share(slate_run, inputs, out) == (0, 0, 9, 3)


def test_an_interruption_ends_all_and_the_same_call_goes_on(slate_run, inputs, expected, tmp_path, monkeypatch):
    def interrupted(self, key, frames):
        if frames:
            raise KeyboardInterrupt

    out = tmp_path / "out"
    monkeypatch.setattr(_Bars, "watch", interrupted)
    with pytest.raises(KeyboardInterrupt):
        share(slate_run, inputs, out)
    assert not multiprocessing.active_children()
    begun = files(out)
    assert "slots.safetensors" not in begun and not [name for name in begun if name.endswith(".partial")]
    monkeypatch.undo()
    pictures, videos, kept, unread = share(slate_run, inputs, out)
    assert (pictures + videos + kept, unread) == (9, 3) and files(out) == expected


def test_a_process_that_dies_is_named_and_an_empty_folder_is_removed(slate_run, inputs, tmp_path, monkeypatch):
    def kill(self, key, frames):
        os.kill(multiprocessing.active_children()[0].pid, signal.SIGKILL)

    monkeypatch.setattr(_Bars, "watch", kill)
    with pytest.raises(DataError, match="process on cpu ended with status -9, perhaps because memory ran out. Run the"):
        share(slate_run, inputs, tmp_path / "out")
    monkeypatch.undo()
    with pytest.raises(DataError, match="Nothing could be read of 3 inputs"):
        predict(slate_run, [str(path) for path in inputs.rglob("broken.*")], tmp_path / "none", 2, "cpu", devices="2")
    assert not (tmp_path / "none").exists() and not multiprocessing.active_children()


@pytest.mark.parametrize(
    "device, devices, chosen",
    [
        (None, None, ["cuda"]),
        ("cpu", None, ["cpu"]),
        ("cpu", "3", ["cpu"] * 3),
        (None, "2", ["cuda:0", "cuda:1"]),
        ("cuda", "0,3", ["cuda:0", "cuda:3"]),
        (None, "all", [f"cuda:{number}" for number in range(4)]),
        (None, "0", "--devices 0: give a number of GPUs from 1 to 4, all, or some of 0 to 3"),
        (None, "5", "--devices 5: give"),
        (None, "0,4", "--devices 0,4: give"),
        (None, "two", "--devices two: give"),
        ("cuda:1", "2", "Choose --device cuda:1 or --devices 2, not both"),
        ("cpu", "all", "needs GPUs, and there are 0. With --device cpu it is a number of processes"),
    ],
)
def test_devices_are_a_number_all_or_some(monkeypatch, device, devices, chosen):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    if isinstance(chosen, list):
        assert choose_devices(device, devices) == chosen
    else:
        with pytest.raises(DataError, match=chosen):
            choose_devices(device, devices)
