"""Convert a raw download to shards or LMDB: `python -m ocl_msf.data.convert DATASET RAW OUT`.

OUT is the folder of all data sets; the environment variable DATASET_PREFIX names it to the experiments.
"""

import argparse
import dataclasses
from pathlib import Path
from typing import Optional, Sequence

from ocl_msf.data.catalog import OCLF_LAYOUTS, Layout
from ocl_msf.data.lmdb import write_lmdb
from ocl_msf.data.raw import clevrtex, coco, movi, openimages, voc
from ocl_msf.data.shards import SAMPLES, write_dataset
from ocl_msf.data.summary import FORMATS, describe, verify
from ocl_msf.files import DataError, command_line, positive

# Each module has `add_arguments(parser)`, `folder_name(options)` and `prepare(options) -> Conversion`.
DATASETS = {"clevrtex": clevrtex, "coco": coco, "movi": movi, "openimages": openimages, "voc": voc}


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m ocl_msf.data.convert", description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="dataset", metavar="DATASET", required=True)
    for name, module in DATASETS.items():
        summary = module.__doc__.splitlines()[0]
        command = commands.add_parser(name, help=summary, description=summary)
        command.add_argument("raw", type=Path, help="folder of the raw data")
        command.add_argument("out", type=Path, help="folder of all data sets, DATASET_PREFIX")
        module.add_arguments(command)
        command.add_argument(
            "--samples-per-shard",
            type=positive,
            help=f"at most (default: {SAMPLES}, or by OCLF's layout where that holds)",
        )
        command.add_argument(
            "--oclf-layout",
            action="store_true",
            help="name folders and cut shards as the configs of OCLF expect, dataset=coco or voc2012_trainaug; "
            "MOVi-C and E are so anyway. They count on all samples: --no-filter",
        )
        command.add_argument(
            "--format",
            choices=FORMATS,
            default="webdataset",
            help="shards, or one LMDB file per split (default: %(default)s)",
        )
        command.add_argument("--name", help="folder below OUT (default: the name of the data set)")
        command.add_argument("--workers", type=int, default=2, help="processes (default: %(default)s)")
        command.add_argument("--strict", action="store_true", help="stop at the first sample that is damaged")
        command.add_argument("--overwrite", action="store_true", help="replace an earlier conversion")
        command.add_argument("--verify", action="store_true", help="only compare the shards with their checksums")
    return parser


def _layout(options: argparse.Namespace) -> Layout:
    """Where the data set goes, below `options.out`."""
    name = DATASETS[options.dataset].folder_name(options)
    if options.oclf_layout and name not in OCLF_LAYOUTS:
        known = ", ".join(sorted(OCLF_LAYOUTS))
        raise DataError(f"OCLF has no config for {name}, only for {known}. Omit --oclf-layout.")
    layout = OCLF_LAYOUTS.get(name, Layout(name))
    if layout.folder != name and not options.oclf_layout:
        layout = Layout(name)
    return layout._replace(folder=options.name or layout.folder)


def main(arguments: Optional[Sequence[str]] = None) -> None:
    """The command line."""
    options = _parser().parse_args(arguments)
    with command_line():
        layout = _layout(options)
        folder = options.out / layout.folder
        if options.verify:
            summary = verify(folder)
        else:
            conversion = dataclasses.replace(DATASETS[options.dataset].prepare(options), layout=layout.splits)
            parts, workers = options.samples_per_shard, options.workers
            write = write_lmdb if options.format == "lmdb" else write_dataset
            summary = write(folder, conversion, parts, workers, options.overwrite, options.strict)
    print(f"{folder}: {describe(summary)}{', all checksums right' if options.verify else ''}")


if __name__ == "__main__":
    main()
