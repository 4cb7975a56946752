"""The benchmarks `stage2` and `generate`: our stage 2, and one built from plain parts of torch."""

import argparse
from typing import Callable, Sequence

import torch
from _measure import compare, training_step
from einops import rearrange
from ocl.neural_networks import build_two_layer_mlp
from ocl.neural_networks.positional_embedding import SoftPositionEmbed
from ocl.neural_networks.wrappers import Sequential
from ocl.perceptual_grouping import SlotAttentionGrouping
from torch import nn

from ocl_msf.autoencoder import VQVAE, Decoder, Encoder
from ocl_msf.conditioning import GaussianQueries
from ocl_msf.decoding import TokenDecoder, TokenDecoderOutput
from ocl_msf.feature_extractors import NaiveCNN
from ocl_msf.fusion import MultiScaleFusion
from ocl_msf.guidance import FrozenGuidance
from ocl_msf.losses import GroupedCrossEntropy

CODES, HEADS, SLOTS, ENCODER_DIM = 64, 8, 11, 64
PLAIN = "nn.TransformerDecoder"


class PlainTokenDecoder(nn.Module):
    """The token decoder from torch's own transformer, with the usual float mask and the dropout of TokenDecoder."""

    def __init__(self, dim: int, num_tokens: int, num_layers: int):
        super().__init__()
        layer = nn.TransformerDecoderLayer(dim, HEADS, 4 * dim, 0.1, batch_first=True, norm_first=True)
        layer.dropout = nn.Identity()  # type: ignore[assignment]  # inside the MLP, where SLATE has none
        self.transformer = nn.TransformerDecoder(layer, num_layers, nn.LayerNorm(dim))
        self.project_slots = nn.Linear(dim, dim, bias=False)
        self.project_tokens = nn.Linear(dim, dim, bias=False)
        self.begin = nn.Parameter(torch.randn(1, 1, dim) * 0.02)
        self.positions = nn.Parameter(torch.randn(1, num_tokens, dim) * 0.02)
        self.dropout = nn.Dropout(0.1)
        self.heads = nn.ModuleList(nn.Linear(dim, CODES, bias=False) for _ in range(2))
        self.register_buffer("mask", nn.Transformer.generate_square_subsequent_mask(num_tokens))

    def forward(self, slots: torch.Tensor, guidance: torch.Tensor) -> TokenDecoderOutput:
        """As TokenDecoder."""
        tokens = self.project_tokens(rearrange(guidance, "b d h w -> b (h w) d"))
        x = torch.cat([self.begin.expand(len(tokens), -1, -1), tokens[:, :-1]], 1)
        x = self.transformer(self.dropout(x + self.positions), self.project_slots(slots), tgt_mask=self.mask)
        logits = tuple(head(x) for head in self.heads)
        indices = rearrange([p.argmax(-1) for p in logits], "g b (h w) -> b g h w", h=guidance.shape[2])
        return TokenDecoderOutput(logits, indices)

    @torch.no_grad()
    def take(self, decoder: TokenDecoder) -> "PlainTokenDecoder":
        """Copy the weights of a TokenDecoder; biases that it lacks stay zero."""
        self.load_state_dict(decoder.state_dict(), strict=False)  # those of equal names
        self.transformer.norm.load_state_dict(decoder.norm.state_dict())
        for ours, theirs in zip(decoder.blocks, self.transformer.layers):
            for norm, name in ((theirs.norm1, "self"), (theirs.norm2, "cross"), (theirs.norm3, "mlp")):
                norm.load_state_dict(getattr(ours, f"norm_{name}").state_dict())
            for attention, name in ((theirs.self_attn, "self"), (theirs.multihead_attn, "cross")):
                own = getattr(ours, f"{name}_attention")
                attention.in_proj_weight.copy_(torch.cat([own.to_query.weight, own.to_key_value.weight]))
                attention.out_proj.weight.copy_(own.to_output.weight)
            theirs.linear1.load_state_dict(ours.mlp[0].state_dict())
            theirs.linear2.load_state_dict(ours.mlp[2].state_dict())
        return self


