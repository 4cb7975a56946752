"""Files that appear whole or not at all, and tasks spread over processes."""

import argparse
import contextlib
import functools
import multiprocessing
import os
import signal
import sys
import threading
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any, BinaryIO, Callable, Iterable, Iterator, List, Sequence, Set

from tqdm import tqdm


class DataError(Exception):
    """The user's data or paths are not as they have to be; the message says what and where."""


class Rejected(Exception):
    """One sample that cannot be used or that a filter leaves out.

    Args:
        reason: A few words, the same for all samples of this kind; they are counted by it.
        sample: Name of the sample, such as its file.
        detail: What is wrong with this one.
    """

    def __init__(self, reason: str, sample: str, detail: str = "") -> None:
        super().__init__(reason, sample, detail)  # all of them, or it could not leave a worker process
        self.reason, self.sample, self.detail = reason, sample, detail

    def __str__(self) -> str:
        return f"{self.sample}: {self.reason}" + (f" ({self.detail})" if self.detail else "")


class Filtered(Rejected):
    """A sample in good order that the filter of its data set leaves out; no error, not even to a strict conversion."""


@contextlib.contextmanager
def command_line() -> Iterator[None]:
    """End the program with one line for what a user has to correct, and for Ctrl-C."""
    try:
        yield
    except DataError as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit("interrupted: run the same command again to go on")


def positive(text: str) -> int:
    """The argument type of whole numbers from 1."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text} is less than 1")
    return number


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """Open a file to write that takes its name only when it is complete.

    Raises:
        DataError: The system does not let it be written; a full disk, for example.
    """
    partial = path.with_name(path.name + ".partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(partial, "wb") as file:
            yield file
        os.replace(partial, path)
    except BaseException as error:
        with contextlib.suppress(OSError):
            partial.unlink()
        if isinstance(error, OSError):
            raise DataError(f"{path} was not written: {error.strerror}. Correct that and run again.") from error
        raise


def _prepare_worker() -> None:
    """Leave Ctrl-C to the parent, and end with it, however it ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()

    def follow() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=follow, daemon=True).start()


def run_tasks(
    function: Callable[[Any], Any], tasks: Sequence[Any], workers: int, description: str, chunk: int = 1
) -> Iterable[Any]:
    """Yield `function(task)` for all tasks, in any order, with a progress bar.

    Args:
        function: Picklable when `workers` is more than 1.
        tasks: Arguments, one each.
        workers: Processes; 0 and 1 work in this one.
        description: Title of the progress bar.
        chunk: Tasks handed to a process at a time.

    Raises:
        DataError: A process was killed.
    """
    progress = {"total": len(tasks), "desc": description, "disable": not tasks}
    if workers <= 1 or len(tasks) <= 1:
        yield from tqdm(map(function, tasks), **progress)
        return
    chunks = [tasks[start : start + chunk] for start in range(0, len(tasks), chunk)]
    with tqdm(**progress) as bar:
        for results in _spread(functools.partial(_each, function), chunks, min(workers, len(chunks))):
            for result in results:
                yield result
                bar.update()


def _each(function: Callable[[Any], Any], tasks: Sequence[Any]) -> List[Any]:
    return [function(task) for task in tasks]


def _spread(function: Callable[[Any], Any], tasks: Iterable[Any], workers: int) -> Iterator[Any]:
    """Results as they come; the processes end at once when this does."""
    others = set(multiprocessing.active_children())
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(workers, mp_context=context, initializer=_prepare_worker)
    waiting: Set[Future[Any]] = set()
    try:
        for task in tasks:
            waiting.add(pool.submit(function, task))
            if len(waiting) == 2 * workers:
                done, waiting = wait(waiting, return_when=FIRST_COMPLETED)
                yield from (future.result() for future in done)
        while waiting:
            done, waiting = wait(waiting, return_when=FIRST_COMPLETED)
            yield from (future.result() for future in done)
    except BrokenProcessPool as error:
        raise DataError(
            "A worker process was killed, perhaps because the memory is full. Run the same command again to go on, "
            "with fewer --workers."
        ) from error
    except BaseException:
        for process in set(multiprocessing.active_children()) - others:
            process.terminate()
        raise
    finally:
        pool.shutdown()
