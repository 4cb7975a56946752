"""The command `ocl-msf`: it reads options, calls functions of the package, and prints.

Nothing heavy is imported before a command runs, so that `--help` and the completion of a shell come at once.
"""

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
    try:
        app(None if arguments is None else [str(word) for word in arguments], prog_name="ocl-msf")
    except SystemExit as ending:
        if ending.code:
            raise
