"""The states of the random number generators, and streams that have generators of their own."""

import contextlib
import random
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import torch


def get_random_state(devices: bool = True) -> dict[str, Any]:
    """Return the states of Python's, numpy's and torch's generators as tensors and plain values.

    Args:
        devices: include the one of the current CUDA device, if it is in use.
    """
    state = _states(random, np.random, torch.default_generator)
    if devices and torch.cuda.is_initialized():
        state["cuda"] = torch.cuda.get_rng_state()
    return state


def _states(python: Any, numpy: Any, generator: torch.Generator) -> dict[str, Any]:
    name, keys, *rest = numpy.get_state()
    return {"python": python.getstate(), "numpy": [name, keys.tolist(), *rest], "torch": generator.get_state()}


def set_random_state(state: dict[str, Any]) -> None:
    """Put the generators into states that `get_random_state` returned."""
    version, keys, gauss = state["python"]
    random.setstate((version, tuple(keys), gauss))
    np.random.set_state(tuple(state["numpy"]))
    torch.set_rng_state(state["torch"])
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])


def draw_seed(advance: bool = True) -> int:
    """Draw a seed from torch's generator; without `advance` its state stays as it was."""
    with contextlib.nullcontext() if advance else torch.random.fork_rng(devices=[]):
        return int(torch.randint(2**62, ()))


def with_own_randomness(stream: Iterable, seed: int) -> Iterator:
    """Yield the elements of a stream, which draws from generators that start with `seed`.

    Outside, the generators are as if the stream had drawn nothing; those of the devices belong to the model.
    """
    own = _states(random.Random(seed), np.random.RandomState(seed % 2**32), torch.Generator().manual_seed(seed))
    iterator, end = iter(stream), object()
    while True:
        outer = get_random_state(devices=False)
        set_random_state(own)
        try:
            element = next(iterator, end)
        finally:
            own = get_random_state(devices=False)
            set_random_state(outer)
        if element is end:
            return
        yield element
