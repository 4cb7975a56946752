"""Runs programs, each in a process of its own, without importing PyTorch and Lightning again for each of them.

Started by the fixture `run_program`. Every line of standard input describes a program in JSON; forks of this process,
which has the libraries already, run it as `python -m MODULE ARGUMENTS` would, one for each environment, and the exit
status of the first that failed is the answer. One that takes too long is ended with all its processes, which print
where their threads are.
"""

import contextlib
import faulthandler
import gc
import json
import os
import runpy
import signal
import sys
from pathlib import Path

import hydra_zen  # noqa: F401
import matplotlib.pyplot  # noqa: F401
import pytorch_lightning  # noqa: F401
import sklearn.cluster  # noqa: F401
import timm  # noqa: F401
import torch.utils.tensorboard  # noqa: F401
import torchmetrics  # noqa: F401
from diffusers import UNet2DConditionModel  # noqa: F401
from kept_configs import keep_configs

LIMIT = 900  # seconds


def status_of(processes):
    """The exit status of the first child that failed, or 0; negative if a signal ended it.

    Waits for all of them, and after the limit aborts their groups.
    """

    def abort(*_):
        for process in processes:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process, signal.SIGABRT)

    signal.signal(signal.SIGALRM, abort)
    signal.alarm(LIMIT)
    statuses = [os.waitpid(process, 0)[1] for process in processes]
    signal.alarm(0)
    codes = [os.WEXITSTATUS(status) if os.WIFEXITED(status) else -os.WTERMSIG(status) for status in statuses]
    return next(filter(None, codes), 0)


def become(module, arguments, cwd, environment, stdout, stderr):
    """Run a module as the main one of this process, in a group of its own."""
    os.setpgid(0, 0)
    for number, path, mode in ((0, os.devnull, os.O_RDONLY), (1, stdout, os.O_WRONLY), (2, stderr, os.O_WRONLY)):
        os.dup2(os.open(path, mode | os.O_CREAT | os.O_APPEND), number)
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(environment, PYTHONFAULTHANDLER="1")  # for the further ranks and the workers
    faulthandler.enable()
    paths = environment.get("PYTHONPATH", "").split(os.pathsep)
    sys.path[:1] = [cwd, *(path for path in paths if path and path not in sys.path[1:])]
    sys.argv = [module, *arguments]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


def serve():
    """Start programs as long as there are any; in a fork, return what it shall become."""
    for line in iter(sys.stdin.readline, ""):
        program, children = json.loads(line), []
        for environment in program.pop("environments"):
            children.append(os.fork())
            if not children[-1]:
                return {**program, "environment": environment}
        print(status_of(children), flush=True)
    return None


keep_configs((Path(__file__).parents[1] / "configs").rglob("*.yaml"))
gc.freeze()  # leaves what is imported out of collections, which would copy its memory
if program := serve():
    become(**program)
