"""Commands that need each other's results, run one after the other or side by side."""

import contextlib
import fcntl
import os
import pty
import shlex
import shutil
import signal
import struct
import subprocess
import sys
import termios
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Callable, Dict, Iterator, List, Optional, Sequence, Tuple

AGAIN = "Run the same command again to go on from here."
PROGRESS = "[ocl_msf.training.progress]"  # in the lines of a log that are repeated, before " - " and the words


@dataclass(eq=False)
class Task:
    """A command, and how to tell that it need not run (again).

    Attributes:
        title: what to call it.
        command: its words, asked for when it starts.
        log: takes what it prints, behind what is there already.
        done: whether its results are there; without, it always runs.
        needs: tasks whose results it takes.
    """

    title: str
    command: Callable[[], List[str]]
    log: Path
    done: Optional[Callable[[], bool]] = None
    needs: List["Task"] = field(default_factory=list)


@contextlib.contextmanager
def command_line() -> Iterator[None]:
    """End a program in order: on SIGTERM, on Ctrl-C, and when what reads its output, such as `head`, has enough."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        yield
        sys.stdout.flush()
    except KeyboardInterrupt:
        print(f"Interrupted. {AGAIN}", file=sys.stderr)
        sys.exit(128 + signal.SIGINT)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python complains when it flushes at exit
        sys.exit(1)


def pasteable(words: Sequence[str]) -> str:
    """Write a command line as a shell reads it; a word with quotes in it, of Hydra's grammar, in double quotes."""
    plain = [f'"{word}"' if "'" in word and not set(word) & set('"$`!\\') else shlex.quote(word) for word in words]
    return " ".join(plain)


def gpu_workers(gpus: str) -> List[List[str]]:
    """One worker for each GPU: "2" are the first two, "2,5" these two, "" is one worker that sees what there is.

    Raises:
        ValueError: not of this form.
    """
    if not gpus:
        return [[]]
    if not all(part.isdigit() for part in gpus.split(",")) or gpus == "0":
        raise ValueError(f"gpus is a number from 1, or numbers of GPUs with commas between them; got {gpus!r}.")
    names = gpus.split(",") if "," in gpus else map(str, range(int(gpus)))
    return [["env", f"CUDA_VISIBLE_DEVICES={name}"] for name in names]


def run_all(tasks: Sequence[Task], workers: Sequence[Sequence[str]] = ((),)) -> None:
    """Run the tasks whose results are missing, each as soon as those that it needs are done.

    What a task prints goes to its log, and its lines of progress are repeated; so are its bars, where a single worker
    has a terminal.

    Args:
        tasks: in the order in which they are to start.
        workers: as many tasks run at the same time; each puts its words in front of their commands.

    Raises:
        SystemExit: a task failed, or left no result; those that were running have ended.
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
                failures += process.complaints()
            time.sleep(0.05)
    except BaseException as error:
        for process in running.values():
            process.stop(ask=not isinstance(error, KeyboardInterrupt))  # Ctrl-C has reached it as well
        raise
    if failures:
        sys.exit("\n".join([*failures, AGAIN]))


class _Process:
    """A task that runs."""

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
        """Log what it prints, and repeat its lines of progress."""
        with self.process.stdout as printed, open(self.task.log, "ab") as log:
            for line in printed:
                log.write(line)
                log.flush()
                head, _, words = line.decode("utf-8", "replace").partition(" - ")
                if PROGRESS in head:
                    with contextlib.suppress(BrokenPipeError):
                        print(f"{self.task.title}: {words.strip()}", flush=True)

    def _draw(self, terminal: int) -> None:
        """Log what it writes to stderr, but for bars, which begin with a carriage return: show these."""
        bar = False
        with open(self.task.log, "ab", buffering=0) as log, contextlib.suppress(OSError):  # when nobody writes any more
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

    def complaints(self) -> List[str]:
        """What went wrong, with the end of the log; nothing if nothing did."""
        for copier in self.copiers:
            copier.join()
        title, status = self.task.title, self.process.returncode
        if not status and (self.task.done is None or self.task.done()):
            print(f"{title}: done in {time.monotonic() - self.begin:.0f} s", flush=True)
            return []
        ending = f"{title} ended with status {status}." if status else f"{title} ended without its result."
        lines = self.task.log.read_text(encoding="utf-8", errors="replace").splitlines()[-15:]
        return [*(f"  {line}" for line in lines), f"{ending} All that it printed is in {self.task.log}."]

    def stop(self, ask: bool) -> None:
        """Let it save what it has, and wait for it."""
        if ask:
            self.process.terminate()
        self.process.wait()
        for copier in self.copiers:
            copier.join(timeout=5)


def _open_terminal() -> Tuple[int, int]:
    """A terminal as wide as this one, its two ends: ours, to read, and that for a process to write to."""
    ours, theirs = pty.openpty()
    settings = termios.tcgetattr(theirs)
    settings[1] &= ~termios.OPOST  # bytes pass as they are
    termios.tcsetattr(theirs, termios.TCSANOW, settings)
    size = shutil.get_terminal_size()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", size.lines, size.columns, 0, 0))
    return ours, theirs
