"""Modules of SLATE (Singh et al., 2022)."""

from collections.abc import Callable
from typing import Literal

from torch import Tensor, nn
from torch.nn import functional as F


class OneHotDictionary(nn.Module):
    """Embeddings of tokens that arrive as one-hot vectors.

    Args:
        vocab_size: number of tokens m.
        emb_size: channels d of the embeddings.
    """

    def __init__(self, vocab_size: int, emb_size: int):
        super().__init__()
        self.dictionary = nn.Embedding(vocab_size, emb_size)

    def forward(self, inputs: Tensor) -> Tensor:
        """Embed one-hot vectors (..., m) as (..., d)."""
        return self.dictionary(inputs.argmax(dim=-1))


class Conv2dBlockWithGroupNorm(nn.Module):
    """Convolution, group normalization with one group, ReLU.

    Args:
        in_channels: see `torch.nn.Conv2d`, like all other arguments but the last.
        out_channels: channels of the output.
        kernel_size: side of the kernel.
        stride: stride.
        padding: padding.
        dilation: dilation.
        groups: groups of the convolution.
        bias: give the convolution a bias, initially zero.
        padding_mode: kind of padding.
        weight_init: initialization of the kernel, `xavier` or `kaiming`.

    Raises:
        ValueError: if the initialization is unknown.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        stride: int = 1,
        padding: int = 0,
        dilation: int = 1,
        groups: int = 1,
        bias: bool = True,
        padding_mode: Literal["zeros", "reflect", "replicate", "circular"] = "zeros",
        weight_init: str = "xavier",
    ):
        super().__init__()
        initializers: dict[str, Callable] = {"xavier": nn.init.xavier_uniform_, "kaiming": nn.init.kaiming_uniform_}
        if weight_init not in initializers:
            raise ValueError(f"Unknown weight_init {weight_init!r}: choose xavier or kaiming.")
        self.conv2d = nn.Conv2d(
            in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias, padding_mode
        )
        self.group_norm = nn.GroupNorm(1, out_channels)
        initializers[weight_init](self.conv2d.weight)
        if self.conv2d.bias is not None:
            nn.init.zeros_(self.conv2d.bias)

    def forward(self, inputs: Tensor) -> Tensor:
        """Apply the block to maps (b, in_channels, h, w)."""
        return F.relu(self.group_norm(self.conv2d(inputs)))
