"""The processes that train together."""

import dataclasses
import itertools
from collections.abc import Iterable, Iterator
from typing import Any

from torch import distributed


@dataclasses.dataclass(frozen=True)
class Pass:
    """One pass over the shards: what all its readers have to agree on.

    Args:
        seed: determines the order of the shards.
        rank: index of this process.
        world_size: number of processes.
    """

    seed: int
    rank: int = 0
    world_size: int = 1


def new_pass(seed: int) -> Pass:
    """Begin a pass with the seed of the first rank; with `torch.distributed` all ranks have to call this."""
    return Pass(gather(seed)[0], rank(), world_size())


def world_size() -> int:
    """Return the number of processes that train together."""
    return distributed.get_world_size() if distributed.is_available() and distributed.is_initialized() else 1


def rank() -> int:
    """Return the index of this process among those that train together."""
    return distributed.get_rank() if world_size() > 1 else 0


def gather(value: Any) -> list[Any]:
    """Return the values that all processes pass, in the order of their ranks."""
    values = [value] * world_size()
    if len(values) > 1:
        distributed.all_gather_object(values, value)
    return values


def share_of_rank(samples: Iterable) -> Iterator:
    """Iterate every n-th of the samples that all n processes have, each process other ones."""
    return itertools.islice(samples, rank(), None, world_size())
