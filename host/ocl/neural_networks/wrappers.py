"""Modules that combine other modules."""

from typing import Any

from torch import Tensor, nn


class Residual(nn.Module):
    """Add the input of a module to its output."""

    def __init__(self, module: nn.Module):
        super().__init__()
        self.module = module

    def forward(self, inputs: Tensor) -> Tensor:
        """Return inputs + module(inputs)."""
        return inputs + self.module(inputs)


class Sequential(nn.Module):
    """Run modules one after the other; a tuple becomes several inputs of the next one."""

    def __init__(self, *layers: nn.Module):
        super().__init__()
        self.layers = nn.ModuleList(layers)  # its name is part of those of parameters

    def forward(self, *inputs: Any) -> Any:
        """Pass the inputs to the first module and return the output of the last."""
        for layer in self.layers:
            outputs = layer(*inputs)
            inputs = outputs if isinstance(outputs, tuple) else (outputs,)
        return outputs
