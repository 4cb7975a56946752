"""The command `ocl-msf`: it reads options, calls functions of the package, and prints.

Nothing heavy is imported before a command runs, so that `--help` and the completion of a shell come at once.
"""

from typing import Optional, Sequence

from ocl_msf.cli._app import Program, new_app
from ocl_msf.cli.data import add_data_commands
from ocl_msf.cli.experiments import add_experiment_commands
from ocl_msf.cli.results import add_result_commands

app = new_app(
    "Multi-Scale Fusion for object-centric learning: data, tables, figures and a demonstration.",
    "ocl-msf demo",
    "ocl-msf convert clevrtex PATH/TO/clevrtex_full $DATASET_PREFIX",
    "ocl-msf tables table4 --part c256 --preset cpu --dry-run",
    cls=Program,
)
add_experiment_commands(app)
add_data_commands(app)
add_result_commands(app)


def main(arguments: Optional[Sequence[str]] = None) -> None:
    """Run a command.

    Args:
        arguments: What follows `ocl-msf`; by default that of this process.

    Raises:
        SystemExit: It failed.
    """
    try:
        app(None if arguments is None else [str(word) for word in arguments], prog_name="ocl-msf")
    except SystemExit as ending:
        if ending.code:
            raise
