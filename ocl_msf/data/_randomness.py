"""States of the random generators, and streams with random generators of their own."""

import random
from typing import Any, Dict, Iterator

import numpy as np
import torch


def random_state(with_device: bool = True) -> Dict[str, Any]:
    """The states of Python's, NumPy's and torch's generators, in tensors and plain values.

    Args:
        with_device: include that of the current CUDA device, if one is in use.
    """
    name, words, *rest = np.random.get_state()
    state: Dict[str, Any] = {"python": random.getstate()}
    state["numpy"] = (name, torch.from_numpy(words.astype(np.int64)), *rest)  # type: ignore[attr-defined]
    state["torch"] = torch.get_rng_state()
    if with_device and torch.cuda.is_initialized():
        state["cuda"] = torch.cuda.get_rng_state()
    return state


def set_random_state(state: Dict[str, Any]) -> None:
    """Restore what `random_state` returned."""
    random.setstate(state["python"])
    name, words, *rest = state["numpy"]
    np.random.set_state((name, words.numpy().astype(np.uint32), *rest))
    torch.set_rng_state(state["torch"])
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])


def seed_all(seed: int) -> None:
    """Seed Python's, NumPy's and torch's generators on the CPU; those of devices belong to the model."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.default_generator.manual_seed(seed)


def with_own_rng(stream: Iterator[Any], seed: int) -> Iterator[Any]:
    """The elements of a stream whose random numbers come from `seed`; the generators outside it do not change."""
    inside = None
    while True:
        outside = random_state(with_device=False)
        try:
            if inside is None:
                seed_all(seed)
            else:
                set_random_state(inside)
            element = next(stream)
        except StopIteration:
            return
        finally:
            inside = random_state(with_device=False)
            set_random_state(outside)
        yield element
