"""Commands that use trained models, and hand them on."""

import os
import tempfile
from pathlib import Path
from typing import List, Optional

from typer import Argument, Option
from typing_extensions import Annotated, Literal

from ocl_msf.cli._app import command, new_group


def counted(number: int, noun: str) -> str:
    """A number with a noun: 1 input, 2 inputs."""
    return f"{number} {noun}" + ("s" if number != 1 else "")


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


@command(
    "predict",
    "ocl-msf predict pretrained:scenes photos clip.mp4 --out predictions",
    "ocl-msf predict hf://OWNER/NAME cat.jpg 'photos/**/*.png' data/coco/val/*.tar --out predictions --fit stretch",
    "ocl-msf predict outputs/msf/slate_coco/TIME photos --devices all",
)
def predict(
    model: Model,
    inputs: Annotated[
        List[str],
        Argument(
            metavar="INPUT...",
            help="Pictures, videos, folders, patterns in quotes, or shards (.tar) of converted data.",
            show_default=False,
        ),
    ],
    out: Annotated[Path, Option(help="A new folder, or that of an earlier call.")] = Path("predictions"),
    batch_size: Annotated[int, Option(min=1, help="Pictures at a time.")] = 16,
    device: Annotated[Optional[str], Option(metavar="NAME", help="Such as cuda:1; by default a GPU if any.")] = None,
    devices: Annotated[
        Optional[str], Option(metavar="N|all|0,1", help="How many GPUs share the work, or which; a process for each.")
    ] = None,
    fit: Annotated[
        Literal["crop", "stretch"], Option(help="Show the model the central square, or all in a square.")
    ] = "crop",
) -> None:
    """Find slots and masks of pictures and videos, and write them.

    For each picture the folder gets masks/KEY.png, a palette image with 255 where the model was not shown the picture,
    and overlays/KEY.png; for each video masks/KEY/FRAME.png and overlays/KEY.mp4; for all of them slots.safetensors
    (n, k, d), index.csv with their rows, and contact.png. Videos are read by PyAV (pip install av).
    Repeat the command after an interruption to continue. Inputs that cannot be read are named, and left out.
    Several devices take batches of pictures, and videos, by turns; --device cpu --devices 2 are two processes.
    """
    from ocl_msf.results.predict import predict as find

    tally = find(model, inputs, out, batch_size, device, fit, devices)
    done = [counted(tally.pictures, "picture")] if tally.pictures or not tally.videos else []
    done += [counted(tally.videos, "video")] if tally.videos else []
    before = f", and {tally.kept} of before" if tally.kept else ""
    unread = counted(tally.unread, "input")
    print(f"{out}: slots and masks of {' and '.join(done)}{before}; {unread} could not be read")


@command(
    "view",
    "ocl-msf view pretrained:scenes photos",
    "ocl-msf view outputs/msf/steve_movi_c/TIME frames --port 8000",
)
def view(
    model: Model,
    folder: Annotated[
        Optional[Path],
        Argument(help="Of pictures to choose from; others can be dropped on the page.", show_default=False),
    ] = None,
    port: Annotated[int, Option(min=0, max=65535, help="0: any free one.")] = 7860,
    host: Annotated[str, Option(help="Other than this machine's: whoever reaches it can use the page.")] = "127.0.0.1",
    device: Annotated[Optional[str], Option(metavar="NAME", help="Such as cuda:1; by default a GPU if any.")] = None,
    fit: Annotated[
        Literal["crop", "stretch"], Option(help="Show the model the central square, or all in a square.")
    ] = "crop",
) -> None:
    """Look at slots on a page: drop them, swap them, and see what the decoder draws.

    It prints the address to open in a browser, and needs the extra `app`: pip install 'ocl-msf[app]'. Pictures and
    videos of the folder can be chosen, and no other files of this machine be read; a folder with several pictures is a
    video, too. Nothing is loaded from the network.
    """
    with tempfile.TemporaryDirectory() as uploads:
        os.environ.update(GRADIO_TEMP_DIR=uploads, GRADIO_ANALYTICS_ENABLED="False")  # read when gradio is imported
        from ocl_msf.results.view.server import view as serve

        serve(model, folder, host, port, fit, device)


import_app = new_group(
    "import",
    "Make runs of models that others trained.",
    "ocl-msf import authors slate_r_vqvae-coco-msf.pth --experiment slate_coco --vae vqvae-coco-c256-msf.pth",
)


@command(
    "authors",
    "ocl-msf import authors slate_r_vqvae-coco-msf.pth --experiment slate_coco --vae vqvae-coco-c256-msf.pth",
    group=import_app,
)
def import_authors(
    checkpoint: Annotated[Path, Argument(help="Theirs, of stage 2.", show_default=False)],
    experiment: Annotated[
        str, Option(metavar="NAME", help="Ours of the same model and data, such as slate_coco.", show_default=False)
    ],
    vae: Annotated[
        Optional[Path], Option(metavar="CKPT", help="Theirs of stage 1, whose decoder draws pictures; else all black.")
    ] = None,
    out: Annotated[Optional[Path], Option(help="A new folder; by default outputs/msf/NAME/CKPT.")] = None,
    settings: Annotated[
        Optional[List[str]], Option("--set", metavar="KEY=VALUE", help="Further overrides of the experiment.")
    ] = None,
) -> None:
    """Make a run of a model that MSF's authors trained.

    Takes SLATE, SlotDiffusion and DINOSAUR of Genera1Z/MultiScaleFusion and Genera1Z/VQ-VFM-OCL, plain or with MSF or
    GDR. The run is evaluated, exported, shown and used for predictions like any other. Checkpoints are never unpickled.
    """
    from ocl_msf.experiments.authors import import_checkpoint

    folder = out or Path("outputs", "msf", experiment, checkpoint.stem)
    print(import_checkpoint(checkpoint, experiment, folder, vae, settings or []))
