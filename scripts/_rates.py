"""Rates of runs that take turns, and the tables of them."""

import statistics
import time
from typing import Callable, Dict, List, Tuple


def rates_in_turns(runs: Dict[str, Callable[[], int]], repeat: int, warmup: int = 0) -> Dict[str, List[float]]:
    """Measure what is done per second; the runs, which return numbers of it, take turns.

    Args:
        runs: by name.
        repeat: number of turns.
        warmup: turns before them, which are not measured.
    """
    rates: Dict[str, List[float]] = {name: [] for name in runs}
    for _ in range(warmup + repeat):
        for name, run in runs.items():
            start = time.perf_counter()
            count = run()
            rates[name].append(count / (time.perf_counter() - start))
    return {name: values[warmup:] for name, values in rates.items()}


def print_rates(rates: Dict[str, List[float]], things: str, ratios: Dict[str, Tuple[str, str]]) -> None:
    """Print the medians as a Markdown table, and ratios: medians over the turns.

    Args:
        rates: of every turn, by name.
        things: what is done.
        ratios: the names of numerator and denominator, by what the ratio is called.
    """
    print(f"| | {things} per second |\n|---|---|")
    for name, values in rates.items():
        print(f"| {name} | {statistics.median(values):.0f} |")
    for ratio, (one, other) in ratios.items():
        print(f"\n{ratio}: {statistics.median(a / b for a, b in zip(rates[one], rates[other])):.2f}")
