"""Commands that need each other: their order, their number at a time, what is said of them, and how they end."""

import functools
import os
import pty
import shlex
import signal
import subprocess
import sys
import time

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser

from ocl_msf.experiments.tasks import Task, assign, gpu_workers, pasteable, run_all


def make(folder, name, code="", needs=()):
    """A task that writes a line with its name into `order`, when it starts and when it ends, and then a file."""
    log = f"open({str(folder / 'order')!r}, 'a').write"
    lines = [f"{log}('+{name} ')", code, f"open({str(folder / name)!r}, 'w')", f"{log}('-{name} ')"]
    command = [sys.executable, "-c", "import os, sys, time\n" + "\n".join(lines)]
    return Task(name, lambda: command, folder / "logs" / name, (folder / name).exists, list(needs))


def order(folder):
    return (folder / "order").read_text().split()


def test_one_at_a_time_in_order_and_only_what_is_missing(tmp_path, capfd):
    (tmp_path / "b").touch()
    a, b = make(tmp_path, "a"), make(tmp_path, "b")
    run_all([a, b, make(tmp_path, "c", needs=[a, b])])
    assert order(tmp_path) == ["+a", "-a", "+c", "-c"]
    assert capfd.readouterr().out.count("done in") == 2


def test_as_many_at_a_time_as_there_are_workers_and_needs_first(tmp_path):
    """The first two wait for each other, so they end only if they run side by side."""

    def meet(other):
        return f"while '+{other} ' not in open({str(tmp_path / 'order')!r}).read(): time.sleep(0.01)"

    a, b = make(tmp_path, "a", meet("b")), make(tmp_path, "b", meet("a"))
    run_all([a, make(tmp_path, "c", needs=[a, b]), b], [[], []])
    assert set(order(tmp_path)[:2]) == {"+a", "+b"} and order(tmp_path)[-2:] == ["+c", "-c"]


def test_every_worker_has_its_gpu(tmp_path):
    code = f"open({str(tmp_path)!r} + '/gpu' + os.environ['CUDA_VISIBLE_DEVICES'], 'w'); time.sleep(0.3)"
    run_all([make(tmp_path, name, code) for name in "abcd"], gpu_workers("2"))
    assert {path.name for path in tmp_path.glob("gpu*")} == {"gpu0", "gpu1"}


def test_gpus_are_a_number_or_a_list():
    assert gpu_workers("") == [[]]
    assert gpu_workers("2") == [["env", "CUDA_VISIBLE_DEVICES=0"], ["env", "CUDA_VISIBLE_DEVICES=1"]]
    assert gpu_workers("4,7") == [["env", "CUDA_VISIBLE_DEVICES=4"], ["env", "CUDA_VISIBLE_DEVICES=7"]]
    for wrong in ("0", "two", "1,", "-1"):
        with pytest.raises(ValueError, match="gpus is a number"):
            gpu_workers(wrong)


PLACES = [
    "/a/b-c_1/epoch0002-step0000020.ckpt",
    "a b/c.ckpt",
    "/a/epoch=2-step=20.ckpt",
    "/o'clock/[1,2]{x}.ckpt",
    "/é",
]


@pytest.mark.parametrize("place", PLACES)
def test_hydra_reads_a_path_whatever_it_is_called(place):
    word = assign("key", place)
    assert OverridesParser.create().parse_override(word).value() == place
    assert ("'" in word) == (place != PLACES[0]) and shlex.split(pasteable([word])) == [word]


@pytest.mark.parametrize("code, words", [("sys.exit('lost')", "status 1"), ("os._exit(0)", "without its result")])
def test_a_failure_stops_what_comes_after_and_shows_the_end_of_the_log(tmp_path, code, words):
    a = make(tmp_path, "a", "print('first'); sys.stdout.flush(); " + code)
    with pytest.raises(SystemExit) as stopped:
        run_all([a, make(tmp_path, "b")])
    assert f"a ended {'with ' if 'status' in words else ''}{words}" in str(stopped.value)
    assert "  first\n" in str(stopped.value) and "Run the same command again" in str(stopped.value)
    assert order(tmp_path) == ["+a"]


def test_lines_of_progress_are_repeated_and_all_lines_logged(tmp_path, capfd):
    code = "print('[now][ocl_msf.training.progress][INFO] - slate: step 2 of 4'); print('other words')"
    for _ in range(2):  # a log goes on
        run_all([make(tmp_path, "a", code)])
        (tmp_path / "a").unlink()
    printed = capfd.readouterr().out
    assert printed.count("a: slate: step 2 of 4\n") == 2 and "other words" not in printed
    assert (tmp_path / "logs" / "a").read_text().count("other words") == 2


SCRIPT = """
import sys
from pathlib import Path
from ocl_msf.experiments.tasks import Task, run_all
from ocl_msf.cli._app import ending_in_order
folder = Path(sys.argv[1])
code = '''
import signal, sys, time
def save(number, frame):
    print("saving", flush=True)
    open(sys.argv[1] + "/saved", "w")
    sys.exit(130)
signal.signal(signal.SIGINT, save)
signal.signal(signal.SIGTERM, save)
print("words", flush=True)
print("a warning", file=sys.stderr, flush=True)
time.sleep(0.1)
print(chr(13) + "bar", end="", file=sys.stderr, flush=True) if sys.stderr.isatty() else None
time.sleep(0.1)
open(sys.argv[1] + "/started", "w")
time.sleep(60)
'''
with ending_in_order():
    run_all([Task("long", lambda: [sys.executable, "-c", code, str(folder)], folder / "log")])
"""


def start(folder, **options):
    heed = functools.partial(signal.signal, signal.SIGINT, signal.SIG_DFL)  # in the background it would be ignored
    command = [sys.executable, "-c", SCRIPT, str(folder)]
    process = subprocess.Popen(command, start_new_session=True, preexec_fn=heed, **options)
    while not (folder / "started").exists():
        assert process.poll() is None
        time.sleep(0.02)
    return process


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_what_runs_may_save_before_all_ends(tmp_path, number):
    """Ctrl-C goes to everything on the terminal, SIGTERM to the runner alone."""
    process = start(tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    os.killpg(process.pid, number) if number == signal.SIGINT else process.send_signal(number)
    _, complaint = process.communicate(timeout=600)
    assert process.returncode == 128 + number and (tmp_path / "saved").exists()
    ended = "Terminated" if number == signal.SIGTERM else "Interrupted"
    assert complaint == f"{ended}. Run the same command again to go on from here.\n"


def test_a_single_task_may_draw_bars_on_the_terminal_and_nothing_else(tmp_path):
    ours, theirs = pty.openpty()
    process = start(tmp_path, stdout=theirs, stderr=theirs)
    os.killpg(process.pid, signal.SIGINT)
    process.wait(timeout=600)
    os.close(theirs)
    seen = os.read(ours, 10000).decode()
    assert "\rbar" in seen and "words" not in seen and "a warning" not in seen
    assert set((tmp_path / "log").read_text().splitlines()) == {"words", "a warning", "saving"}


def test_commands_can_be_pasted():
    words = ["ocl_train", "a=1", "folder='/a b/c'", "x={a:1}", "y='$HOME'", 'it\'s "$x"']
    line = pasteable(words)
    assert line.startswith("ocl_train a=1 \"folder='/a b/c'\"")
    read = subprocess.run(["bash", "-c", f"printf '%s\\n' {line}"], capture_output=True, text=True)
    assert read.stdout.splitlines() == words
