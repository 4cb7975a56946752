"""The benchmarks `quantizer` and `stage1`: our quantiser against the paper's listing, and whole steps of stage 1."""

import argparse
from typing import Callable, List

import torch
from _measure import compare, compile_if, print_table, time_in_turns, training_step
from torch.nn import functional as F

from ocl_msf.autoencoder import VQVAE, Decoder, Encoder
from ocl_msf.fusion import MultiScaleFusion
from ocl_msf.losses import PyramidLoss
from ocl_msf.quantization import VectorQuantizer


def literal_algorithm_1(weight: torch.Tensor, codebooks: List[torch.Tensor], maps: List[torch.Tensor]):
    """The paper's listing as it stands, every source matched with a softmax at every target scale."""
    channels = maps[0].shape[1]
    inverse = torch.linalg.pinv(weight)
    encoded = [torch.einsum("bchw,cu->buhw", z, inverse) for z in maps]

    def match(features, codes):
        rows = features.permute(0, 2, 3, 1)
        distance = torch.cdist(rows.flatten(0, 2), codes).view(*rows.shape[:3], -1)
        return (-distance).softmax(-1).max(-1)

    quantized, loss = [], 0.0
    for i, target in enumerate(encoded):
        brought = []
        for j, source in enumerate(encoded):
            part = source[:, :channels]
            if j < i:
                part = F.avg_pool2d(part, 2 ** (i - j))
            elif j > i:
                part = F.interpolate(part, scale_factor=2 ** (j - i), mode="nearest")
            brought.append(part)
        confidence, numbers = (torch.stack(x) for x in zip(*(match(x, codebooks[0]) for x in brought)))
        winner = confidence.argmax(0)
        shared = numbers.gather(0, winner[None])[0]
        index = winner[None, :, None].expand(1, -1, channels, -1, -1)
        features = torch.cat([torch.stack(brought).gather(0, index)[0], target[:, channels:]], 1)
        variant = match(target[:, channels:], codebooks[1 + i])[1]
        codes = torch.cat([codebooks[0][shared], codebooks[1 + i][variant]], -1).permute(0, 3, 1, 2)
        passed = features + (codes - features).detach()
        quantized.append(torch.einsum("buhw,uc->bchw", passed, weight))
        loss = loss + F.mse_loss(codes, features.detach()) + F.mse_loss(features, codes.detach())  # type: ignore[assignment]
    return quantized, loss


def quantizer(options: argparse.Namespace) -> None:
    """Forward and backward of the MSF quantiser, ours against the literal listing."""
    torch.manual_seed(0)
    fusion = MultiScaleFusion(options.dim, 64, 3).to(options.device)
    sizes = [options.size // 4 >> n for n in range(3)]
    maps = [torch.randn(options.batch, options.dim, s, s, device=options.device, requires_grad=True) for s in sizes]
    codebooks = [book.weight for book in fusion.codebooks]

    def ours():
        output = fusion(maps)
        return output.quantized, output.codebook_loss + output.commitment_loss

    def literal():
        return literal_algorithm_1(fusion.project.weight, codebooks, maps)

    def step_of(run):
        run = compile_if(options, run)

        def step():
            quantized, loss = run()
            (sum(x.square().mean() for x in quantized) + loss).backward()

        return step

    steps = {"ours": step_of(ours), "literal Algorithm 1": step_of(literal)}
    print_table(time_in_turns(steps, options), "ours")


def build_step(name: str, options: argparse.Namespace) -> Callable[[], None]:
    """One step of stage 1: forward, losses, backward, clipping and Adam."""
    torch.manual_seed(0)
    encoder, decoder = Encoder(options.dim), Decoder(options.dim)
    aids = dict(residual=0.5 * options.annealing, temperature=0.5 * options.annealing, replace_below=0.1)
    if name == "msf":
        model = VQVAE(encoder, decoder, MultiScaleFusion(options.dim, 64, 3, **aids), 3)
    else:
        model = VQVAE(encoder, decoder, VectorQuantizer(options.dim, 4096, **aids), 1, variant="vq")
    model = model.to(options.device).train()
    optimizer = torch.optim.Adam(model.parameters(), 2e-3)
    pyramid_loss = PyramidLoss()
    image = torch.rand(options.batch, 3, options.size, options.size, device=options.device) * 2 - 1

    def forward():
        if name == "encoder + decoder":
            return F.mse_loss(model.decoder(model.encoder(image)), image)
        output = model(image)
        loss = pyramid_loss(output.reconstructions, output.pyramid)
        return loss + output.codebook_loss + 0.25 * output.commitment_loss

    return training_step(model, optimizer, forward, options)


def stage1(options: argparse.Namespace) -> None:
    """Whole steps of stage 1: MSF, plain VQ, and the encoder and decoder without a quantiser."""
    compare(build_step, ["vq", "msf", "encoder + decoder"], "vq", options)
