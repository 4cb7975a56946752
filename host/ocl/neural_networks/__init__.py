"""Building blocks of neural networks."""

from ocl.neural_networks.convenience import (
    build_mlp,
    build_transformer_decoder,
    build_transformer_encoder,
    build_two_layer_mlp,
)

__all__ = ["build_mlp", "build_transformer_decoder", "build_transformer_encoder", "build_two_layer_mlp"]
