"""Starts `programs.py`, whose forks save importing the libraries, and hands programs to it."""

import contextlib
import io
import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace


@contextlib.contextmanager
def program_server(printed):
    """Start the server with this interpreter, and end it.

    Args:
        printed: an empty folder, for what programs print.

    Yields:
        A function that runs `python -m MODULE ARGUMENTS` in a folder, with variables of the environment, waits for it,
        and returns it with its status and everything it printed. `ranks=2` runs two at once, which are told that they
        are the ranks of one training, as the launcher of a cluster tells them.
    """
    command = [sys.executable, str(Path(__file__).parent / "programs.py")]
    server = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def run(module, *arguments, cwd, ranks=0, **environment):
        program = {"module": module, "arguments": list(map(str, arguments)), "cwd": str(cwd)}
        environment = {**os.environ, "OMP_NUM_THREADS": "1", **environment}
        meeting = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
        each = [{**environment, **meeting, "LOCAL_RANK": str(rank)} for rank in range(ranks)]
        program["environments"] = each or [environment]
        stdout, stderr = (printed / name for name in ("stdout", "stderr"))
        for path in (stdout, stderr):
            path.write_bytes(b"")
        print(json.dumps({**program, "stdout": str(stdout), "stderr": str(stderr)}), file=server.stdin, flush=True)
        status = int(server.stdout.readline())
        words = [sys.executable, "-m", module, *program["arguments"]]
        return subprocess.CompletedProcess(words, status, stdout.read_text(), stderr.read_text())

    yield run
    server.stdin.close()
    assert server.wait() == 0


def free_port():
    """A port that no program listens at."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def popen(run):
    """In place of `subprocess.Popen`: a program starts when the one before has ended, and this waits for it.

    Args:
        run: of the server; the command is `[env NAME=VALUE ...] python -m MODULE ARGUMENTS`.
    """

    def start(command, **_):
        option = command.index("-m")
        assert command[option - 1] == sys.executable
        environment = dict(word.split("=", 1) for word in command[1 : option - 1])
        done = run(*command[option + 1 :], cwd=Path.cwd(), **environment)
        printed = io.BytesIO((done.stdout + done.stderr).encode())
        return SimpleNamespace(stdout=printed, returncode=done.returncode, poll=lambda: done.returncode)

    return start