class Slate(nn.Module):
    """Image -> slots; image -> frozen guidance; slots and guidance -> loss, as in msf/slate_clevrtex."""

    def __init__(self, decoder: nn.Module, dim: int):
        super().__init__()
        place = Sequential(SoftPositionEmbed(2, ENCODER_DIM), build_two_layer_mlp(ENCODER_DIM, dim, dim, True))
        ff_mlp = build_two_layer_mlp(dim, dim, 4 * dim, True, residual=True)
        self.encoder = NaiveCNN(ENCODER_DIM)
        self.queries = GaussianQueries(dim, SLOTS)
        self.grouping = SlotAttentionGrouping(dim, dim, positional_embedding=place, ff_mlp=ff_mlp)
        self.guidance = FrozenGuidance(VQVAE(Encoder(dim), Decoder(dim), MultiScaleFusion(dim, CODES, 3), 3))
        self.guidance.load(self.guidance.vae.state_dict())
        self.decoder = decoder
        self.loss = GroupedCrossEntropy()

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Images (b, 3, h, w) -> loss, a scalar."""
        slots = self.grouping(self.encoder(image), self.queries(len(image))).objects
        guidance = self.guidance(image)
        return self.loss(self.decoder(slots, guidance.features).logits, guidance.indices)[0]


def build_decoder(name: str, options: argparse.Namespace) -> nn.Module:
    """Build our decoder or the plain one, with the same weights."""
    side = options.size // 4
    sizes = dict(dim=options.dim, num_layers=options.layers, num_heads=HEADS)
    decoder = TokenDecoder(options.dim, options.dim, [CODES, CODES], side, **sizes)
    return PlainTokenDecoder(options.dim, side**2, options.layers).take(decoder) if PLAIN in name else decoder


def build_step(name: str, options: argparse.Namespace) -> Callable[[], None]:
    """One step of the decoder alone or of all of stage 2: forward, loss, backward, clipping and Adam."""
    torch.manual_seed(0)
    decoder, side = build_decoder(name, options), options.size // 4
    if name.startswith("decoder"):
        slots = torch.randn(options.batch, SLOTS, options.dim, device=options.device)
        guidance = torch.randn(options.batch, options.dim, side, side, device=options.device)
        indices = torch.randint(CODES, (options.batch, 2, side, side), device=options.device)
        model, measure = decoder, GroupedCrossEntropy()

        def forward():
            return measure(model(slots, guidance).logits, indices)[0]

    else:
        image = torch.rand(options.batch, 3, options.size, options.size, device=options.device) * 2 - 1
        model = Slate(decoder, options.dim)

        def forward():
            return model(image)

    model.to(options.device).train()
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], 2e-4)
    return training_step(model, optimizer, forward, options)


def build_generation(name: str, options: argparse.Namespace) -> Callable[[], None]:
    """Generate a batch of images from slots, with or without the cache."""
    torch.manual_seed(0)
    decoder = build_decoder(name, options).to(options.device).eval()
    slots = torch.randn(options.batch, SLOTS, options.dim, device=options.device)
    codes = torch.randn(2, CODES, options.dim, device=options.device)

    def lookup(indices):
        return (codes[0][indices[:, 0]] + codes[1][indices[:, 1]]).permute(0, 3, 1, 2)

    decoder.lookup = lookup  # type: ignore[assignment]
    if name == "cache":
        return lambda: decoder.generate(slots)
    side = options.size // 4
    written = torch.randint(CODES, (options.batch, 2, side, side), device=options.device)
    positions = range(options.every // 2, side**2, options.every)
    return lambda: generate_without_cache(decoder, slots, written, positions)  # type: ignore[return-value]


@torch.no_grad()
def generate_without_cache(
    decoder: TokenDecoder, slots: torch.Tensor, written: torch.Tensor, positions: Sequence[int]
) -> torch.Tensor:
    """Predict the codes at some positions from those before them, running the transformer on all of these each time.

    Args:
        decoder: with its `lookup`.
        slots: (b, k, d).
        written: codes (b, g, h, w).
        positions: in raster order; a whole image takes all of them.

    Returns:
        Codes (b, g, number of positions).
    """
    slots = decoder.project_slots(slots)
    tokens = decoder.project_tokens(rearrange(decoder.lookup(written), "b d h w -> b (h w) d"))  # type: ignore[misc]
    x = torch.cat([decoder.begin.expand(len(slots), -1, -1), tokens[:, :-1]], 1) + decoder.positions
    chosen = []
    for position in positions:
        y = x[:, : position + 1]
        for block in decoder.blocks:
            y = block(y, slots)
        y = decoder.norm(y[:, -1])
        chosen.append(torch.stack([head(y).argmax(-1) for head in decoder.heads], 1))
    return torch.stack(chosen, -1)


def stage2(options: argparse.Namespace) -> None:
    """Whole steps of SLATE, and on request of its decoder alone, against nn.TransformerDecoder with a float mask."""
    for part in ["stage 2"] + ["decoder"] * options.decoder:
        compare(build_step, [part, f"{part}, {PLAIN}"], part, options)
        print()


def generate(options: argparse.Namespace) -> None:
    """Generation of images from slots, with and without the cache of keys and values."""
    if options.every > 1:
        print(f"no cache: the time of every {options.every}th token, times {options.every}; --every 1 times all.\n")
    compare(build_generation, ["cache", "no cache"], "cache", options, {"no cache": options.every})
