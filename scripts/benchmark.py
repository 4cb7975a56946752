"""Benchmarks; each prints medians and ratios as a table: `python scripts/benchmark.py quantizer`."""

import argparse
import importlib
import sys

import torch

TURNS = {  # by module, whose import may take seconds: the timed turns of each benchmark in it
    "_stage1": {"quantizer": 15, "stage1": 15},
    "_stage2": {"stage2": 3, "generate": 3},
    "_loader": {"loader": 7},
    "_data": {"data": 3},
    "_cache": {"cache": 3},
    "_predict": {"predict": 3},
}


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    benchmarks = parser.add_subparsers(dest="benchmark", required=True)
    chosen = {name: turns for name, turns in TURNS.items() if turns.keys() & set(sys.argv[1:2])}
    for module_name, turns in (chosen or TURNS).items():
        module = importlib.import_module(module_name)
        for name, repeat in turns.items():
            run = getattr(module, name)
            one = benchmarks.add_parser(name, help=run.__doc__, description=run.__doc__)
            one.set_defaults(run=run)
            one.add_argument("--size", type=int, default=128, help="height and width of the images (default: 128)")
            one.add_argument("--repeat", type=int, default=repeat, help="timed turns (default: %(default)s)")
            warmup = 1 if module_name == "_stage2" else 2
            one.add_argument("--warmup", type=int, default=warmup, help="turns before them (default: %(default)s)")
            if hasattr(module, "add_options"):
                module.add_options(one)
            else:
                add_model_options(one, {"stage2": 8, "generate": 1}.get(name, 16))
            if name == "stage2":
                one.add_argument("--decoder", action="store_true", help="also the decoder alone")
            if name == "generate":
                every = "tokens per timed one without cache (default: 16)"
                one.add_argument("--every", type=int, default=16, help=every)
    options = parser.parse_args()
    if "threads" in options:
        torch.set_num_threads(options.threads)
    options.run(options)


def add_model_options(parser: argparse.ArgumentParser, batch: int) -> None:
    """Options of the benchmarks that run a model."""
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--batch", type=int, default=batch)
    parser.add_argument("--dim", type=int, default=256, help="c, channels of the bottleneck (default: 256)")
    parser.add_argument("--layers", type=int, default=8, help="stage2, generate: of the transformer (default: 8)")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument(
        "--annealing",
        action="store_true",
        help="stage1: as in the first half of training, when residual and sampling are not annealed away yet",
    )
    parser.add_argument("--bf16", action="store_true", help="stage1, stage2: under bfloat16 autocast")
    parser.add_argument("--compile", action="store_true", help="with torch.compile")


if __name__ == "__main__":
    main()
