"""Forming batches from samples."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import default_collate

from ocl.utils.trees import is_namedtuple


def collate_with_batch_size(batch: list[Any]) -> Any:
    """Collate with torch's default rules; a batch of dicts gets a further entry `batch_size`."""
    collated = default_collate(batch)
    return {**collated, "batch_size": len(batch)} if isinstance(batch[0], Mapping) else collated


def collate_with_autopadding(batch: list[Any]) -> Any:
    """Collate like `collate_with_batch_size`, also tensors and arrays that differ in shape.

    These are padded with zeros at the end of each axis to the largest size. Dicts get `batch_size` at every level.

    Args:
        batch: samples of the same structure.

    Raises:
        ValueError: if tensors differ in their number of axes, or samples in their structure.
        TypeError: if there is no rule for a type.
    """
    first = batch[0]
    if isinstance(first, Mapping):
        _check_same_fields(batch)
        fields = {key: collate_with_autopadding([sample[key] for sample in batch]) for key in first}
        return {**fields, "batch_size": len(batch)}
    if isinstance(first, (list, tuple)):
        if len({len(sample) for sample in batch}) > 1:
            raise ValueError("Sequences of different length cannot be collated.")
        collated = [collate_with_autopadding(list(elements)) for elements in zip(*batch)]
        return type(first)(*collated) if is_namedtuple(first) else collated
    if isinstance(first, (Tensor, np.ndarray)) and len({tuple(x.shape) for x in batch}) > 1:
        return _stack_padded([torch.as_tensor(x) for x in batch])
    return default_collate(batch)


def _check_same_fields(batch: Sequence[Mapping[str, Any]]) -> None:
    for sample in batch:
        if sample.keys() != batch[0].keys():
            raise ValueError(
                f"Samples {batch[0].get('__key__')!r} and {sample.get('__key__')!r} cannot form a batch, only one of "
                f"them has {sorted(sample.keys() ^ batch[0].keys())}. Add what is missing, or drop it, by a transform."
            )


def _stack_padded(tensors: Sequence[Tensor]) -> Tensor:
    shapes = [tuple(tensor.shape) for tensor in tensors]
    if len({len(shape) for shape in shapes}) > 1:
        raise ValueError(f"Tensors with different numbers of axes cannot be padded: {shapes}.")
    padded = tensors[0].new_zeros((len(tensors), *map(max, zip(*shapes))))
    for row, tensor in zip(padded, tensors):
        row[tuple(map(slice, tensor.shape))] = tensor
    return padded
