"""Time what this project is for, and print medians and ratios of one run: `python scripts/benchmark.py quantizer`."""

import argparse
import multiprocessing
import resource
import statistics
import time
from typing import Callable, Dict, List, Optional

import torch
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
        specific = match(target[:, channels:], codebooks[1 + i])[1]
        codes = torch.cat([codebooks[0][shared], codebooks[1 + i][specific]], -1).permute(0, 3, 1, 2)
        passed = features + (codes - features).detach()
        quantized.append(torch.einsum("buhw,uc->bchw", passed, weight))
        loss = loss + F.mse_loss(codes, features.detach()) + F.mse_loss(features, codes.detach())
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
    aids = dict(residual=0.5, temperature=0.5 * options.sample, replace_below=0.1)
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


def peak_memory(name: str, options: argparse.Namespace, answer) -> None:
    """Send the bytes that three steps need beyond what the process held before; meant for a fresh process."""
    if options.device == "cuda":
        step = build_step(name, options)
        step()
        torch.cuda.reset_peak_memory_stats()
        step()
        answer.send(torch.cuda.max_memory_allocated())
        return
    torch.set_num_threads(options.threads)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    step = build_step(name, options)
    for _ in range(3):
        step()
    answer.send(1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before))


def stage1(options: argparse.Namespace) -> None:
    """Whole steps of stage 1: MSF and plain VQ against each other and against encoder and decoder alone."""
    names = ["vq", "msf", "encoder + decoder"]
    times = time_in_turns({name: build_step(name, options) for name in names}, options)
    memory = {}
    for name in names:
        ours, theirs = multiprocessing.Pipe(duplex=False)
        process = multiprocessing.get_context("spawn").Process(target=peak_memory, args=(name, options, theirs))
        process.start()
        theirs.close()
        memory[name] = ours.recv()
        process.join()
    print_table(times, "vq", memory)


def compile_if(options: argparse.Namespace, function: Callable) -> Callable:
    """Compile on request."""
    return torch.compile(function) if options.compile else function


def time_in_turns(steps: Dict[str, Callable[[], None]], options: argparse.Namespace) -> Dict[str, float]:
    """Median seconds of each step; the steps take turns, so that a busy machine slows all of them."""

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
    """Print medians and their ratio to the row `unit`, as Markdown."""
    heads = ["", "median, ms", f"time / {unit}"] + (["peak memory, MB", f"memory / {unit}"] if memory else [])
    print("| " + " | ".join(heads) + " |\n|" + "---|" * len(heads))
    for name, seconds in times.items():
        cells = [name, f"{1000 * seconds:.1f}", f"{seconds / times[unit]:.2f}"]
        if memory:
            cells += [f"{memory[name] / 2**20:.0f}", f"{memory[name] / memory[unit]:.2f}"]
        print("| " + " | ".join(cells) + " |")


BENCHMARKS = {"quantizer": quantizer, "stage1": stage1}


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("benchmark", choices=BENCHMARKS)
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--dim", type=int, default=256, help="c, channels of the bottleneck (default: 256)")
    parser.add_argument("--size", type=int, default=128, help="height and width of the image (default: 128)")
    parser.add_argument("--repeat", type=int, default=15, help="timed turns (default: 15)")
    parser.add_argument("--warmup", type=int, default=3, help="turns before them (default: 3)")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--sample", action="store_true", help="stage1: with Gumbel-sampled matching")
    parser.add_argument("--bf16", action="store_true", help="stage1: under bfloat16 autocast")
    parser.add_argument("--compile", action="store_true", help="with torch.compile")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    BENCHMARKS[options.benchmark](options)


if __name__ == "__main__":
    main()
