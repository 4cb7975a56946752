"""Benchmarks; each prints medians and ratios as a table: `python scripts/benchmark.py quantizer`."""

import argparse
import multiprocessing
import statistics
import time
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Callable, Dict, List, Optional

import _stage2
import torch
from _data import add_data_options, data
from _loader import add_loader_options, loader
from torch.nn import functional as F

from ocl_msf.autoencoder import VQVAE, Decoder, Encoder
from ocl_msf.fusion import MultiScaleFusion
from ocl_msf.losses import PyramidLoss
from ocl_msf.quantization import VectorQuantizer


def literal_algorithm_1(weight: torch.Tensor, codebooks: List[torch.Tensor], maps: List[torch.Tensor]):
    """The paper's listing as it stands, every source matched with a softmax at every target scale."""
    channels = maps[0].shape[1]
    inverse = torch.linalg.pinv(weight)
    encoded = [torch.einsum("bchw,cu->buhw", z, inverse) for z in maps]

    def match(features, codes):
        rows = features.permute(0, 2, 3, 1)
        distance = torch.cdist(rows.flatten(0, 2), codes).view(*rows.shape[:3], -1)
        return (-distance).softmax(-1).max(-1)

    quantized, loss = [], 0.0
    for i, target in enumerate(encoded):
        brought = []
        for j, source in enumerate(encoded):
            part = source[:, :channels]
            if j < i:
                part = F.avg_pool2d(part, 2 ** (i - j))
            elif j > i:
                part = F.interpolate(part, scale_factor=2 ** (j - i), mode="nearest")
            brought.append(part)
        confidence, numbers = (torch.stack(x) for x in zip(*(match(x, codebooks[0]) for x in brought)))
        winner = confidence.argmax(0)
        shared = numbers.gather(0, winner[None])[0]
        index = winner[None, :, None].expand(1, -1, channels, -1, -1)
        features = torch.cat([torch.stack(brought).gather(0, index)[0], target[:, channels:]], 1)
        variant = match(target[:, channels:], codebooks[1 + i])[1]
        codes = torch.cat([codebooks[0][shared], codebooks[1 + i][variant]], -1).permute(0, 3, 1, 2)
        passed = features + (codes - features).detach()
        quantized.append(torch.einsum("buhw,uc->bchw", passed, weight))
        loss = loss + F.mse_loss(codes, features.detach()) + F.mse_loss(features, codes.detach())  # type: ignore[assignment]
    return quantized, loss


