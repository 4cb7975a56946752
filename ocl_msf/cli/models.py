"""Commands that use trained models, and hand them on."""

from pathlib import Path
from typing import Optional

from typer import Argument, Option
from typing_extensions import Annotated

from ocl_msf.cli._app import command

Model = Annotated[
    str,
    Argument(
        metavar="MODEL",
        help="Run of stage 2, checkpoint, exported folder, hf://owner/name or pretrained:name.",
        show_default=False,
    ),
]


@command(
    "export",
    "ocl-msf export outputs/msf/slate_clevrtex/TIME slate-clevrtex",
    "ocl-msf export outputs/msf/slate_clevrtex/TIME slate-clevrtex --license apache-2.0 --push OWNER/NAME",
)
def export(
    model: Model,
    folder: Annotated[Path, Argument(help="A new one, or that of an earlier export.", show_default=False)],
    license: Annotated[Optional[str], Option(metavar="NAME", help="Of the weights, for the card.")] = None,
    push: Annotated[Optional[str], Option(metavar="OWNER/NAME", help="Also upload it to the Hugging Face hub.")] = None,
    private: Annotated[
        bool, Option("--private", help="Make a new one on the hub visible for its owner alone.")
    ] = False,
) -> None:
    """Write a trained model for others.

    The folder holds safetensors, a configuration that needs neither data nor the run, and a model card with the scores
    of the run's evaluation. `ocl_msf.load` and all commands that take a MODEL open it.
    """
    from ocl_msf.inference.export import export as write
    from ocl_msf.inference.hub import push as upload

    print(write(model, folder, license))
    if push:
        print(upload(folder, push, private))
