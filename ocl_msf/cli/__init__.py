"""The command `ocl-msf`: it reads options, calls functions of the package, and prints.

Nothing heavy is imported before a command runs, so that `--help` and the completion of a shell come at once.

Threads of OpenMP wait without spinning, here and in what a command starts, unless OMP_WAIT_POLICY says otherwise. Those
of PyTorch's runtime, GNU's libgomp, spin for milliseconds at the end of every loop. With other work on the cores, the
thread that they wait for does not get one: two threads on two busy cores made 0.1 steps of training per second, and 1.2
without spinning.
"""

import os
from typing import Optional, Sequence

from ocl_msf.cli import convert, data, experiments, results  # noqa: F401  they add their commands
from ocl_msf.cli._app import app

__all__ = ["app", "main"]


def main(arguments: Optional[Sequence[str]] = None) -> None:
    """Run a command.

    Args:
        arguments: what follows `ocl-msf`; by default that of this process.

    Raises:
        SystemExit: it failed.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # read when torch is imported; GOMP_SPINCOUNT goes before it
    try:
        app(None if arguments is None else [str(word) for word in arguments], prog_name="ocl-msf")
    except SystemExit as ending:
        if ending.code:
            raise
