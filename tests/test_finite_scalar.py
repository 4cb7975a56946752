"""Finite scalar quantisation against the equations of Mentzer et al. (2024); test_quantization.py has the rest."""

import math

import pytest
import torch

from ocl_msf.finite_scalar import FiniteScalarQuantizer


def round_to_levels(z, levels):
    """Section 3.1 and appendix A.1: every channel z to one of the integers, shifted where L is even."""
    half, offset = (levels - 1) / 2, 0.0 if levels % 2 else 0.5
    return round(half * math.tanh(z + math.tan(offset / half)) - offset)


@pytest.mark.parametrize("levels", [[8, 8, 8, 8], [8, 5, 2], [3], [7, 6]])
def test_values_and_indices_are_those_of_the_equations(levels):
    torch.manual_seed(0)
    quantizer = FiniteScalarQuantizer(4, levels).double()
    features = 5 * torch.randn(2, 4, 3, 5, dtype=torch.float64)
    output = quantizer([features])
    for b, h, w in torch.ones(2, 3, 5).nonzero().tolist():
        latent = quantizer.to_latent(features[b, :, h, w]).tolist()
        rounded = [round_to_levels(z, count) for z, count in zip(latent, levels)]
        digits = [value + count // 2 for value, count in zip(rounded, levels)]
        assert all(0 <= digit < count for digit, count in zip(digits, levels))
        index = sum(digit * math.prod(levels[i + 1 :]) for i, digit in enumerate(digits))
        assert output.indices[0][b, 0, h, w] == index
        scaled = torch.tensor([value / (count // 2) for value, count in zip(rounded, levels)], dtype=torch.float64)
        torch.testing.assert_close(output.quantized[0][b, :, h, w], quantizer.from_latent(scaled))


@pytest.mark.parametrize("levels", [[8], [5], [2], [3]])
def test_every_level_is_reached_and_none_beyond(levels):
    quantizer = FiniteScalarQuantizer(1, levels)
    latent = torch.cat([torch.linspace(-5, 5, 2001), torch.tensor([-1e4, 1e4])]).unsqueeze(-1)
    rounded = quantizer.bound(latent).round()
    lowest = -(levels[0] // 2)
    assert rounded.unique().tolist() == list(range(lowest, lowest + levels[0]))
    assert quantizer.bound(torch.zeros(1)).abs() < 0.05


def test_rounding_passes_the_gradient_of_the_bounded_latent():
    quantizer = FiniteScalarQuantizer(3, [8, 5]).double()
    features = torch.randn(1, 3, 2, 2, dtype=torch.float64, requires_grad=True)
    direction = torch.randn(1, 3, 2, 2, dtype=torch.float64)
    inputs = [features, *quantizer.to_latent.parameters()]
    ours = torch.autograd.grad((quantizer([features]).quantized[0] * direction).sum(), inputs)
    bounded = quantizer.bound(quantizer.to_latent(features.permute(0, 2, 3, 1))) / torch.tensor([4, 2])
    unrounded = quantizer.from_latent(bounded).permute(0, 3, 1, 2)
    torch.testing.assert_close(ours, torch.autograd.grad((unrounded * direction).sum(), inputs))


def test_all_codes_are_different_and_rounding_them_changes_nothing():
    quantizer = FiniteScalarQuantizer(6, [4, 5, 3])
    indices = torch.arange(60).view(1, 1, 6, 10)
    codes = quantizer.lookup([indices])[0]
    assert len(codes.flatten(2)[0].T.unique(dim=0)) == 60
    latent = torch.linalg.lstsq(quantizer.from_latent.weight, codes.flatten(2)[0] - quantizer.from_latent.bias[:, None])
    rounded = latent.solution * torch.tensor([[2.0], [2.0], [1.0]])
    torch.testing.assert_close(rounded, rounded.round(), atol=1e-4, rtol=0)


def test_both_losses_are_zero_and_no_state_but_the_linear_maps_is_saved():
    quantizer = FiniteScalarQuantizer(6)
    output = quantizer([torch.randn(2, 6, 4, 4)])
    assert output.codebook_loss == output.commitment_loss == 0
    assert quantizer.describe_codebook(0, 0) == ("codebook", 4096)
    assert set(quantizer.state_dict()) == {
        f"{name}_latent.{kind}" for name in ("to", "from") for kind in ("weight", "bias")
    }


@pytest.mark.parametrize("levels", [[], [8, 1]])
def test_too_few_levels_are_refused(levels):
    with pytest.raises(ValueError, match="levels"):
        FiniteScalarQuantizer(6, levels)
