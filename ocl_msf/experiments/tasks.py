"""Runs commands in dependency order, one at a time or several in parallel."""

import contextlib
import fcntl
import os
import pty
import re
import shlex
import shutil
import struct
import subprocess
import sys
import termios
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Callable, Dict, List, Optional, Sequence, Tuple

AGAIN = "Run the same command again to go on from here."
PROGRESS = "[ocl_msf.training.progress]"  # marks the lines of output that are repeated; their text follows " - "


@dataclass(eq=False)
class Task:
    """A command that is skipped if its results exist.

    Attributes:
        title: its name in messages.
        command: returns its words, when it starts.
        log: the file that its output is appended to.
        done: whether its results exist; without this, it always runs.
        needs: tasks whose results it uses.
    """

    title: str
    command: Callable[[], List[str]]
    log: Path
    done: Optional[Callable[[], bool]] = None
    needs: List["Task"] = field(default_factory=list)


def assign(name: str, value: object) -> str:
    """An override as Hydra reads it, with quotes around what its grammar does not take without.

    >>> assign("load_checkpoint", "outputs/now/epoch0002-step0000020.ckpt")
    'load_checkpoint=outputs/now/epoch0002-step0000020.ckpt'
    >>> assign("load_checkpoint", "epoch=2-step=20.ckpt")
    "load_checkpoint='epoch=2-step=20.ckpt'"
    """
    text = str(value)
    quoted = "'" + text.replace("'", r"\'") + "'"
    return f"{name}={text if re.fullmatch('[0-9A-Za-z_/.+-]+', text) else quoted}"


def pasteable(words: Sequence[str]) -> str:
    """Quote a command line for the shell; words with single quotes, which Hydra needs, are put in double quotes."""
    plain = [f'"{word}"' if "'" in word and not set(word) & set('"$`!\\') else shlex.quote(word) for word in words]
    return " ".join(plain)


def gpu_workers(gpus: str) -> List[List[str]]:
    """One worker for each GPU: "2" means the first two, "2,5" these two, "" one worker that sees all devices.

    Raises:
        ValueError: the text has another form.
    """
    if not gpus:
        return [[]]
    if not all(part.isdigit() for part in gpus.split(",")) or gpus == "0":
        raise ValueError(f"gpus is a number from 1, or numbers of GPUs with commas between them; got {gpus!r}.")
    names = gpus.split(",") if "," in gpus else map(str, range(int(gpus)))
    return [["env", f"CUDA_VISIBLE_DEVICES={name}"] for name in names]


def run_all(tasks: Sequence[Task], workers: Sequence[Sequence[str]] = ((),)) -> None:
    """Run the tasks whose results are missing, each as soon as the tasks that it needs are done.

    The output of a task goes to its log. Its lines of progress are also printed, and so are its progress bars if there
    is one worker and a terminal.

    Args:
        tasks: in the order in which they are to start.
        workers: one for each task that may run at a time: the words to put before its command.

    Raises:
        SystemExit: a task failed or left no result; the tasks that were running have ended.
    """
    waiting = [task for task in tasks if task.done is None or not task.done()]
    missing = set(waiting)
    running: Dict[int, _Process] = {}
    failures: List[str] = []
    shown = len(workers) == 1 and sys.stderr.isatty()
    try:
        while running or (waiting and not failures):
            for index, words in enumerate(workers):
                task = next((task for task in waiting if not missing & set(task.needs)), None)
                if index not in running and task and not failures:
                    waiting.remove(task)
                    running[index] = _Process(task, words, shown)
            for index in [index for index, process in running.items() if process.ended]:
                process = running.pop(index)
                missing.remove(process.task)
                failures += process.failure()
            time.sleep(0.05)
    except BaseException as error:
        for process in running.values():
            process.stop(ask=not isinstance(error, KeyboardInterrupt))  # Ctrl-C has reached it as well
        raise
    if failures:
        sys.exit("\n".join([*failures, AGAIN]))


class _Process:
    """A running task."""

    def __init__(self, task: Task, words: Sequence[str], shown: bool):
        self.task = task
        self.begin = time.monotonic()
        command = [*words, *task.command()]
        print(f"{task.title}: started, log in {task.log}", flush=True)
        task.log.parent.mkdir(parents=True, exist_ok=True)
        ours, errors = _open_terminal() if shown else (None, subprocess.STDOUT)
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors)
        self.copiers = [threading.Thread(target=self._copy, daemon=True)]
        if ours is not None:
            os.close(errors)
            self.copiers.append(threading.Thread(target=self._draw, args=(ours,), daemon=True))
        for copier in self.copiers:
            copier.start()

    def _copy(self) -> None:
        """Copy stdout to the log, and print the lines of progress."""
        with self.process.stdout as printed, open(self.task.log, "ab") as log:
            for line in printed:
                log.write(line)
                log.flush()
                head, _, words = line.decode("utf-8", "replace").partition(" - ")
                if PROGRESS in head:
                    with contextlib.suppress(BrokenPipeError):
                        print(f"{self.task.title}: {words.strip()}", flush=True)

    def _draw(self, terminal: int) -> None:
        """Copy stderr to the log, except for progress bars, which begin with a carriage return: print these."""
        bar = False
        with open(self.task.log, "ab", buffering=0) as log, contextlib.suppress(OSError):  # at its end
            while True:
                written = os.read(terminal, 65536)
                bar = written.startswith(b"\r") or (bar and written == b"\n")
                if bar:
                    os.write(sys.stderr.fileno(), written)
                else:
                    log.write(written)
        os.close(terminal)

    @property
    def ended(self) -> bool:
        return self.process.poll() is not None

    def failure(self) -> List[str]:
        """The reason of a failure, with the end of the log; empty after success."""
        for copier in self.copiers:
            copier.join()
        title, status = self.task.title, self.process.returncode
        if not status and (self.task.done is None or self.task.done()):
            print(f"{title}: done in {time.monotonic() - self.begin:.0f} s", flush=True)
            return []
        ending = f"{title} ended with status {status}." if status else f"{title} ended without its result."
        lines = self.task.log.read_text(encoding="utf-8", errors="replace").splitlines()[-15:]
        return [*(f"  {line}" for line in lines), f"{ending} Its output is in {self.task.log}."]

    def stop(self, ask: bool) -> None:
        """Wait until it has saved and ended; `ask` it to by SIGTERM."""
        if ask:
            self.process.terminate()
        self.process.wait()
        for copier in self.copiers:
            copier.join(timeout=5)


def _open_terminal() -> Tuple[int, int]:
    """A pseudo-terminal of this terminal's size: our end, to read, and the end that a process writes to."""
    ours, theirs = pty.openpty()
    settings = termios.tcgetattr(theirs)
    settings[1] &= ~termios.OPOST  # bytes pass as they are
    termios.tcsetattr(theirs, termios.TCSANOW, settings)
    size = shutil.get_terminal_size()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", size.lines, size.columns, 0, 0))
    return ours, theirs
