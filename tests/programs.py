"""Runs programs, each in a process of its own, without importing PyTorch and Lightning again for each of them.

Started by the fixture `run_program`. Every line of standard input describes a program in JSON; a fork of this process,
which has the libraries already, runs it as `python -m MODULE ARGUMENTS` would, and its exit status is the answer.
"""

import gc
import json
import os
import runpy
import sys

import hydra  # noqa: F401
import pytorch_lightning  # noqa: F401
import timm  # noqa: F401
import torchmetrics  # noqa: F401


def status_of(process):
    """The exit status of a child, negative if a signal ended it; waits for it."""
    _, status = os.waitpid(process, 0)
    return os.WEXITSTATUS(status) if os.WIFEXITED(status) else -os.WTERMSIG(status)


def become(module, arguments, cwd, environment, stdout, stderr):
    """Run a module as the main one of this process."""
    for number, path, mode in ((0, os.devnull, os.O_RDONLY), (1, stdout, os.O_WRONLY), (2, stderr, os.O_WRONLY)):
        os.dup2(os.open(path, mode | os.O_CREAT), number)
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(environment)
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
