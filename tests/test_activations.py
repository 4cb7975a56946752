import pytest
import torch
from torch.nn import functional as F

from ocl_msf.activations import BLOCK, Mish
from ocl_msf.autoencoder import Decoder


@pytest.mark.parametrize("layout", ["contiguous", "channels last", "strided", "1-d"])
def test_values_and_gradients_are_those_of_torch(layout):
    torch.manual_seed(0)
    x = 4 * torch.randn(2, 64, 24, 25)  # more than a block, and not a whole number of them
    assert x.numel() > BLOCK
    if layout == "channels last":
        x = x.contiguous(memory_format=torch.channels_last)
    x = {"strided": x[:, ::2, 1:], "1-d": x.flatten()}.get(layout, x)
    x, grad = x.requires_grad_(), torch.randn(x.shape)
    mine, others = Mish()(x), F.mish(x)
    torch.testing.assert_close(mine, others, atol=2e-6, rtol=2e-6)
    assert mine.stride() == others.stride()
    (of_mine,), (of_others,) = (torch.autograd.grad(y, x, grad) for y in (mine, others))
    torch.testing.assert_close(of_mine, of_others, atol=5e-6, rtol=5e-6)


def test_the_derivative_is_that_of_finite_differences():
    x = torch.linspace(-6, 6, 50, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(Mish(), (x,))


def test_large_inputs_neither_overflow_nor_lose_their_sign():
    x = torch.tensor([-1e4, -100.0, -30.0, 0.0, 30.0, 100.0, 1e4])
    torch.testing.assert_close(Mish()(x), F.mish(x), atol=1e-7, rtol=1e-5)


def test_half_precision_stays_torchs():
    x = torch.randn(50, dtype=torch.bfloat16)
    assert torch.equal(Mish()(x), F.mish(x))


def test_the_decoders_last_convolution_before_the_shuffle_is_as_behind_it():
    torch.manual_seed(0)
    decoder, codes = Decoder(8, 16), torch.randn(2, 8, 4, 6)
    behind = codes
    for layer in decoder:
        behind = layer(behind)
    before = decoder(codes)
    torch.testing.assert_close(before, behind, atol=1e-6, rtol=1e-6)
    grads = [torch.autograd.grad(x.square().sum(), list(decoder.parameters())) for x in (before, behind)]
    torch.testing.assert_close(*grads, atol=1e-4, rtol=1e-4)
