"""The decoder of SlotDiffusion: it predicts noise on the guidance from slots, and samples guidance from slots."""

from dataclasses import dataclass
from functools import reduce
from math import gcd
from typing import Any, Optional, Sequence, Tuple, Union

import torch
from diffusers import DDIMScheduler, DDPMScheduler, UNet2DConditionModel
from torch import nn

from ocl_msf.chunks import evaluate_in_chunks
from ocl_msf.decoding import height_and_width
from ocl_msf.frames import FRAME_CHANNELS, FRAME_FEATURES, frame_features, split_frames


@dataclass
class DiffusionDecoderOutput:
    """Prediction and target.

    Every sample is noised `levels` times: once in training, `eval_levels` of the decoder in evaluation.

    Attributes:
        prediction: of the target (b, levels, d, h, w).
        target: the noise, or in training with v prediction the velocity (b, levels, d, h, w).
        noise: the noise added, standard normal (b, levels, d, h, w).
        timesteps: the noise level (b, levels), int64; 0 is nearly clean.
    """

    prediction: torch.Tensor
    target: torch.Tensor
    noise: torch.Tensor
    timesteps: torch.Tensor


class DiffusionDecoder(nn.Module):
    """SlotDiffusion's denoising UNet on guidance, with slots as context of its cross-attention (section A.3).

    Its noise schedule assumes centred inputs of unit variance, which codes of a VAE are not. So the mean of each
    channel and one standard deviation for all of them are measured on the first training batch, as in latent diffusion
    (Rombach et al., 2022); both stay in the checkpoint.

    In training mode a timestep and its noise are drawn for every sample of the batch. In evaluation mode all samples
    have the same evenly spaced timesteps, each with its own fixed noise from a generator of seed 0, so the result for a
    sample does not depend on the others.

    Args:
        object_dim: channels of a slot.
        guidance_dim: channels of the guidance, 4 in the paper.
        size: h and w of the guidance, or one number for both: the default of `generate`; `forward` takes any.
        channels: of the UNet's levels, each at half the resolution of the one before.
        num_layers: residual blocks of a level.
        num_heads: of each attention; divides the channels of every level.
        num_timesteps: length of the noise schedule.
        eval_levels: number of timesteps of evaluation; its time grows with them, its memory does not.
        attention_from: the first level with cross-attention to slots. The paper's sizes leave out level 0, the
            largest; the UNet's middle block always has it.
        prediction_type: "epsilon", the noise, as in the paper; or "v_prediction", the velocity sqrt(a) noise -
            sqrt(1 - a) guidance, where a is the guidance's part of the variance (Salimans and Ho, 2022). An error e of
            the guidance predicted from slots costs a / (1 - a) e^2 in the noise loss, which vanishes at high noise,
            where only slots say anything of the guidance, but 1 / (1 - a) e^2 in the velocity loss. So the model
            learns to use slots in far fewer steps. Evaluation is of the noise in either case.
        coordinates: the UNet also gets the row and column of each position, from -1 to 1, as two more channels (Liu
            et al., 2018). The paper's UNet knows positions from its padding alone, which takes long to learn.
        frames: slots have frames (see `ocl_msf.frames`), which are projected and added to them: with coordinates, the
            product of a query and a key can then fall with the distance from a slot's position.
        dropout: in the UNet's residual blocks; 0.1 in SlotDiffusion (Wu et al., 2023).
        betas: the first and the last variance of the noise schedule: 0.0015 and 0.0195 in SlotDiffusion, 1e-4 and 0.02
            in Ho et al. (2020).
        beta_schedule: how variances rise between them: "linear", as in Ho et al., or "scaled_linear", where their
            square roots rise linearly, as in SlotDiffusion. There more of the guidance is left at high noise.

    Raises:
        ValueError: there are no channels or they cannot be split into heads, eval_levels is not in
            1 to num_timesteps, there is no level attention_from, or prediction_type is neither of the two.
    """

    mean: torch.Tensor
    deviation: torch.Tensor
    measured: torch.Tensor

    def __init__(
        self,
        object_dim: int,
        guidance_dim: int,
        size: Union[int, Sequence[int]],
        channels: Sequence[int] = (128, 256, 384, 512),
        num_layers: int = 2,
        num_heads: int = 8,
        num_timesteps: int = 1000,
        eval_levels: int = 4,
        attention_from: int = 1,
        prediction_type: str = "epsilon",
        coordinates: bool = False,
        frames: bool = False,
        dropout: float = 0.0,
        betas: Sequence[float] = (1e-4, 0.02),
        beta_schedule: str = "linear",
    ):
        super().__init__()
        if not channels or any(width % num_heads for width in channels):
            raise ValueError(f"channels must be one or more multiples of num_heads={num_heads}, got {list(channels)}.")
        if not 1 <= eval_levels <= num_timesteps:
            raise ValueError(f"eval_levels must be 1 to num_timesteps={num_timesteps}, got {eval_levels}.")
        if not 0 <= attention_from <= len(channels):
            raise ValueError(f"attention_from must be 0 to {len(channels)}, as there are levels, got {attention_from}.")
        if prediction_type not in ("epsilon", "v_prediction"):
            raise ValueError(f"prediction_type must be epsilon or v_prediction, got {prediction_type!r}.")
        plain, attending = attention_from, len(channels) - attention_from
        self.object_dim, self.guidance_dim, self.size = object_dim, guidance_dim, height_and_width(size)
        self.eval_levels, self.coordinates = eval_levels, coordinates
        self.unet: Any = UNet2DConditionModel(
            in_channels=guidance_dim + 2 * coordinates,
            out_channels=guidance_dim,
            down_block_types=("DownBlock2D",) * plain + ("CrossAttnDownBlock2D",) * attending,
            up_block_types=("CrossAttnUpBlock2D",) * attending + ("UpBlock2D",) * plain,
            block_out_channels=tuple(channels),
            layers_per_block=num_layers,
            attention_head_dim=num_heads,  # diffusers' name for the number of heads
            cross_attention_dim=object_dim,
            norm_num_groups=reduce(gcd, channels, 32),
            dropout=dropout,
        )
        self.project_frames = nn.Linear(FRAME_FEATURES, object_dim) if frames else None
        schedule = dict(zip(("beta_start", "beta_end"), betas), beta_schedule=beta_schedule)
        self.noising: Any = DDPMScheduler(num_timesteps, prediction_type=prediction_type, **schedule)
        # trailing: starts from pure noise, as few steps must; unclipped: codes are not confined to [-1, 1]
        self.sampling: Any = DDIMScheduler(
            num_timesteps,
            clip_sample=False,
            timestep_spacing="trailing",
            prediction_type=prediction_type,
            **schedule,
        )
        self.register_buffer("mean", torch.zeros(1, guidance_dim, 1, 1))
        self.register_buffer("deviation", torch.ones(()))
        self.register_buffer("measured", torch.tensor(0, dtype=torch.uint8))  # gloo of torch 2.0 sends no bool

    @evaluate_in_chunks
    def forward(
        self, slots: torch.Tensor, guidance: torch.Tensor, slot_mask: Optional[torch.Tensor] = None
    ) -> DiffusionDecoderOutput:
        """Predict, from slots, the noise that was added to the guidance, or its velocity.

        Arguments as for `ocl_msf.decoding.Decoder.forward`, with any h and w.

        Raises:
            ValueError: slots or guidance have another number of channels, or dimensions.
        """
        self._check(slots, guidance)
        if self.training and not self.measured:
            self._measure(guidance)
        clean = self.standardize(guidance)  # b d h w
        noise, timesteps = self._sample_noise(guidance)  # levels b d h w, levels b
        noisy = [self.noising.add_noise(clean, *level) for level in zip(noise, timesteps)]  # levels times b d h w
        prediction = [self.predict(x, t, slots, slot_mask) for x, t in zip(noisy, timesteps)]  # levels times b d h w
        target = noise  # levels b d h w
        if self.noising.config.prediction_type == "v_prediction":
            if self.training:
                target = torch.stack([self.noising.get_velocity(clean, *level) for level in zip(noise, timesteps)])
            else:  # the noise is the velocity of the velocity, but for a sign
                levels = zip(noisy, prediction, timesteps)
                prediction = [self.noising.get_velocity(-x, v.float(), t) for x, v, t in levels]
        # b levels d h w, thrice; b levels
        parts = torch.stack(prediction, 1), target.transpose(0, 1), noise.transpose(0, 1), timesteps.T
        return DiffusionDecoderOutput(*parts)

    def predict(
        self,
        noisy: torch.Tensor,
        timesteps: torch.Tensor,
        slots: torch.Tensor,
        slot_mask: Optional[torch.Tensor] = None,
    ) -> torch.Tensor:
        """Predict the noise, or velocity, in noisy standardized guidance (b, d, h, w) at timesteps (b,) or ().

        Slots (b, k, d) that slot_mask (b, k) turns off take no part. If all are off, it is predicted from zeros.
        """
        if self.coordinates:
            noisy = torch.cat([noisy, _coordinates(noisy)], 1)  # b (d + 2) h w
        if self.project_frames is not None:
            vectors, frames = split_frames(slots)
            slots = vectors + self.project_frames(frame_features(frames))  # b k d
        if slot_mask is not None:
            slots = slots.masked_fill(slot_mask[..., None], 0.0)  # b k d; for samples whose slots are all off
            slot_mask = ~slot_mask  # the UNet's is True where a slot is on
        return self.unet(noisy, timesteps, encoder_hidden_states=slots, encoder_attention_mask=slot_mask).sample

    def standardize(self, guidance: torch.Tensor) -> torch.Tensor:
        """Guidance (b, d, h, w) -> the same in single precision, centred and of unit variance once measured."""
        return (guidance.float() - self.mean) / self.deviation

    @torch.no_grad()
    def generate(
        self,
        slots: torch.Tensor,
        size: Optional[Tuple[int, int]] = None,
        slot_mask: Optional[torch.Tensor] = None,
        steps: int = 20,
        seed: int = 0,
    ) -> torch.Tensor:
        """Sample guidance from slots alone by DDIM (Song et al., 2021), deterministic but for its first noise.

        Args:
            slots, size, slot_mask: as for `ocl_msf.decoding.Decoder.generate`.
            steps: of denoising.
            seed: of the first noise, the same for every sample.

        Returns:
            Features (b, guidance_dim, h, w), continuous, near the codes but not among them.
        """
        generator = torch.Generator().manual_seed(seed)
        first = torch.randn(self.guidance_dim, *(size or self.size), generator=generator)  # d h w
        x = first.to(slots.device).expand(len(slots), -1, -1, -1)  # b d h w
        self.sampling.set_timesteps(steps)
        for timestep in self.sampling.timesteps:
            prediction = self.predict(x, timestep.to(x.device), slots, slot_mask)  # b d h w
            x = self.sampling.step(prediction.float(), timestep, x).prev_sample  # b d h w
        return x * self.deviation + self.mean

    @torch.no_grad()
    def _measure(self, guidance: torch.Tensor) -> None:
        guidance = guidance.float()
        self.mean.copy_(guidance.mean((0, 2, 3), keepdim=True))
        self.deviation.copy_((guidance - self.mean).square().mean().sqrt().clamp_min(1e-6))
        self.measured.fill_(1)

    def _sample_noise(self, guidance: torch.Tensor) -> Tuple[torch.Tensor, torch.Tensor]:
        batch, total, device = len(guidance), self.noising.config.num_train_timesteps, guidance.device
        if self.training:
            noise = torch.randn_like(guidance, dtype=torch.float32)
            return noise[None], torch.randint(total, (1, batch), device=device)
        noise = torch.randn(self.eval_levels, 1, *guidance.shape[1:], generator=torch.Generator().manual_seed(0))
        timesteps = ((torch.arange(self.eval_levels, device=device) + 0.5) * (total / self.eval_levels)).long()
        return noise.to(device).expand(-1, batch, -1, -1, -1), timesteps[:, None].expand(-1, batch)

    def _check(self, slots: torch.Tensor, guidance: torch.Tensor) -> None:
        channels = self.object_dim + (FRAME_CHANNELS if self.project_frames is not None else 0)
        if slots.ndim != 3 or slots.shape[2] != channels:
            raise ValueError(f"slots must be (b, k, {channels}), as object_dim says, got {tuple(slots.shape)}.")
        if guidance.ndim != 4 or guidance.shape[1] != self.guidance_dim:
            shape, channels = tuple(guidance.shape), self.guidance_dim
            raise ValueError(f"guidance must be (b, {channels}, h, w), as guidance_dim says, got {shape}.")
        if len(slots) != len(guidance):
            raise ValueError(f"There are slots of {len(slots)} images, but guidance of {len(guidance)}.")


def _coordinates(grid: torch.Tensor) -> torch.Tensor:
    """Row and column, -1 to 1, of each position of a grid (b, d, h, w): (b, 2, h, w)."""
    rows, columns = (torch.linspace(-1, 1, size, device=grid.device, dtype=grid.dtype) for size in grid.shape[2:])
    both = torch.stack([rows[:, None].expand(grid.shape[2:]), columns.expand(grid.shape[2:])])
    return both.expand(len(grid), -1, -1, -1)
