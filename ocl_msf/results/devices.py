"""Work shared out among devices, by a process on each."""

import multiprocessing
import signal
import sys
import types
from collections import deque
from contextlib import closing, suppress
from multiprocessing.connection import Connection, wait
from typing import Any, Callable, ContextManager, Dict, Iterator, List, Optional, Sequence, Tuple

import torch

from ocl_msf.experiments.tasks import AGAIN
from ocl_msf.files import DataError

Open = Callable[[str, Any], ContextManager[Callable[[Any], Any]]]  # of a function that does the work on a device


def choose_devices(device: Optional[str] = None, devices: Optional[str] = None) -> List[str]:
    """Names of the devices to compute on; that of a processor comes once for each process.

    Args:
        device: such as cuda:1, or cpu; by default a GPU if there is one.
        devices: how many, "all" GPUs, or the numbers of GPUs with commas between them; by default one.

    Raises:
        DataError: there are none of that kind and number.
    """
    kind = device or ("cuda" if torch.cuda.is_available() else "cpu")
    if devices is None:
        return [kind]
    if ":" in kind:
        raise DataError(f"Choose --device {kind} or --devices {devices}, not both.")
    available = torch.cuda.device_count() if kind == "cuda" else 0
    if kind == "cpu" and devices.isdigit() and int(devices):
        return [kind] * int(devices)
    if kind != "cuda" or not available:
        raise DataError(
            f"--devices {devices} needs GPUs, and there are {available}. With --device cpu it is a number of processes."
        )
    numbers = range(available) if devices == "all" else range(int(devices)) if devices.isdigit() else devices.split(",")
    chosen = sorted({int(number) for number in numbers if str(number).isdigit()})
    if not chosen or len(chosen) < len(numbers) or chosen[-1] >= available:
        raise DataError(
            f"--devices {devices}: give a number of GPUs from 1 to {available}, all, or some of 0 to {available - 1} "
            "with commas between them."
        )
    return [f"{kind}:{number}" for number in chosen]


def share(
    open_on: Open, work: Sequence[Any], devices: Sequence[str], journal: Any, modules: Sequence[str]
) -> Iterator[Tuple[Any, Any]]:
    """Do each piece of work on the first device that is free, and yield it with its result, as they come.

    The processes end with this generator, and also if this process is killed.

    Args:
        open_on: called in each process with the name of its device and a stand-in for the journal; it must be
            picklable, and so must be the work and the results.
        work: its pieces, in the order in which they are begun.
        devices: one name for each process.
        journal: an object of this process, whose methods the work can call; they return nothing.
        modules: what the processes import, once for all of them.

    Raises:
        DataError: raised by the work, or a process has ended.
    """
    context = multiprocessing.get_context("forkserver")  # CUDA cannot be used in forks of this process
    context.set_forkserver_preload(list(modules))
    devices, waiting, workers = devices[: len(work)], deque(work), []
    threads = max(torch.get_num_threads() // max(len(devices), 1), 1)
    try:
        for device in devices:
            workers.append(_Worker(context, open_on, device, threads))
            workers[-1].give(waiting.popleft())
        busy: Dict[Any, _Worker] = {worker.connection: worker for worker in workers}
        while busy:
            for connection in wait(list(busy)):
                kind, *content = busy[connection].receive()
                if kind == "error":
                    raise content[0]
                if kind != "result":
                    getattr(journal, kind)(*content)
                    continue
                yield busy[connection].work, content[0]
                if waiting:
                    busy[connection].give(waiting.popleft())
                else:
                    busy.pop(connection)
    except BaseException:
        for worker in workers:
            worker.process.terminate()
        raise
    finally:
        for worker in workers:
            worker.connection.close()
            worker.process.join()


class _Worker:
    """A process that does work on a device."""

    def __init__(self, context: Any, open_on: Open, device: str, threads: int):
        self.device = device
        self.connection, its = context.Pipe()
        self.process = context.Process(target=_serve, args=(open_on, device, threads, its), daemon=True)
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})  # inherited: Ctrl-C is for this process
        main, sys.modules["__main__"] = sys.modules["__main__"], types.ModuleType("__main__")  # is not run again
        try:
            self.process.start()
        finally:
            sys.modules["__main__"] = main
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
            its.close()

    def give(self, work: Any) -> None:
        """Send it the next piece of work."""
        self.work = work
        with suppress(ConnectionError):  # `receive` says why
            self.connection.send(work)

    def receive(self) -> Any:
        """What it says next."""
        try:
            return self.connection.recv()
        except (EOFError, ConnectionError) as error:
            self.process.join()
            status = self.process.exitcode
            reason = ", perhaps because memory ran out" if status == -signal.SIGKILL else ""
            raise DataError(f"The process on {self.device} ended with status {status}{reason}. {AGAIN}") from error


class _Remote:
    """Stands for an object of the parent process."""

    def __init__(self, connection: Connection):
        self._connection = connection

    def __getattr__(self, name: str) -> Callable[..., None]:
        return lambda *content: self._connection.send((name, *content))


def _serve(open_on: Open, device: str, threads: int, connection: Connection) -> None:
    """Do what comes, until the parent process closes the connection or ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    torch.set_num_threads(threads)
    with closing(connection), suppress(EOFError, ConnectionError):  # there is no more work, or nobody to do it for
        try:
            with open_on(device, _Remote(connection)) as do:
                while True:
                    connection.send(("result", do(connection.recv())))
        except DataError as error:
            connection.send(("error", error))
