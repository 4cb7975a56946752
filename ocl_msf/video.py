"""Videos as frames: models of images work on the frames of a video, folded into the batch."""

import dataclasses
from typing import Any

import torch
from torch import nn

from ocl_msf._renamed import refuse_old_names

__getattr__ = refuse_old_names(__name__)


class FoldFrames(nn.Module):
    """Fold time into the batch: (b, t, ...) -> (b * t, ...), of a tensor or of every tensor in a dataclass."""

    def forward(self, video: Any) -> Any:
        """Fold a tensor (b, t, ...), or a dataclass of such tensors."""
        if isinstance(video, torch.Tensor):
            return video.flatten(0, 1)  # b*t ...
        folded = {name: x.flatten(0, 1) for name, x in vars(video).items() if isinstance(x, torch.Tensor)}
        return dataclasses.replace(video, **folded)
