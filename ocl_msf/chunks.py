"""Bounded memory: a module's forward in evaluation, a few images at a time."""

import dataclasses
import functools
from typing import Any, Callable, Optional, TypeVar

import torch

MAX_IMAGES = 32  # the batch of the paper's stage 2, so that evaluation takes no more memory than training

Forward = TypeVar("Forward", bound=Callable[..., Any])


def evaluate_in_chunks(forward: Forward) -> Forward:
    """Decorate a method of a module such that, in evaluation mode, it gets at most `max_images` images at a time.

    A video is evaluated in full, and its frames are folded into the batch: all of them at once would need much more
    memory than training does. The result is the same, because in evaluation every image is treated by itself.

    Args:
        forward: a method whose arguments are tensors (b, ...) or None, and whose result `in_chunks` can join. Its
            module may have an attribute `max_images`; the default is `MAX_IMAGES`.
    """

    @functools.wraps(forward)
    def chunked(self: torch.nn.Module, *inputs: Any, **named: Any) -> Any:
        whole = functools.partial(forward, self)
        if self.training:
            return whole(*inputs, **named)
        return in_chunks(whole, getattr(self, "max_images", MAX_IMAGES), *inputs, **named)

    return chunked  # type: ignore[return-value]


def in_chunks(
    function: Callable[..., Any], size: int, *inputs: Optional[torch.Tensor], **named: Optional[torch.Tensor]
) -> Any:
    """Apply a function of images to at most `size` of them at a time.

    Args:
        function: maps tensors (b, ...) to a tensor (b, ...), or to a dataclass or tuple of tensors (b, ...), of None
            and of such tuples.
        size: how many images at a time.
        inputs, named: (b, ...) each, or None.

    Returns:
        What `function(*inputs, **named)` returns, if it treats every image by itself.
    """
    total = next(len(x) for x in (*inputs, *named.values()) if x is not None)
    if total <= size:
        return function(*inputs, **named)
    whole = None
    for start in range(0, total, size):
        chunk = slice(start, start + size)
        part = function(
            *(None if x is None else x[chunk] for x in inputs),
            **{name: None if x is None else x[chunk] for name, x in named.items()},
        )
        if whole is None:  # allocate the result once: collecting the parts would hold all of it twice
            whole = _map(lambda x: x.new_empty(total, *x.shape[1:]), part)
        _map(lambda x, y, chunk=chunk: x[chunk].copy_(y), whole, part)
    return whole


def _map(function: Callable[..., torch.Tensor], first: Any, *others: Any) -> Any:
    """Apply a function to the tensors of results of the same structure."""
    if first is None:
        return None
    if isinstance(first, torch.Tensor):
        return function(first, *others)
    if isinstance(first, tuple):
        return tuple(_map(function, *same) for same in zip(first, *others))
    fields = [field.name for field in dataclasses.fields(first)]
    return type(first)(**{name: _map(function, *(getattr(x, name) for x in (first, *others))) for name in fields})
