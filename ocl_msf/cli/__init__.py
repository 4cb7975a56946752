"""The command `ocl-msf`: it reads options, calls functions of the package, and prints.

Nothing heavy is imported before a command runs, so that `--help` and the completion of a shell come at once.

Threads of OpenMP spin only shortly while they wait, here and in what a command starts, unless OMP_WAIT_POLICY or
GOMP_SPINCOUNT says otherwise. Those of PyTorch's runtime, GNU's libgomp, spin for milliseconds at the end of every
loop. With other work on the cores, the thread that they wait for does not get one: two threads on two busy cores made
0.1 steps of training per second, and 0.6 to 1.0 with a short spin. On idle cores a short spin costs nothing, but to
sleep at once (OMP_WAIT_POLICY=PASSIVE) takes 1.4 times as long.
"""

import os
from typing import Optional, Sequence

from ocl_msf.cli import convert, data, experiments, models, results  # noqa: F401  they add their commands
from ocl_msf.cli._app import app

__all__ = ["app", "main"]


def main(arguments: Optional[Sequence[str]] = None) -> None:
    """Run a command.

    Args:
        arguments: what follows `ocl-msf`; by default that of this process.

    Raises:
        SystemExit: it failed.
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "1000")  # read when torch is imported
    try:
        app(None if arguments is None else [str(word) for word in arguments], prog_name="ocl-msf")
    except SystemExit as ending:
        if ending.code:
            raise
