"""Functions that build common networks."""

from typing import Any, Callable, Optional, Union

from torch import Tensor, nn
from torch.nn import functional as F

from ocl.neural_networks.extensions import TransformerDecoderLayerWithAttention, TransformerDecoderWithAttention
from ocl.neural_networks.wrappers import Residual

Activation = Union[str, Callable[[Tensor], Tensor]]


class ReLUSquared(nn.Module):
    """The square of the positive part."""

    def forward(self, inputs: Tensor) -> Tensor:
        """Return max(inputs, 0)^2."""
        return F.relu(inputs).square()


class _Function(nn.Module):
    """A function as a module."""

    def __init__(self, function: Callable[[Tensor], Tensor]):
        super().__init__()
        self.function = function

    def forward(self, inputs: Tensor) -> Tensor:
        return self.function(inputs)


def get_activation_fn(
    name_or_callable: Activation, inplace: bool = True, leaky_relu_slope: Optional[float] = None
) -> Callable[[Tensor], Tensor]:
    """Return the activation of a name; callables are returned as they are.

    Args:
        name_or_callable: relu, relu_squared, leaky_relu, tanh, sigmoid or identity, in any case.
        inplace: let relu and leaky_relu overwrite their input.
        leaky_relu_slope: slope of leaky_relu for negative values.

    Raises:
        ValueError: if the name is unknown or leaky_relu lacks its slope.
    """
    if callable(name_or_callable):
        return name_or_callable
    name = name_or_callable.lower()
    builders: dict[str, Callable[[], nn.Module]] = {
        "relu": lambda: nn.ReLU(inplace),
        "leaky_relu": lambda: nn.LeakyReLU(leaky_relu_slope or 0.0, inplace),
        "relu_squared": ReLUSquared,
        "tanh": nn.Tanh,
        "sigmoid": nn.Sigmoid,
        "identity": nn.Identity,
    }
    if name not in builders:
        raise ValueError(f"Unknown activation {name_or_callable!r}: choose one of {', '.join(builders)}.")
    if name == "leaky_relu" and leaky_relu_slope is None:
        raise ValueError("leaky_relu needs leaky_relu_slope.")
    return builders[name]()


def build_mlp(
    input_dim: int,
    output_dim: int,
    features: list[int],
    activation_fn: Activation = "relu",
    final_activation_fn: Optional[Activation] = None,
    initial_layer_norm: bool = False,
    residual: bool = False,
) -> nn.Module:
    """Build a multi-layer perceptron whose biases start at zero.

    Args:
        input_dim: channels of the input.
        output_dim: channels of the output.
        features: channels of the hidden layers.
        activation_fn: activation behind every hidden layer.
        final_activation_fn: activation behind the last layer.
        initial_layer_norm: normalize the input.
        residual: add the input to the output.
    """
    layers: list[nn.Module] = [nn.LayerNorm(input_dim)] if initial_layer_norm else []
    dims = [input_dim, *features, output_dim]
    activations = [activation_fn] * len(features) + [final_activation_fn]
    for in_dim, out_dim, activation in zip(dims, dims[1:], activations):
        linear = nn.Linear(in_dim, out_dim)
        nn.init.zeros_(linear.bias)
        layers.append(linear)
        if activation is not None:
            function = get_activation_fn(activation)
            layers.append(function if isinstance(function, nn.Module) else _Function(function))
    mlp = nn.Sequential(*layers)
    return Residual(mlp) if residual else mlp


def build_two_layer_mlp(
    input_dim: int, output_dim: int, hidden_dim: int, initial_layer_norm: bool = False, residual: bool = False
) -> nn.Module:
    """Build a perceptron with one hidden layer; see `build_mlp`."""
    return build_mlp(input_dim, output_dim, [hidden_dim], initial_layer_norm=initial_layer_norm, residual=residual)


def _layer_options(
    dim: int,
    n_heads: int,
    hidden_dim: Optional[int],
    dropout: float,
    activation_fn: Activation,
    layer_norm_eps: float,
) -> dict[str, Any]:
    """Name the arguments of a transformer layer as PyTorch does."""
    return dict(
        d_model=dim,
        nhead=n_heads,
        dim_feedforward=4 * dim if hidden_dim is None else hidden_dim,
        dropout=dropout,
        activation=get_activation_fn(activation_fn),
        layer_norm_eps=layer_norm_eps,
        batch_first=True,
        norm_first=True,
    )


def build_transformer_encoder(
    input_dim: int,
    output_dim: int,
    n_layers: int,
    n_heads: int,
    hidden_dim: Optional[int] = None,
    dropout: float = 0.0,
    activation_fn: Activation = "relu",
    layer_norm_eps: float = 1e-5,
    use_output_transform: bool = True,
) -> nn.Module:
    """Build a pre-norm transformer encoder from (b, n, input_dim) to (b, n, output_dim).

    Args:
        input_dim: channels of the input and of all layers.
        output_dim: channels of the output.
        n_layers: number of layers.
        n_heads: number of attention heads.
        hidden_dim: channels inside the perceptrons, by default four times `input_dim`.
        dropout: dropout probability.
        activation_fn: activation of the perceptrons.
        layer_norm_eps: added to variances.
        use_output_transform: end with normalization and a linear layer; otherwise `output_dim` has no effect.
    """
    options = _layer_options(input_dim, n_heads, hidden_dim, dropout, activation_fn, layer_norm_eps)
    layers: list[nn.Module] = [nn.TransformerEncoderLayer(**options) for _ in range(n_layers)]
    if use_output_transform:
        layers += [nn.LayerNorm(input_dim, eps=layer_norm_eps), nn.Linear(input_dim, output_dim)]
    return nn.Sequential(*layers)


def build_transformer_decoder(
    input_dim: int,
    output_dim: int,
    n_layers: int,
    n_heads: int,
    hidden_dim: Optional[int] = None,
    dropout: float = 0.0,
    activation_fn: Activation = "relu",
    layer_norm_eps: float = 1e-5,
    return_attention_weights: bool = False,
    attention_weight_type: Union[int, str] = -1,
) -> nn.Module:
    """Build a pre-norm transformer decoder without final norm.

    It is called with `tgt` (b, n, d), `memory` (b, k, d), `tgt_mask` (n, n) and optionally
    `memory_key_padding_mask` (b, k).

    Args:
        input_dim: channels d.
        output_dim: without effect, the output has `input_dim` channels.
        n_layers: number of layers.
        n_heads: number of attention heads.
        hidden_dim: channels inside the perceptrons, by default four times `input_dim`.
        dropout: dropout probability.
        activation_fn: activation of the perceptrons.
        layer_norm_eps: added to variances.
        return_attention_weights: return the cross-attention (b, k, n) beside the output.
        attention_weight_type: index of the layer it is taken from, or `mean` over all layers.

    Raises:
        ValueError: if there is no such layer.
    """
    options = _layer_options(input_dim, n_heads, hidden_dim, dropout, activation_fn, layer_norm_eps)
    if return_attention_weights:
        layer = TransformerDecoderLayerWithAttention(**options)
        return TransformerDecoderWithAttention(layer, n_layers, attention_weight_type)
    return nn.TransformerDecoder(nn.TransformerDecoderLayer(**options), n_layers)
