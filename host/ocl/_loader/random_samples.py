"""Random samples in place of real data."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

from ocl._loader.random_state import draw_seed


class RandomSamples:
    """A given number of random samples, new ones in each iteration.

    Args:
        shapes: shape by field.
        types: type by field, see `ocl.datasets.DummyDataModule`.
        size: number of samples.

    Raises:
        ValueError: if a type is unknown, or a mask does not have four axes.
    """

    def __init__(self, shapes: Mapping[str, tuple[int, ...]], types: Mapping[str, str], size: int):
        self.generators = {field: _generator(types[field], shape) for field, shape in shapes.items()}
        self.size = size

    def __iter__(self) -> Iterator[dict[str, Any]]:
        rng = np.random.default_rng(draw_seed())
        for index in range(self.size):
            yield {"__key__": str(index), **{field: draw(rng) for field, draw in self.generators.items()}}


def _generator(kind: str, shape: tuple[int, ...]) -> Callable[[np.random.Generator], np.ndarray]:
    """Return the function that draws a value of a type from a numpy generator."""
    if kind == "image":
        return lambda rng: rng.integers(0, 256, shape, dtype=np.uint8)
    if kind == "binary":
        return lambda rng: rng.integers(0, 2, shape, dtype=np.uint8).astype(bool)
    if kind == "uniform":
        return lambda rng: rng.random(shape, dtype=np.float32)
    if kind == "mask":
        if len(shape) != 4:
            raise ValueError(f"A random mask has the four axes k, h, w, 1, not the shape {shape}.")
        classes = np.arange(shape[0]).reshape(-1, 1, 1, 1)
        return lambda rng: (rng.integers(0, shape[0], shape[1:]) == classes).astype(np.uint8)
    name, *bounds = kind.split("_")
    if name == "categorical" and len(bounds) in (1, 2) and all(bound.isdigit() for bound in bounds):
        low, high = map(int, bounds if len(bounds) == 2 else ["0", *bounds])
        return lambda rng: rng.integers(low, high, shape, dtype=np.uint8 if high <= 256 else np.int64)
    raise ValueError(
        f"Random data cannot be of type `{kind}`; the types are image, binary, uniform, mask, "
        "categorical_<n> and categorical_<low>_<high>."
    )
