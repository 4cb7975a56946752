"""Worker processes that have of this one what they are given, and the time that they may take.

A fork has the locks that other threads hold (those of gloo, NCCL and progress bars), but not these threads: a worker
that needs such a lock waits for ever, and all ranks with it. Here a server without threads forks the workers.

`ocl._loader.workers` of `host/` is the same for its data; this one serves LMDB, and shards in OCLF.
"""

import os
import pickle
import pickletools
import signal
import sys
import types
from multiprocessing import context
from typing import Any, Dict, Iterator, Tuple

import cloudpickle
from torch import distributed
from torch.utils.data import DataLoader, IterableDataset, IterDataPipe
from torch.utils.data._utils import MP_STATUS_CHECK_INTERVAL
from torch.utils.data.dataloader import _MultiProcessingDataLoaderIter

WORKER_TIMEOUT = 540.0  # s; after ten minutes NCCL ends the other ranks, and does not say why
# Packages of which no import starts a thread.
_PRELOADED = {
    "PIL",
    "cloudpickle",
    "numpy",
    "ocl",
    "ocl_msf",
    "omegaconf",
    "torch",
    "torchvision",
}
_LEFT_TO_PARENT = {getattr(signal, name) for name in ("SIGINT", "SIGUSR1") if hasattr(signal, name)}


# Windows has no such server, and its workers inherit nothing anyway.
_HAS_SERVER = hasattr(context, "ForkServerProcess")
_Process: Any = context.ForkServerProcess if _HAS_SERVER else context.SpawnProcess
_Context: Any = context.ForkServerContext if _HAS_SERVER else context.SpawnContext


class Worker(_Process):
    """A process with this one's environment and working directory, without its threads and its locks.

    The main program is not run again in it: scripts need no `if __name__ == "__main__"`.
    """

    def start(self) -> None:
        """Start the process, and before the first one the server."""
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, _LEFT_TO_PARENT)  # inherited by server and workers
        main, sys.modules["__main__"] = sys.modules["__main__"], types.ModuleType("__main__")
        try:
            super().start()
        finally:
            sys.modules["__main__"] = main
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)

    def __reduce__(self) -> Tuple[Any, ...]:
        return _in_environment, (dict(os.environ), type(self)), vars(self)  # the environment comes before the rest


def _in_environment(environment: Dict[str, str], kind: Any) -> Any:
    """Take over the parent's environment, that of now; returns a process still without its state."""
    os.environ.clear()
    os.environ.update(environment)
    return kind.__new__(kind)


class SentByValue(IterableDataset):
    """A dataset that reaches workers with all that it needs: closures, and what the main program defines."""

    def __getstate__(self) -> bytes:
        return cloudpickle.dumps(vars(self))

    def __setstate__(self, state: bytes) -> None:
        vars(self).update(_load(state))


class PipeSentByValue(SentByValue, IterDataPipe):
    """A pipe of torch, whose shards and random numbers torch deals out to ranks and workers."""

    def __init__(self, pipe: IterDataPipe) -> None:
        self.pipe = pipe

    def __iter__(self) -> Iterator[Any]:
        yield from self.pipe

    def __len__(self) -> int:
        return len(self.pipe)


def _load(data: bytes) -> Any:
    value = pickle.loads(data)
    if b"__main__" in data:  # the way back is by name: errors and samples may have classes of the program
        main = sys.modules["__main__"]
        for kind in _subclasses(object):
            if kind.__module__ == "__main__" and not hasattr(main, kind.__name__):
                setattr(main, kind.__name__, kind)
    return value


def _subclasses(kind: Any) -> Iterator[Any]:
    for subclass in type.__subclasses__(kind):
        yield subclass
        yield from _subclasses(subclass)


class WorkerContext(_Context):
    """A `multiprocessing_context` for `DataLoader`, whose processes are `Worker`s."""

    Process = Worker


def _preload(dataset: SentByValue) -> None:
    """Let the server, if it is not running yet, import what a dataset and modules of users need, not each worker."""
    dataset = getattr(dataset, "_datapipe", dataset)  # torch wraps pipes
    words = {word for _, word, _ in pickletools.genops(dataset.__getstate__()) if isinstance(word, str)}
    modules = {word for word in words & set(sys.modules) if word.split(".")[0] in _PRELOADED}
    WorkerContext().set_forkserver_preload(sorted({"ocl.datasets", type(dataset).__module__, *modules}))


class WorkerLoader(DataLoader):
    """A `DataLoader` of a dataset `SentByValue`, with such workers, for which it does not wait for ever.

    Attributes:
        worker_timeout: Seconds without a batch after which to raise a `RuntimeError`; 0 to wait for ever.
    """

    dataset: SentByValue
    worker_timeout: float = WORKER_TIMEOUT

    def _get_iterator(self) -> Any:
        if not self.num_workers:
            return super()._get_iterator()
        if self.multiprocessing_context is None and _HAS_SERVER:
            self.multiprocessing_context = WorkerContext()
            _preload(self.dataset)
        return _Watched(self)


def with_such_workers(loader: Any, worker_timeout: float) -> Any:
    """A loader of torch for a pipe, as OCLF makes it, with workers of this kind; any other one remains what it is."""
    if type(loader) is not DataLoader or not loader.num_workers:
        return loader
    pipe = PipeSentByValue(loader.dataset._datapipe)  # type: ignore[attr-defined]  # torch wraps pipes
    replacement = WorkerLoader(pipe, batch_size=None, num_workers=loader.num_workers)
    replacement.worker_timeout = worker_timeout
    return replacement


class _Watched(_MultiProcessingDataLoaderIter):
    """Counts the time without a batch by torch's own looks at the workers, one every few seconds."""

    def __init__(self, loader: WorkerLoader):
        self._patience, self._waited = loader.worker_timeout, 0.0
        super().__init__(loader)

    def __next__(self) -> Any:
        try:
            return super().__next__()
        except Exception as error:
            # torch's frames refer to the error. If only the garbage collector can free them, and this iterator with
            # them, it ends the queues first: the workers do not learn that they are done, and torch waits 5 s for each.
            raise error.with_traceback(None) from error.__cause__

    def _get_data(self) -> Any:
        self._waited = 0.0
        return super()._get_data()

    def _try_get_data(self, timeout: float = MP_STATUS_CHECK_INTERVAL) -> Tuple[bool, Any]:
        step = min(timeout, self._patience or timeout)
        success, data = super()._try_get_data(step)
        if not success and self._patience:
            self._waited += step
            if self._waited >= self._patience:
                self._give_up()
        return success, data

    def _give_up(self) -> None:
        number = self._task_info[self._rcvd_idx][0]
        process = self._workers[number]
        process.kill()  # one that is stuck does not end when it is asked to
        rank = distributed.get_rank() if distributed.is_available() and distributed.is_initialized() else 0
        raise RuntimeError(
            f"Rank {rank} got no batch from data worker {number} (process {process.pid}) for {self._waited:g} s. "
            "If reading is only slow, set dataset.worker_timeout to more seconds, or to 0 for no limit."
        )
