"""Initial slots (queries)."""

from dataclasses import dataclass
from typing import Any, Union

import torch
from torch import nn

from ocl_msf.frames import box_frames


class GaussianQueries(nn.Module):
    """Queries sampled from Gaussians with a learned mean for each slot and one scheduled sigma (section A.5).

    In evaluation mode the queries are the means: sigma is 0 and slot attention is deterministic. By default the means
    are initialised by the unit Gaussian, so that slots differ from the first step on, whatever sigma is.

    Args:
        object_dim: channels of a slot.
        n_slots: number of slots.
        sigma: standard deviation in training, a number or a schedule of the host (1 -> 0 in the paper), or "learned":
            one for each channel of each slot, at the start object_dim^-1/2, as in the authors' later code.
        shared: instead, all slots are drawn from one Gaussian with a learned mean and deviation (Locatello et al.,
            2020), so that no slot can stand for a place or a colour in every image; sigma is ignored. In evaluation
            mode they are the same draws for every image.
        mean_std: standard deviation of the initial means, or "xavier": they are uniform with the deviation
            (2 / (n_slots + object_dim))^1/2, as in the authors' later code. Without effect on the shared Gaussian.
    """

    draws: torch.Tensor

    def __init__(
        self,
        object_dim: int,
        n_slots: int,
        sigma: Union[float, str, nn.Module] = 1.0,
        shared: bool = False,
        mean_std: Union[float, str] = 1.0,
    ):
        super().__init__()
        self.object_dim = object_dim
        self.n_slots = n_slots
        self.sigma: Any = sigma
        self.shared = shared
        if shared:
            self.mean = nn.Parameter(torch.zeros(1, 1, object_dim))
            self.log_deviation = nn.Parameter(torch.zeros(1, 1, object_dim))
            self.register_buffer("draws", torch.randn(1, n_slots, object_dim))
        else:
            self.mean = nn.Parameter(torch.randn(1, n_slots, object_dim))
            with torch.no_grad():
                if mean_std == "xavier":
                    nn.init.xavier_uniform_(self.mean[0])
                else:
                    self.mean.mul_(float(mean_std))
            if sigma == "learned":
                self.log_deviation = nn.Parameter(torch.full_like(self.mean, object_dim**-0.5).log())

    def forward(self, batch_size: int) -> torch.Tensor:
        """Return queries (batch_size, n_slots, object_dim)."""
        mean = self.mean.expand(batch_size, self.n_slots, -1)  # b k d
        if self.shared:
            return mean + self.log_deviation.exp() * (torch.randn_like(mean) if self.training else self.draws)
        if not self.training:
            return mean
        deviation = self.log_deviation.exp() if self.sigma == "learned" else float(self.sigma)
        return mean + deviation * torch.randn_like(mean)


@dataclass
class BoxQueriesOutput:
    """Queries of a video.

    Attributes:
        queries: (b, k, object_dim), or (b, k, object_dim + 3) with frames.
        is_empty: (b, k), bool, True where there is no box: such a slot is off.
    """

    queries: torch.Tensor
    is_empty: torch.Tensor


class BoxQueries(nn.Module):
    """Queries from the boxes of a video's first frame, by a GELU MLP of two layers (section A.5).

    The first slot is the background's: its box is the whole frame, so that at least one slot is active. The other
    slots take the boxes in their order; boxes beyond the last slot are ignored, slots without a box are empty.

    With the usual initialisation of linear layers all boxes would get nearly the same query. So the MLP is initialised
    such that queries of random boxes have zero mean and unit variance, like the initial means of `GaussianQueries`.

    Args:
        object_dim: channels of a slot.
        n_slots: number of slots, the background's included.
        hidden_dim: of the MLP, `object_dim` by default.
        frames: queries have frames (see `ocl_msf.frames`), those of the boxes.

    Raises:
        ValueError: n_slots is below 1.
    """

    def __init__(self, object_dim: int, n_slots: int, hidden_dim: int = 0, frames: bool = False):
        super().__init__()
        if n_slots < 1:
            raise ValueError(f"n_slots must be 1 or more, one of them the background's, got {n_slots}.")
        self.object_dim = object_dim
        self.n_slots = n_slots
        self.frames = frames
        hidden_dim = hidden_dim or object_dim
        self.mlp = nn.Sequential(nn.Linear(4, hidden_dim), nn.GELU(), nn.Linear(hidden_dim, object_dim))
        self._init_spread()

    def forward(self, boxes: torch.Tensor) -> BoxQueriesOutput:
        """Encode boxes (b, t, n, 4): corners x, y, x, y in [0, 1], four zeros where an object is absent.

        Raises:
            ValueError: the boxes have another shape.
        """
        if boxes.dim() != 4 or boxes.shape[-1] != 4:
            raise ValueError(f"Boxes must be (batch, frames, objects, 4), but they are {tuple(boxes.shape)}.")
        first = boxes[:, 0, : self.n_slots - 1].to(next(self.mlp.parameters()).dtype)  # b n 4
        slots = first.new_zeros(len(first), self.n_slots, 4)  # b k 4
        slots[:, 0] = slots.new_tensor([0.0, 0.0, 1.0, 1.0])
        slots[:, 1 : 1 + first.shape[1]] = first
        queries = self.mlp(slots)  # b k d
        if self.frames:
            queries = torch.cat([queries, box_frames(slots)], -1)  # b k d+3
        return BoxQueriesOutput(queries, (slots == 0).all(-1))

    @torch.no_grad()
    def _init_spread(self) -> None:
        layers: Any = self.mlp
        first, _, last = layers
        first.bias.copy_(-(first.weight * torch.rand_like(first.weight)).sum(1))  # GELUs bend within the range of boxes
        boxes = torch.rand(1000, 2, 2).sort(1).values.flatten(1)  # upper left before lower right
        queries = self.mlp(boxes)
        mean, deviation = queries.mean(0), queries.var(0).mean().sqrt()
        last.bias.copy_((last.bias - mean) / deviation)
        last.weight.div_(deviation)
