"""Runs `scripts/benchmark.py` with forks in place of new interpreters, which would import everything once more.

What a new interpreter would be given is pickled on its way all the same. The memory that forks report is not what the
steps of a new process take: tests of the tables look at neither.
"""

import multiprocessing
import runpy
from multiprocessing.context import ForkProcess
from multiprocessing.reduction import ForkingPickler


class Forked(ForkProcess):
    """A fork for whose target and arguments a new interpreter would do as well."""

    def __init__(self, target, args):
        ForkingPickler.loads(ForkingPickler.dumps((target, args[:-1])))  # the last is a pipe, sent by the start alone
        super().__init__(target=target, args=args)


multiprocessing.context.SpawnContext.Process = Forked
runpy.run_module("benchmark", run_name="__main__", alter_sys=True)
