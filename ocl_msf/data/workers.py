"""Work spread over processes, and samples that cannot be used."""

import functools
import multiprocessing
import os
import signal
import threading
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from typing import Any, Callable, Iterable, Iterator, List, Sequence, Set

from tqdm import tqdm

from ocl_msf.files import DataError


class Rejected(Exception):
    """A sample that cannot be used.

    Args:
        reason: a few words, the same for all samples of this kind: they are counted by it.
        sample: name of the sample, such as its file.
        detail: what is wrong with this one.
    """

    def __init__(self, reason: str, sample: str, detail: str = "") -> None:
        super().__init__(reason, sample, detail)  # all three, or it could not leave a worker process
        self.reason, self.sample, self.detail = reason, sample, detail

    def __str__(self) -> str:
        return f"{self.sample}: {self.reason}" + (f" ({self.detail})" if self.detail else "")


class Filtered(Rejected):
    """A valid sample that the filter of its data set removes; not an error, even with --strict."""


def run_tasks(
    function: Callable[[Any], Any], tasks: Sequence[Any], workers: int, description: str, chunk: int = 1
) -> Iterable[Any]:
    """Yield `function(task)` for all tasks, in any order, with a progress bar.

    Args:
        function: must be picklable if `workers` is more than 1.
        tasks: one argument per call.
        workers: number of processes; with 0 or 1, all work is done in this one.
        description: title of the progress bar.
        chunk: number of tasks given to a process at a time.

    Raises:
        DataError: a process was killed.
    """
    progress = {"total": len(tasks), "desc": description, "disable": not tasks}
    if workers <= 1 or len(tasks) <= 1:
        yield from tqdm(map(function, tasks), **progress)
        return
    chunks = [tasks[start : start + chunk] for start in range(0, len(tasks), chunk)]
    with tqdm(**progress) as bar:
        for results in _run_in_pool(functools.partial(_map_list, function), chunks, min(workers, len(chunks))):
            for result in results:
                yield result
                bar.update()


def _map_list(function: Callable[[Any], Any], tasks: Sequence[Any]) -> List[Any]:
    return [function(task) for task in tasks]


def _run_in_pool(function: Callable[[Any], Any], tasks: Iterable[Any], workers: int) -> Iterator[Any]:
    """Yield results as they come; the processes end as soon as this generator is closed."""
    others = set(multiprocessing.active_children())
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(workers, mp_context=context, initializer=_prepare_worker)
    pending: Set[Future[Any]] = set()
    try:
        for task in tasks:
            pending.add(pool.submit(function, task))
            if len(pending) == 2 * workers:
                done, pending = wait(pending, return_when=FIRST_COMPLETED)
                yield from (future.result() for future in done)
        while pending:
            done, pending = wait(pending, return_when=FIRST_COMPLETED)
            yield from (future.result() for future in done)
    except BrokenProcessPool as error:
        raise DataError(
            "A worker process was killed, perhaps because memory ran out. Run the same command again to continue, "
            "with fewer --workers."
        ) from error
    except BaseException:
        for process in set(multiprocessing.active_children()) - others:
            process.terminate()
        raise
    finally:
        pool.shutdown()


def _prepare_worker() -> None:
    """Leave Ctrl-C to the parent process, and end when it ends, for whatever reason."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()

    def follow() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=follow, daemon=True).start()
