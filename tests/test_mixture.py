import inspect

import numpy as np
import pytest
import torch
from scipy.special import softmax

from ocl_msf.decoding import Decoder, TokenDecoder
from ocl_msf.losses import GroupedCrossEntropy
from ocl_msf.mixture import MixtureDecoder


@pytest.fixture
def decoder():
    torch.manual_seed(0)
    return MixtureDecoder(6, 5, [7, 4], size=(3, 4), dim=16, num_layers=2).eval()


@pytest.fixture
def slots():
    return torch.randn(2, 3, 6)


def test_it_is_a_decoder_that_takes_what_the_transformer_takes(decoder):
    assert isinstance(decoder, Decoder)
    settings = {name: 0 for name in inspect.signature(TokenDecoder).parameters if name.startswith(("num_", "drop"))}
    MixtureDecoder(6, 5, [7, 4], size=2, dim=8, **settings)


def test_probabilities_are_the_mixture_of_those_of_each_slot(decoder, slots):
    logits = decoder(slots, torch.zeros(2, 5, 3, 4)).logits
    with torch.no_grad():
        hidden = [
            decoder.mlp(decoder.project_slots(slots[:, k])[:, None] + decoder.positions).numpy() for k in range(3)
        ]  # k times b n d
    weight, bias = (x.detach().numpy() for x in decoder.alpha.parameters())
    alpha = softmax(np.stack([h @ weight[0] + bias for h in hidden]), 0)  # k b n
    for head, predicted in zip(decoder.heads, logits):
        weight, bias = (x.detach().numpy() for x in head.parameters())
        each = np.stack([softmax(h @ weight.T + bias, -1) for h in hidden])  # k b n m
        np.testing.assert_allclose(predicted.detach().exp().numpy(), (alpha[..., None] * each).sum(0), rtol=1e-4)


def test_the_order_of_slots_does_not_matter_and_masked_slots_do_not_count(decoder, slots):
    guidance, off = torch.zeros(2, 5, 3, 4), torch.tensor([[False, True, False]] * 2)
    expected = decoder(slots[:, [0, 2]], guidance).logits
    for same in (decoder(slots[:, [2, 0]], guidance), decoder(slots, guidance, off)):
        torch.testing.assert_close(same.logits, expected)
    assert all(x.isfinite().all() for x in decoder(slots, guidance, torch.ones(2, 3, dtype=torch.bool)).logits)


def test_training_predicts_some_tokens_and_the_loss_compares_these(decoder, slots):
    indices = torch.stack([torch.randint(7, (2, 3, 4)), torch.randint(4, (2, 3, 4))], 1)
    whole = decoder(slots, torch.zeros(2, 5, 3, 4))
    decoder.train().token_dropout = 0.75
    some = decoder(slots, torch.zeros(2, 5, 3, 4))
    assert whole.tokens.tolist() == [list(range(12))] * 2 and some.tokens.shape == (2, 3)
    assert torch.equal(some.indices, whole.indices.flatten(2).gather(2, some.tokens[:, None].expand(-1, 2, -1)))
    assert all(len(set(row.tolist())) == 3 for row in some.tokens)
    for x, y in zip(whole.logits, some.logits):
        torch.testing.assert_close(y, x.gather(1, some.tokens[..., None].expand(-1, -1, x.shape[-1])))
    expected = 0.0
    for x, codes in zip(whole.logits, indices.unbind(1)):
        surprise = -x.log_softmax(-1).gather(-1, codes.flatten(1)[..., None])[..., 0]  # b n
        expected = expected + surprise.gather(1, some.tokens).mean()
    loss, _ = GroupedCrossEntropy()(some.logits, indices, some.tokens)
    torch.testing.assert_close(loss, expected)


@pytest.mark.parametrize("joint", [False, True])
def test_generation(slots, joint):
    torch.manual_seed(1)
    decoder = MixtureDecoder(6, 5, [7, 4], size=(3, 4), dim=16, joint=joint).eval()
    with pytest.raises(RuntimeError, match="lookup"):
        decoder.generate(slots)
    decoder.lookup = lambda codes: torch.cat([codes, codes[:, :1]], 1).float()
    most_probable = decoder(slots, torch.zeros(2, 5, 3, 4)).indices
    assert most_probable.shape == (2, 2, 3, 4)
    torch.testing.assert_close(decoder.generate(slots)[:, :2], most_probable.float())
    drawn = decoder.generate_codes(slots.repeat(500, 1, 1), temperature=1.0).unflatten(0, (500, 2))  # 500 b g h w
    if not joint:
        expected = decoder(slots, torch.zeros(2, 5, 3, 4)).logits[0][0, 0].exp()  # m
        frequency = torch.bincount(drawn[:, 0, 0, 0, 0], minlength=7) / 500
        assert (frequency - expected).abs().max() < 4 * (0.25 / 500) ** 0.5


def test_another_size_is_an_error(decoder, slots):
    with pytest.raises(ValueError, match="12"):
        decoder(slots, torch.zeros(2, 5, 4, 4))
    with pytest.raises(ValueError, match="12"):
        decoder.generate_codes(slots, (4, 4))