def quantizer(options: argparse.Namespace) -> None:
    """Forward and backward of the MSF quantiser, ours against the literal listing."""
    torch.manual_seed(0)
    fusion = MultiScaleFusion(options.dim, 64, 3).to(options.device)
    sizes = [options.size // 4 >> n for n in range(3)]
    maps = [torch.randn(options.batch, options.dim, s, s, device=options.device, requires_grad=True) for s in sizes]
    codebooks = [book.weight for book in fusion.codebooks]

    def ours():
        output = fusion(maps)
        return output.quantized, output.codebook_loss + output.commitment_loss

    def literal():
        return literal_algorithm_1(fusion.project.weight, codebooks, maps)

    def step_of(run):
        run = compile_if(options, run)

        def step():
            quantized, loss = run()
            (sum(x.square().mean() for x in quantized) + loss).backward()

        return step

    steps = {"ours": step_of(ours), "literal Algorithm 1": step_of(literal)}
    print_table(time_in_turns(steps, options), "ours")


def build_step(name: str, options: argparse.Namespace) -> Callable[[], None]:
    """One step of stage 1: forward, losses, backward, clipping and Adam."""
    torch.manual_seed(0)
    encoder, decoder = Encoder(options.dim), Decoder(options.dim)
    aids = dict(residual=0.5 * options.annealing, temperature=0.5 * options.annealing, replace_below=0.1)
    if name == "msf":
        model = VQVAE(encoder, decoder, MultiScaleFusion(options.dim, 64, 3, **aids), 3)
    else:
        model = VQVAE(encoder, decoder, VectorQuantizer(options.dim, 4096, **aids), 1, variant="vq")
    model = model.to(options.device).train()
    optimizer = torch.optim.Adam(model.parameters(), 2e-3)
    pyramid_loss = PyramidLoss()
    image = torch.rand(options.batch, 3, options.size, options.size, device=options.device) * 2 - 1

    def forward():
        if name == "encoder + decoder":
            return F.mse_loss(model.decoder(model.encoder(image)), image)
        output = model(image)
        loss = pyramid_loss(output.reconstructions, output.pyramid)
        return loss + output.codebook_loss + 0.25 * output.commitment_loss

    forward = compile_if(options, forward)

    def step():
        optimizer.zero_grad()
        with torch.autocast(options.device, torch.bfloat16, enabled=options.bf16):
            loss = forward()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()

    return step


def peak_memory(build: Callable, name: str, options: argparse.Namespace, sender: Connection) -> None:
    """Send the peak memory of steps, in bytes, beyond what is held before them; to run in a fresh process."""
    torch.set_num_threads(options.threads)
    before = peak_of_process(options.device)
    step = build(name, options)
    for _ in range(min(2, options.warmup + options.repeat)):  # Adam's state exists from the first step on
        step()
    sender.send(peak_of_process(options.device) - before)


def peak_of_process(device: str) -> int:
    """Peak memory of this process in bytes; on a CPU that of the Linux kernel, which does not count the parent's."""
    if device == "cuda":
        return torch.cuda.max_memory_allocated()
    (line,) = [x for x in Path("/proc/self/status").read_text().splitlines() if x.startswith("VmHWM")]
    return 1024 * int(line.split()[1])


def compare(
    build: Callable, names: List[str], unit: str, options: argparse.Namespace, parts: Optional[Dict[str, int]] = None
) -> None:
    """Print time and peak memory of the steps that `build(name, options)` makes.

    Args:
        parts: by name, if a step does only a part of the work: the number that its time is multiplied by.
    """
    memory: Dict[str, float] = {}  # measured first, while this process itself holds little
    for name in names:
        receiver, sender = multiprocessing.Pipe(duplex=False)
        process = multiprocessing.get_context("spawn").Process(target=peak_memory, args=(build, name, options, sender))
        process.start()
        sender.close()
        memory[name] = receiver.recv()
        process.join()
    times = time_in_turns({name: build(name, options) for name in names}, options)
    times = {name: seconds * (parts or {}).get(name, 1) for name, seconds in times.items()}
    print_table(times, unit, memory)


def stage1(options: argparse.Namespace) -> None:
    """Whole steps of stage 1: MSF, plain VQ, and the encoder and decoder without a quantiser."""
    compare(build_step, ["vq", "msf", "encoder + decoder"], "vq", options)


def stage2(options: argparse.Namespace) -> None:
    """Whole steps of SLATE, and on request of its decoder alone, against nn.TransformerDecoder with a float mask."""
    for part in ["stage 2"] + ["decoder"] * options.decoder:
        compare(_stage2.build_step, [part, f"{part}, {_stage2.PLAIN}"], part, options)
        print()


def generate(options: argparse.Namespace) -> None:
    """Generation of images from slots, with and without the cache of keys and values."""
    if options.every > 1:
        print(f"no cache: the time of every {options.every}th token, times {options.every}; --every 1 times all.\n")
    compare(_stage2.build_generation, ["cache", "no cache"], "cache", options, {"no cache": options.every})


def compile_if(options: argparse.Namespace, function: Callable) -> Callable:
    """Compile the function with --compile."""
    return torch.compile(function) if options.compile else function


def time_in_turns(steps: Dict[str, Callable[[], None]], options: argparse.Namespace) -> Dict[str, float]:
    """Median seconds of each step; the steps take turns, so that other load slows all of them."""

    def clock():
        if options.device == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()

    times: Dict[str, List[float]] = {name: [] for name in steps}
    for turn in range(options.warmup + options.repeat):
        for name, step in steps.items():
            begin = clock()
            step()
            if turn >= options.warmup:
                times[name].append(clock() - begin)
    return {name: statistics.median(values) for name, values in times.items()}


def print_table(times: Dict[str, float], unit: str, memory: Optional[Dict[str, float]] = None) -> None:
    """Print medians and their ratios to the row `unit` as a Markdown table."""
    heads = ["", "median, ms", f"time / {unit}"] + (["peak memory, MiB", f"memory / {unit}"] if memory else [])
    print("| " + " | ".join(heads) + " |\n|" + "---|" * len(heads))
    for name, seconds in times.items():
        cells = [name, f"{1000 * seconds:.1f}", f"{seconds / times[unit]:.2f}"]
        if memory:
            cells += [f"{memory[name] / 2**20:.0f}", f"{memory[name] / memory[unit]:.2f}"]
        print("| " + " | ".join(cells) + " |")


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    benchmarks = parser.add_subparsers(dest="benchmark", required=True)
    turns = {quantizer: 15, stage1: 15, stage2: 3, generate: 3, loader: 7, data: 3}
    for run, repeat in turns.items():
        name = run.__name__
        one = benchmarks.add_parser(name, help=run.__doc__, description=run.__doc__)
        one.set_defaults(run=run)
        one.add_argument("--size", type=int, default=128, help="height and width of the images (default: 128)")
        one.add_argument("--repeat", type=int, default=repeat, help="timed turns (default: %(default)s)")
        warmup = 1 if run in (stage2, generate) else 2
        one.add_argument("--warmup", type=int, default=warmup, help="turns before them (default: %(default)s)")
        if run is data:
            add_data_options(one)
        elif run is loader:
            add_loader_options(one)
        else:
            add_model_options(one, {stage2: 8, generate: 1}.get(run, 16))
        if run is stage2:
            one.add_argument("--decoder", action="store_true", help="also the decoder alone")
        if run is generate:
            one.add_argument("--every", type=int, default=16, help="tokens per timed one without cache (default: 16)")
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
