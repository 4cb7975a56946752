"""Modules of PyTorch that return more than the originals."""

from typing import Optional, Union

import torch
from torch import Tensor, nn


class TransformerDecoderLayerWithAttention(nn.TransformerDecoderLayer):
    """A pre-norm decoder layer that also returns its cross-attention."""

    def forward(  # type: ignore[override]  # without PyTorch's options that are not used here, and with another result
        self,
        tgt: Tensor,
        memory: Tensor,
        tgt_mask: Optional[Tensor] = None,
        memory_key_padding_mask: Optional[Tensor] = None,
    ) -> tuple[Tensor, Tensor]:
        """Decode.

        Args:
            tgt: (b, n, d).
            memory: (b, k, d).
            tgt_mask: (n, n), added to the logits of the self-attention.
            memory_key_padding_mask: (b, k) bool, true where the memory must not be read.

        Returns:
            Output (b, n, d) and the cross-attention (b, n, k), averaged over heads.
        """
        normed = self.norm1(tgt)
        x = tgt + self.dropout1(self.self_attn(normed, normed, normed, attn_mask=tgt_mask, need_weights=False)[0])
        read, attention = self.multihead_attn(self.norm2(x), memory, memory, key_padding_mask=memory_key_padding_mask)
        x = x + self.dropout2(read)
        hidden = self.dropout(self.activation(self.linear1(self.norm3(x))))
        return x + self.dropout3(self.linear2(hidden)), attention


class TransformerDecoderWithAttention(nn.TransformerDecoder):
    """A decoder that also returns the cross-attention of one layer, or its mean over layers.

    Args:
        decoder_layer: prototype of the layers.
        num_layers: number of layers.
        attention_weight_type: index of the layer, negative from the end, or `mean`.

    Raises:
        ValueError: if there is no such layer, or for any other string.
    """

    def __init__(
        self,
        decoder_layer: TransformerDecoderLayerWithAttention,
        num_layers: int,
        attention_weight_type: Union[int, str] = -1,
    ):
        super().__init__(decoder_layer, num_layers)
        if attention_weight_type != "mean" and attention_weight_type not in range(-num_layers, num_layers):
            raise ValueError(
                f"attention_weight_type is {attention_weight_type!r}, but has to be 'mean' or "
                f"the index of one of {num_layers} layers."
            )
        self.attention_weight_type = attention_weight_type

    def forward(  # type: ignore[override]  # without PyTorch's options that are not used here, and with another result
        self,
        tgt: Tensor,
        memory: Tensor,
        tgt_mask: Optional[Tensor] = None,
        memory_key_padding_mask: Optional[Tensor] = None,
    ) -> tuple[Tensor, Tensor]:
        """Decode; see `TransformerDecoderLayerWithAttention`.

        Returns:
            Output (b, n, d) and attention (b, k, n), which sums to 1 over k.
        """
        attentions = []
        for layer in self.layers:
            tgt, attention = layer(tgt, memory, tgt_mask, memory_key_padding_mask)
            attentions.append(attention)
        chosen = self.attention_weight_type
        attention = attentions[chosen] if isinstance(chosen, int) else torch.stack(attentions).mean(dim=0)
        return tgt, attention.transpose(1, 2)
