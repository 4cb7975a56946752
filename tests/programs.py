"""Runs programs, each in a process of its own, without importing PyTorch and Lightning again for each of them.

Started by the fixture `run_program`. Every line of standard input describes a program in JSON; a fork of this process,
which has the libraries already, runs it as `python -m MODULE ARGUMENTS` would, and its exit status is the answer. One
that takes too long is ended with all its processes, which print where their threads are.
"""

import faulthandler
import gc
import json
import os
import runpy
import signal
import sys

import hydra  # noqa: F401
import pytorch_lightning  # noqa: F401
import timm  # noqa: F401
import torchmetrics  # noqa: F401

LIMIT = 900  # seconds


def status_of(process):
    """The exit status of a child, negative if a signal ended it; waits for it, and after the limit aborts its group."""
    signal.signal(signal.SIGALRM, lambda *_: os.killpg(process, signal.SIGABRT))
    signal.alarm(LIMIT)
    _, status = os.waitpid(process, 0)
    signal.alarm(0)
    return os.WEXITSTATUS(status) if os.WIFEXITED(status) else -os.WTERMSIG(status)


def become(module, arguments, cwd, environment, stdout, stderr):
    """Run a module as the main one of this process, in a group of its own."""
    os.setpgid(0, 0)
    for number, path, mode in ((0, os.devnull, os.O_RDONLY), (1, stdout, os.O_WRONLY), (2, stderr, os.O_WRONLY)):
        os.dup2(os.open(path, mode | os.O_CREAT), number)
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(environment, PYTHONFAULTHANDLER="1")  # for the further ranks and the workers
    faulthandler.enable()
    paths = environment.get("PYTHONPATH", "").split(os.pathsep)
    sys.path[:1] = [cwd, *(path for path in paths if path and path not in sys.path)]
    sys.argv = [module, *arguments]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


gc.freeze()  # leaves what is imported out of collections, which would copy its memory
program = sys.stdin.readline()
while program and (child := os.fork()):
    print(status_of(child), flush=True)
    program = sys.stdin.readline()
if program:
    become(**json.loads(program))
