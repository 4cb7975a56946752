"""Initial slots for perceptual grouping."""

from typing import Callable, Optional

import torch
from torch import Tensor, nn

from ocl.typing import ConditioningOutput

Initializer = Callable[[Tensor], object]  # fills a tensor in place, as in torch.nn.init


def _initialize(initializer: Initializer, *shape: int) -> Tensor:
    tensor = torch.zeros(shape)
    initializer(tensor)
    return tensor


class _GaussianConditioning(nn.Module):
    """Slots drawn from one Gaussian each, or all from the same."""

    slots_mu: Tensor
    slots_logsigma: Tensor

    def __init__(
        self,
        object_dim: int,
        n_slots: int,
        n_gaussians: int,
        mean_init: Initializer,
        logsigma_init: Initializer,
        learn_mean: bool = True,
        learn_std: bool = True,
    ):
        super().__init__()
        self.object_dim, self.n_slots = object_dim, n_slots
        self._add("slots_mu", _initialize(mean_init, 1, n_gaussians, object_dim), learn_mean)
        self._add("slots_logsigma", _initialize(logsigma_init, 1, n_gaussians, object_dim), learn_std)

    def _add(self, name: str, value: Tensor, learn: bool) -> None:
        if learn:
            self.register_parameter(name, nn.Parameter(value))
        else:
            self.register_buffer(name, value)

    def _sample_noise(self, batch_size: int) -> Tensor:
        return torch.randn_like(self.slots_mu.expand(batch_size, self.n_slots, -1))

    def forward(self, batch_size: int) -> ConditioningOutput:
        """Draw slots (b, k, d)."""
        return self.slots_mu + self.slots_logsigma.exp() * self._sample_noise(batch_size)


class RandomConditioning(_GaussianConditioning):
    """Slots drawn from one Gaussian.

    Args:
        object_dim: channels d of the slots.
        n_slots: number of slots k.
        learn_mean: train the mean.
        learn_std: train the standard deviation.
        mean_init: fills the mean (1, 1, d) in place.
        logsigma_init: fills the logarithm of the standard deviation (1, 1, d) in place.
    """

    def __init__(
        self,
        object_dim: int,
        n_slots: int,
        learn_mean: bool = True,
        learn_std: bool = True,
        mean_init: Initializer = nn.init.xavier_uniform_,
        logsigma_init: Initializer = nn.init.xavier_uniform_,
    ):
        super().__init__(object_dim, n_slots, 1, mean_init, logsigma_init, learn_mean, learn_std)


class RandomConditioningWithQMCSampling(RandomConditioning):
    """Slots drawn from one Gaussian by quasi-Monte-Carlo, so that a batch covers it evenly."""

    def _sample_noise(self, batch_size: int) -> Tensor:
        sequence = torch.quasirandom.SobolEngine(self.object_dim, scramble=True)
        uniform = sequence.draw(batch_size * self.n_slots, dtype=torch.float64)
        # The sequence may contain 0, whose quantile is infinite.
        noise = torch.special.ndtri(uniform.clamp(min=2.0**-31))
        return noise.view(batch_size, self.n_slots, self.object_dim).to(self.slots_mu)


class LearntConditioning(nn.Module):
    """The same learned slots for every input.

    Args:
        object_dim: channels d of the slots.
        n_slots: number of slots k.
        slot_init: fills the slots (1, k, d) in place, by default with standard normal values.
    """

    def __init__(self, object_dim: int, n_slots: int, slot_init: Optional[Initializer] = None):
        super().__init__()
        self.object_dim, self.n_slots = object_dim, n_slots
        self.slots = nn.Parameter(_initialize(slot_init or nn.init.normal_, 1, n_slots, object_dim))

    def forward(self, batch_size: int) -> ConditioningOutput:
        """Return the slots (b, k, d)."""
        return self.slots.expand(batch_size, -1, -1)


class SlotwiseLearntConditioning(_GaussianConditioning):
    """Slots drawn from one learned Gaussian each.

    Args:
        object_dim: channels d of the slots.
        n_slots: number of slots k.
        mean_init: fills the means (1, k, d) in place.
        logsigma_init: fills the logarithms of the standard deviations (1, k, d) in place.
    """

    def __init__(
        self,
        object_dim: int,
        n_slots: int,
        mean_init: Initializer = nn.init.normal_,
        logsigma_init: Initializer = nn.init.xavier_uniform_,
    ):
        super().__init__(object_dim, n_slots, n_slots, mean_init, logsigma_init)
