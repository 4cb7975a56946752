"""Whether code runs to be traced into a graph."""

import torch


def is_traced() -> bool:
    """Whether torch.compile or torch.export follows what is computed; torch 2.0 cannot tell, and it is False."""
    is_compiling = getattr(getattr(torch, "compiler", None), "is_compiling", None)  # from torch 2.1 on
    return is_compiling is not None and is_compiling()
