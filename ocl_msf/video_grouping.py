"""Slot attention over the frames of a video: the host's, made to remember."""

from typing import Optional

import torch
from torch import nn

from ocl_msf._host import require_host

with require_host():
    from ocl.perceptual_grouping import SlotAttentionGrouping


class VideoSlotAttentionGrouping(SlotAttentionGrouping):
    """Slot attention whose slots survive a video: its GRU starts by keeping most of what a slot holds.

    In the beginning attention is nearly uniform, so that all slots are updated alike, and a GRU as it usually starts
    halves their differences in each iteration: after a few frames of 3 iterations all slots are the same, wherever
    they started, and nothing is learnt from them. A bias on the update gate prevents it, as one on the forget gate
    does for LSTMs (Jozefowicz et al., 2015). It is learnt like any other weight.

    Args:
        feature_dim: channels of the features, after the positional embedding.
        object_dim: channels of a slot.
        iters: iterations for each frame.
        ff_mlp: applied to slots at the end of an iteration.
        positional_embedding: applied to features.
        keep_bias: added to the update gate's bias at the start: 2 keeps 88 % of a slot in each iteration.
    """

    def __init__(
        self,
        feature_dim: int,
        object_dim: int,
        iters: int = 3,
        ff_mlp: Optional[nn.Module] = None,
        positional_embedding: Optional[nn.Module] = None,
        keep_bias: float = 2.0,
    ):
        super().__init__(feature_dim, object_dim, iters=iters, ff_mlp=ff_mlp, positional_embedding=positional_embedding)
        with torch.no_grad():  # gates are in the order reset, update, new
            self.slot_attention.gru.bias_ih[object_dim : 2 * object_dim] += keep_bias
