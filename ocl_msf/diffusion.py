"""The decoder of SlotDiffusion: noise on the guidance is predicted from slots, and guidance is drawn from slots."""

from dataclasses import dataclass
from functools import reduce
from math import gcd
from typing import Callable, Optional, Sequence, Tuple

import torch
from diffusers import DDIMScheduler, DDPMScheduler, UNet2DConditionModel
from torch import nn


@dataclass
class DiffusionDecoderOutput:
    """What was predicted, and what it was to be.

    Attributes:
        prediction: of the noise (b, d, h, w).
        noise: what was added, standard normal (b, d, h, w).
        timesteps: how noisy each sample was made (b,), int64; 0 is nearly clean.
    """

    prediction: torch.Tensor
    noise: torch.Tensor
    timesteps: torch.Tensor


class DiffusionDecoder(nn.Module):
    """SlotDiffusion's denoising UNet on guidance, with slots as context of its cross-attention (section A.3).

    Ho et al. (2020), epsilon prediction, the default betas of diffusers. Codes of a VAE are neither centred nor of
    unit variance, which the noise schedule takes for granted. So the first training batch measures the mean of each
    channel and one standard deviation for all of them, as latent diffusion does (Rombach et al., 2022), and both stay
    in the checkpoint.

    In training mode timesteps and noise are drawn anew for every sample. In evaluation mode they are the same for
    every batch of a shape: timesteps evenly spaced over the batch, noise from a generator of seed 0.

    Args:
        object_dim: channels of a slot.
        guidance_dim: channels of the guidance, 4 in the paper.
        size: h = w of what `generate` draws by default; `forward` takes any.
        channels: of the UNet's levels, each at half the resolution of the one before. The first has no attention,
            being the largest, unless it is the only one.
        num_layers: residual blocks of a level.
        num_heads: of each attention; divides the channels of every level.
        num_timesteps: length of the noise schedule.
    """

    def __init__(
        self,
        object_dim: int,
        guidance_dim: int,
        size: int,
        channels: Sequence[int] = (128, 256, 384, 512),
        num_layers: int = 2,
        num_heads: int = 8,
        num_timesteps: int = 1000,
    ):
        super().__init__()
        if not channels or any(width % num_heads for width in channels):
            raise ValueError(f"channels must be one or more multiples of num_heads={num_heads}, got {list(channels)}.")
        deeper = len(channels) - 1
        self.object_dim, self.guidance_dim, self.size = object_dim, guidance_dim, size
        self.unet = UNet2DConditionModel(
            in_channels=guidance_dim,
            out_channels=guidance_dim,
            down_block_types=("DownBlock2D",) + ("CrossAttnDownBlock2D",) * deeper,
            up_block_types=("CrossAttnUpBlock2D",) * deeper + ("UpBlock2D",),
            block_out_channels=tuple(channels),
            layers_per_block=num_layers,
            attention_head_dim=num_heads,  # diffusers' name for the number of heads
            cross_attention_dim=object_dim,
            norm_num_groups=reduce(gcd, channels, 32),
        )
        self.noising = DDPMScheduler(num_timesteps)
        # trailing: starts from pure noise, as few steps must; unclipped: codes are not confined to [-1, 1]
        self.sampling = DDIMScheduler(num_timesteps, clip_sample=False, timestep_spacing="trailing")
        self.register_buffer("mean", torch.zeros(1, guidance_dim, 1, 1))
        self.register_buffer("deviation", torch.ones(()))
        self.register_buffer("measured", torch.tensor(0, dtype=torch.uint8))  # gloo of torch 2.0 sends no bool

    def forward(self, slots: torch.Tensor, guidance: torch.Tensor) -> DiffusionDecoderOutput:
        """Predict, from slots, the noise that was added to the guidance.

        Args:
            slots: (b, k, object_dim).
            guidance: (b, guidance_dim, h, w), any h and w.

        Raises:
            ValueError: slots or guidance have another number of channels, or dimensions.
        """
        self._check(slots, guidance)
        if self.training and not self.measured:
            self._measure(guidance)
        noise, timesteps = self._draw(guidance)
        noisy = self.noising.add_noise(self.standardize(guidance), noise, timesteps)
        return DiffusionDecoderOutput(self.predict(noisy, timesteps, slots), noise, timesteps)

    def predict(self, noisy: torch.Tensor, timesteps: torch.Tensor, slots: torch.Tensor) -> torch.Tensor:
        """The noise in standardized noisy guidance (b, d, h, w) at timesteps (b,) or (), given slots (b, k, d)."""
        return self.unet(noisy, timesteps, encoder_hidden_states=slots).sample

    def standardize(self, guidance: torch.Tensor) -> torch.Tensor:
        """Guidance (b, d, h, w) -> the same in single precision, centred and of unit variance once measured."""
        return (guidance.float() - self.mean) / self.deviation

    @torch.no_grad()
    def generate(
        self,
        slots: torch.Tensor,
        lookup: Optional[Callable[[torch.Tensor], torch.Tensor]] = None,
        size: Optional[Tuple[int, int]] = None,
        steps: int = 20,
        seed: int = 0,
    ) -> torch.Tensor:
        """Draw guidance from slots alone by DDIM (Song et al., 2021), deterministic but for its first noise.

        Args:
            slots: (b, k, object_dim).
            lookup: not needed; decoders that write code numbers are called with it.
            size: h and w of the guidance; the decoder's size by default.
            steps: of denoising.
            seed: of the first noise.

        Returns:
            Features (b, guidance_dim, h, w), continuous, near the codes but not among them.
        """
        generator = torch.Generator().manual_seed(seed)
        shape = (len(slots), self.guidance_dim, *(size or (self.size, self.size)))
        x = torch.randn(shape, generator=generator).to(slots.device)
        self.sampling.set_timesteps(steps)
        for timestep in self.sampling.timesteps:
            noise = self.predict(x, timestep.to(x.device), slots)
            x = self.sampling.step(noise.float(), timestep, x).prev_sample
        return x * self.deviation + self.mean

    @torch.no_grad()
    def _measure(self, guidance: torch.Tensor) -> None:
        guidance = guidance.float()
        self.mean.copy_(guidance.mean((0, 2, 3), keepdim=True))
        self.deviation.copy_((guidance - self.mean).square().mean().sqrt().clamp_min(1e-6))
        self.measured.fill_(1)

    def _draw(self, guidance: torch.Tensor) -> Tuple[torch.Tensor, torch.Tensor]:
        batch, total, device = len(guidance), self.noising.config.num_train_timesteps, guidance.device
        if self.training:
            return torch.randn_like(guidance, dtype=torch.float32), torch.randint(total, (batch,), device=device)
        noise = torch.randn(guidance.shape, generator=torch.Generator().manual_seed(0))
        return noise.to(device), ((torch.arange(batch, device=device) + 0.5) * (total / batch)).long()

    def _check(self, slots: torch.Tensor, guidance: torch.Tensor) -> None:
        if slots.ndim != 3 or slots.shape[2] != self.object_dim:
            raise ValueError(f"slots must be (b, k, {self.object_dim}), as object_dim says, got {tuple(slots.shape)}.")
        if guidance.ndim != 4 or guidance.shape[1] != self.guidance_dim:
            shape, wanted = tuple(guidance.shape), self.guidance_dim
            raise ValueError(f"guidance must be (b, {wanted}, h, w), as guidance_dim says, got {shape}.")
        if len(slots) != len(guidance):
            raise ValueError(f"There are slots of {len(slots)} images, but guidance of {len(guidance)}.")
