"""The program, and what its commands share: options with several values, examples in the help, how they end."""

import contextlib
import os
import signal
import sys
from typing import Any, Callable, Iterator, List, Sequence, Type

import typer
from typer.core import TyperCommand, TyperGroup

from ocl_msf.experiments.tasks import AGAIN
from ocl_msf.files import DataError

MAY_STAND_ALONE = {"--slurm"}  # options with several values that need none

Function = Callable[..., None]


@contextlib.contextmanager
def ending_in_order() -> Iterator[None]:
    """End the program with one line: for what its user has to correct, for Ctrl-C, and for SIGTERM.

    It ends without a word when what reads its output, such as `head`, has enough.
    """
    earlier = signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        yield
        sys.stdout.flush()
    except (DataError, FileNotFoundError, ImportError, ValueError) as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        print(f"Interrupted. {AGAIN}", file=sys.stderr)
        sys.exit(128 + signal.SIGINT)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python complains when it flushes at exit
        sys.exit(1)
    except SystemExit as ending:
        if ending.code == 128 + signal.SIGTERM:
            print(f"Terminated. {AGAIN}", file=sys.stderr)
        raise
    finally:
        signal.signal(signal.SIGTERM, earlier)


class Program(TyperGroup):
    """The group of all commands."""

    def invoke(self, ctx: Any) -> Any:
        """Run the chosen one."""
        with ending_in_order():
            return super().invoke(ctx)


class Command(TyperCommand):
    """A command whose options for several values take all words up to the next option: `--seeds 0 1 2`."""

    def parse_args(self, ctx: Any, args: List[str]) -> List[str]:
        """Repeat such an option before each of its values, as the library wants it."""
        several = {name for option in self.params if getattr(option, "multiple", False) for name in option.opts}
        words: List[str] = []
        option = ""
        for word, following in zip(args, [*args[1:], "--"]):
            if not word.startswith("-"):
                words += [option, word] if option else [word]
                continue
            option = word if word in several else ""
            if not option:
                words.append(word)
            elif following.startswith("-"):
                words += [word, ""] if word in MAY_STAND_ALONE else [word]
        return super().parse_args(ctx, words)


def _epilog(examples: Sequence[str]) -> str:
    title = "Examples:" if len(examples) > 1 else "Example:"
    return "\n".join(["\b", title, *(f"  {line}" for line in examples)])  # \b: the lines as they are


def _new_app(cls: Type[TyperGroup], summary: str, examples: Sequence[str]) -> typer.Typer:
    return typer.Typer(
        cls=cls,
        help=summary,
        epilog=_epilog(examples),
        no_args_is_help=True,
        rich_markup_mode=None,  # plain text, in lines as they are written
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
    )


app = _new_app(
    Program,
    "Multi-Scale Fusion for object-centric learning: data, tables, figures and a demonstration.",
    [
        "ocl-msf demo",
        "ocl-msf convert clevrtex PATH/TO/clevrtex_full $DATASET_PREFIX",
        "ocl-msf tables table4 --part c256 --preset cpu --dry-run",
    ],
)


def new_group(name: str, summary: str, *examples: str) -> typer.Typer:
    """Add a group of commands to the program; its help ends with the examples."""
    group = _new_app(TyperGroup, summary, examples)
    app.add_typer(group, name=name)
    return group


def command(name: str, *examples: str, group: typer.Typer = app) -> Callable[[Function], Function]:
    """Add a function as the command `name`, to the program or to a group; its help ends with the examples."""
    return group.command(name, cls=Command, epilog=_epilog(examples))
