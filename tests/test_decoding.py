import pytest
import torch

from ocl_msf.decoding import TokenDecoder


@pytest.fixture
def decoder():
    torch.manual_seed(0)
    return TokenDecoder(6, 5, [7, 4], num_tokens=12, dim=16, num_layers=2, num_heads=4, dropout=0.0).eval()


@pytest.fixture
def slots():
    return torch.randn(2, 3, 6)


def test_shapes(decoder, slots):
    output = decoder(slots, torch.randn(2, 5, 3, 4))
    assert [x.shape for x in output.logits] == [(2, 12, 7), (2, 12, 4)]
    assert output.indices.shape == (2, 2, 3, 4)
    assert torch.equal(output.indices[:, 1].flatten(1), output.logits[1].argmax(-1))


def test_a_token_sees_only_the_tokens_before_it(decoder, slots):
    guidance = torch.randn(2, 5, 3, 4)
    changed = guidance.clone()
    changed[:, :, 1, 2] += 1  # token 6
    before, after = decoder(slots, guidance).logits[0], decoder(slots, changed).logits[0]
    torch.testing.assert_close(before[:, :7], after[:, :7])
    assert (before[:, 7:] - after[:, 7:]).abs().amax((0, 2)).min() > 1e-6


def test_slots_are_a_set_and_matter(decoder, slots):
    guidance = torch.randn(2, 5, 3, 4)
    expected = decoder(slots, guidance).logits[0]
    torch.testing.assert_close(decoder(slots.flip(1), guidance).logits[0], expected)
    assert (decoder(slots + 1, guidance).logits[0] - expected).abs().max() > 1e-4


def test_cached_generation_is_the_decoder_applied_to_its_own_tokens(decoder, slots):
    codes = [torch.randn(7, 5), torch.randn(4, 5)]

    def lookup(indices):
        return (codes[0][indices[:, 0]] + codes[1][indices[:, 1]]).permute(0, 3, 1, 2)

    written = decoder.generate(slots, lookup, height=3)
    assert written.shape == (2, 2, 3, 4)
    assert torch.equal(decoder(slots, lookup(written)).indices, written)


def test_token_dropout_hides_past_tokens_in_training_alone(decoder, slots):
    guidance = torch.randn(2, 5, 3, 4)
    unseen, seen = decoder(slots, torch.zeros_like(guidance)).logits[0], decoder(slots, guidance).logits[0]
    decoder.token_dropout = 1.0
    torch.testing.assert_close(decoder(slots, guidance).logits[0], seen)
    decoder.train()
    torch.testing.assert_close(decoder(slots, guidance).logits[0], unseen)
    decoder.token_dropout = 0.5
    first = [decoder(slots, guidance).logits[0][:, 1] for _ in range(200)]  # token 1 sees one past token, or none
    hidden = torch.stack([(x - unseen[:, 1]).abs().amax(-1) < 1e-6 for x in first]).float().mean()
    assert 0.4 < hidden < 0.6


def test_gradients_reach_the_slots(decoder, slots):
    slots.requires_grad_()
    sum(x.sum() for x in decoder(slots, torch.randn(2, 5, 3, 4)).logits).backward()
    assert slots.grad.abs().min() > 0


def test_guidance_of_another_size_is_refused(decoder, slots):
    with pytest.raises(ValueError, match="16 tokens .*12"):
        decoder(slots, torch.randn(2, 5, 4, 4))
