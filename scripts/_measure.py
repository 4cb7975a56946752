"""Time and peak memory of steps, and the tables of them."""

import argparse
import multiprocessing
import statistics
import time
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Callable, Dict, List, Optional

import torch
import torch._dynamo  # noqa: F401  as optimizers import it when they are first used: its memory is none of a step


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


def compile_if(options: argparse.Namespace, function: Callable) -> Callable:
    """Compile the function with --compile."""
    return torch.compile(function) if options.compile else function


def training_step(
    model: torch.nn.Module, optimizer: torch.optim.Optimizer, loss_of: Callable, options: argparse.Namespace
) -> Callable[[], None]:
    """A step of training: `loss_of()`, compiled with --compile, backward, clipping and the optimiser."""
    loss_of = compile_if(options, loss_of)

    def step():
        optimizer.zero_grad()
        with torch.autocast(options.device, torch.bfloat16, enabled=options.bf16):
            loss = loss_of()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()

    return step


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
