import inspect
import math
from dataclasses import fields

import pytest
import torch
from scipy.stats import chisquare, truncnorm

from ocl_msf.decoding import Decoder, TokenDecoder, sample_codes
from ocl_msf.diffusion import DiffusionDecoder
from ocl_msf.mixture import MixtureDecoder
from ocl_msf.patch_orders import patch_orders
from ocl_msf.transformer import ROWS, attend_to_past


@pytest.fixture(params=["plain", "slate"])
def decoder(lookup, request):
    torch.manual_seed(0)
    options = {"dim": 16, "num_layers": 2, "num_heads": 4, "dropout": 0.0, "start": request.param}
    decoder = TokenDecoder(6, 5, [7, 4], size=(3, 4), **options).eval()
    decoder.lookup = lookup
    return decoder


@pytest.fixture
def slots():
    return torch.randn(2, 3, 6)


@pytest.fixture
def lookup():
    torch.manual_seed(0)
    codes = [torch.randn(7, 5), torch.randn(4, 5)]
    return lambda indices: (codes[0][indices[:, 0]] + codes[1][indices[:, 1]]).permute(0, 3, 1, 2)


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


def attention_weights(queries, keys):
    n = queries.shape[2]
    logits = queries @ keys.transpose(-1, -2) / math.sqrt(queries.shape[-1])
    return logits.masked_fill(torch.ones(n, n, dtype=torch.bool).triu(1), -torch.inf).softmax(-1)


@pytest.mark.parametrize("n", [5, 2 * ROWS, 2 * ROWS + 44])
@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_attention_to_the_past_is_the_equation(n, dropout):
    torch.manual_seed(0)
    queries, keys, values = inputs = [torch.randn(2, 3, n, 4, requires_grad=True) for _ in range(3)]
    noise = torch.get_rng_state()
    kept = attend_to_past(queries, keys, torch.eye(n).expand(2, 3, n, n), dropout) != 0  # the weights themselves
    torch.set_rng_state(noise)
    output = attend_to_past(*inputs, dropout)
    expected = attention_weights(queries, keys) * kept / (1 - dropout) @ values
    torch.testing.assert_close(output, expected)
    weight = torch.randn_like(output)
    for ours, theirs in zip(*(torch.autograd.grad((x * weight).sum(), inputs) for x in (output, expected))):
        torch.testing.assert_close(ours, theirs)


def test_attention_drops_every_weight_by_itself():
    torch.manual_seed(0)
    n = 2 * ROWS + 44
    kept = attend_to_past(*torch.randn(2, 2, 1, n, 4), torch.eye(n).expand(2, 1, n, n), 0.3) != 0
    assert not kept[..., torch.ones(n, n, dtype=torch.bool).triu(1)].any()
    assert abs(kept.sum() / (n * (n + 1)) - 0.7) < 0.01
    for share in (kept[..., 100:, :100].float().mean(-1), kept[..., 100:, :100].float().mean(-2)):
        assert ((share > 0.4) & (share < 0.95)).all()


def test_slots_are_a_set_and_matter(decoder, slots):
    guidance = torch.randn(2, 5, 3, 4)
    expected = decoder(slots, guidance).logits[0]
    torch.testing.assert_close(decoder(slots.flip(1), guidance).logits[0], expected)
    assert (decoder(slots + 1, guidance).logits[0] - expected).abs().max() > 1e-4


def test_cached_generation_is_the_decoder_applied_to_its_own_tokens(decoder, slots, lookup):
    written = decoder.generate_codes(slots)
    assert written.shape == (2, 2, 3, 4)
    assert torch.equal(decoder(slots, lookup(written)).indices, written)
    assert torch.equal(decoder.generate(slots), lookup(written))


def test_token_dropout_hides_past_tokens_in_training_alone(decoder, slots):
    guidance = torch.randn(2, 5, 3, 4)
    hidden_past, visible_past = decoder(slots, torch.zeros_like(guidance)).logits[0], decoder(slots, guidance).logits[0]
    decoder.token_dropout = 1.0
    torch.testing.assert_close(decoder(slots, guidance).logits[0], visible_past)
    decoder.train()
    torch.testing.assert_close(decoder(slots, guidance).logits[0], hidden_past)
    decoder.token_dropout = 0.5
    first = [decoder(slots, guidance).logits[0][:, 1] for _ in range(200)]  # token 1 sees one past token, or none
    hidden = torch.stack([(x - hidden_past[:, 1]).abs().amax(-1) < 1e-6 for x in first]).float().mean()
    assert 0.4 < hidden < 0.6


def permuted(decoder, lookup):
    """The same decoder, with permutations; beginnings of the other orders are that of raster order."""
    options = {"dim": 16, "num_layers": 2, "num_heads": 4, "dropout": 0.0, "permutations": True}
    other = TokenDecoder(6, 5, [7, 4], size=(3, 4), start="slate" if decoder.normalize_tokens else "plain", **options)
    missing = other.load_state_dict(decoder.state_dict(), strict=False)
    assert missing.missing_keys == ["further_begins"] and not missing.unexpected_keys
    other.further_begins.data = other.begin.data.repeat(8, 1, 1)
    other.lookup = lookup
    return other


def test_in_evaluation_permutations_change_nothing(decoder, slots, lookup):
    other, guidance = permuted(decoder, lookup).eval(), torch.randn(2, 5, 3, 4)
    assert torch.equal(other(slots, guidance).logits[0], decoder(slots, guidance).logits[0])
    assert torch.equal(other.generate_codes(slots), decoder.generate_codes(slots))


def test_with_permutations_a_token_sees_those_before_it_in_the_order_of_the_batch(decoder, slots, lookup):
    """Of every order, one and only one of which is drawn for a batch; its tokens come back in raster order."""
    other, guidance = permuted(decoder, lookup).train(), torch.randn(2, 5, 3, 4, requires_grad=True)
    seen = set()
    torch.manual_seed(0)
    for _ in range(60):
        logits = other(slots, guidance).logits[0]
        counts = []
        for token in range(12):
            (gradient,) = torch.autograd.grad(logits[:, token].square().sum(), guidance, retain_graph=True)
            counts.append(int((gradient.abs().amax((0, 1)) > 0).sum()))
        seen.add(tuple(torch.tensor(counts).argsort().tolist()))
        assert sorted(counts) == list(range(12))
    assert seen == {tuple(order) for order in patch_orders(3, 4).tolist()}
    other(slots, guidance).logits[0].sum().backward()
    assert all(x.grad is not None for x in other.parameters() if x is not other.heads[1].weight)


def test_the_nine_orders_are_those_of_spot():
    assert patch_orders(3, 3).tolist() == [
        [0, 1, 2, 3, 4, 5, 6, 7, 8],
        [2, 1, 0, 5, 4, 3, 8, 7, 6],
        [8, 7, 6, 5, 4, 3, 2, 1, 0],
        [6, 7, 8, 3, 4, 5, 0, 1, 2],
        [0, 3, 6, 1, 4, 7, 2, 5, 8],
        [2, 5, 8, 1, 4, 7, 0, 3, 6],
        [8, 5, 2, 7, 4, 1, 6, 3, 0],
        [6, 3, 0, 7, 4, 1, 8, 5, 2],
        [4, 1, 0, 3, 6, 7, 8, 5, 2],
    ]


def test_gradients_reach_the_slots(decoder, slots):
    slots.requires_grad_()
    sum(x.sum() for x in decoder(slots, torch.randn(2, 5, 3, 4)).logits).backward()
    assert slots.grad.abs().min() > 0


def test_guidance_of_another_size_is_refused(decoder, slots):
    with pytest.raises(ValueError, match="16 tokens .*12"):
        decoder(slots, torch.randn(2, 5, 4, 4))


def test_slots_that_are_off_take_no_part(decoder, slots):
    guidance = torch.randn(2, 5, 3, 4)
    off = torch.tensor([[False, True, False], [False, False, True]])
    slots.requires_grad_()
    expected = decoder(slots, guidance, off).logits[0]
    for b, kept in enumerate(([0, 2], [0, 1])):
        torch.testing.assert_close(expected[b], decoder(slots[b : b + 1, kept], guidance[b : b + 1]).logits[0][0])
    expected.square().sum().backward()
    assert (slots.grad[off] == 0).all() and (slots.grad[~off].abs().amax(-1) > 0).all()
    changed = slots.detach().masked_fill(off[..., None], float("inf"))
    assert torch.equal(decoder(changed, guidance, off).logits[0], expected)
    everyone = decoder(slots, guidance, torch.ones_like(off)).logits[0]
    torch.testing.assert_close(everyone, decoder(torch.zeros_like(slots), guidance).logits[0])


def test_generation_ignores_slots_that_are_off(decoder, slots, lookup):
    off = torch.tensor([[False, True, False], [False, False, True]])
    written = decoder.generate_codes(slots, slot_mask=off)
    changed = slots.masked_fill(off[..., None], 50.0)
    assert torch.equal(decoder.generate_codes(changed, slot_mask=off), written)
    assert torch.equal(decoder(slots, lookup(written), off).indices, written)
    assert not torch.equal(decoder.generate_codes(changed), written)


def spread(weight):
    return weight.std(correction=0).item()


def test_with_slates_start_tokens_and_positions_have_unit_variance():
    """Whatever the scale of the features; and both the first branch and the residual stream take the normed sum."""
    torch.manual_seed(0)
    decoder = TokenDecoder(6, 64, [7], size=16, dim=64, num_layers=2, num_heads=4, start="slate").eval()
    guidance = 0.01 * torch.randn(8, 64, 16, 16)
    features = guidance.flatten(2).transpose(1, 2)
    tokens = decoder.project_tokens(features / features.square().mean(-1, keepdim=True).sqrt())
    assert tokens.std().item() == pytest.approx(1, rel=0.05)
    assert spread(decoder.begin) == pytest.approx(1, rel=0.2)
    assert decoder.positions.abs().max() <= 2  # a unit Gaussian cut there
    assert spread(decoder.positions) == pytest.approx(truncnorm.std(-2, 2), rel=0.05)
    seen = []
    decoder.blocks[0].register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    decoder.blocks[0].self_attention.to_query.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    decoder(torch.randn(8, 3, 6), guidance)
    shifted = torch.cat([decoder.begin.expand(8, -1, -1), tokens[:, :-1]], 1)
    torch.testing.assert_close(seen[0], torch.nn.functional.layer_norm(shifted + decoder.positions, (64,)))
    assert seen[1] is seen[0]


def test_with_slates_start_weights_are_xaviers_and_branches_scaled():
    """Deviations of Glorot and Bengio (2010) and He et al. (2015); three branches in each of four layers."""
    torch.manual_seed(0)
    decoder = TokenDecoder(64, 64, [64], size=4, dim=64, num_layers=4, num_heads=4, start="slate")
    xavier, gain = 64**-0.5, 12**-0.5
    assert spread(decoder.project_slots.weight) == pytest.approx(xavier, rel=0.05)
    assert spread(decoder.heads[0].weight) == pytest.approx(xavier, rel=0.05)
    for block in decoder.blocks:
        for attention in (block.self_attention, block.cross_attention):
            for weight in (attention.to_query.weight, attention.to_key_value.weight):
                assert spread(weight) == pytest.approx(xavier, rel=0.05)
            assert spread(attention.to_output.weight) == pytest.approx(gain * xavier, rel=0.05)
        assert spread(block.mlp[0].weight) == pytest.approx((2 / 64) ** 0.5, rel=0.05)
        assert spread(block.mlp[2].weight) == pytest.approx(gain * (2 / (64 + 256)) ** 0.5, rel=0.05)
        assert not block.mlp[0].bias.any() and not block.mlp[2].bias.any()


def test_a_start_that_is_none_is_named():
    with pytest.raises(ValueError, match="start must be plain or slate, got 'dino'"):
        TokenDecoder(6, 5, [7], size=4, start="dino")


def test_temperature_and_top_k_draw_from_the_softmax():
    logits = torch.tensor([0.3, 1.5, -0.7, 0.9, 1.1])
    draws = 20000
    rows = logits.expand(draws, -1)
    for temperature, top_k in ((0.5, None), (1.3, None), (0.8, 3), (1.0, 50)):
        drawn = sample_codes(rows, temperature, top_k, torch.Generator().manual_seed(1))
        kept = sorted(range(5), key=lambda code: -logits[code])[: top_k or 5]
        weights = [math.exp(logits[code] / temperature) if code in kept else 0.0 for code in range(5)]
        expected = torch.tensor(weights, dtype=torch.float64) / sum(weights) * draws
        counts = torch.bincount(drawn, minlength=5)
        assert (counts[expected == 0] == 0).all()
        assert chisquare(counts[expected > 0], expected[expected > 0]).pvalue > 1e-3


def test_greedy_is_top_1_and_temperature_0(decoder, slots):
    greedy = decoder.generate(slots)
    assert torch.equal(decoder.generate(slots, temperature=2.0, top_k=1), greedy)

    def sample(seed):
        return decoder.generate(slots, temperature=5.0, generator=torch.Generator().manual_seed(seed))

    assert torch.equal(sample(0), sample(0))
    assert not torch.equal(sample(0), sample(1)) and not torch.equal(sample(0), greedy)


@pytest.mark.parametrize("options", [{"temperature": -1.0}, {"top_k": 0}])
def test_impossible_ways_of_sampling_are_refused(decoder, slots, options):
    with pytest.raises(ValueError, match="temperature must be >= 0 and top_k >= 1"):
        decoder.generate(slots, **options)


def test_a_joint_head_names_combinations_of_codes(slots, lookup):
    torch.manual_seed(0)
    joint = TokenDecoder(6, 5, [7, 4], size=(3, 4), dim=16, num_layers=1, num_heads=4, joint=True).eval()
    output = joint(slots, torch.randn(2, 5, 3, 4))
    (logits,) = output.logits
    assert logits.shape == (2, 12, 28) and output.indices.shape == (2, 2, 3, 4)
    combined = output.indices[:, 0] * 4 + output.indices[:, 1]
    assert torch.equal(combined.flatten(1), logits.argmax(-1))
    joint.lookup = lookup
    written = joint.generate_codes(slots)
    assert torch.equal(joint(slots, lookup(written)).indices, written)


def build_tokens(size, lookup):
    decoder = TokenDecoder(6, 5, [7, 4], size, dim=16, num_layers=1, num_heads=4)
    decoder.lookup = lookup
    return decoder.eval()


def build_diffusion(size, lookup):
    return DiffusionDecoder(6, 5, size, channels=[8], num_layers=1, num_heads=2).eval()


def arguments(function):
    """Names and defaults of the arguments that can be left to their names."""
    parameters = inspect.signature(function).parameters.values()
    return [(p.name, p.default) for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD]


def build_mixture(size, lookup):
    decoder = MixtureDecoder(6, 5, [7, 4], size, dim=16)
    for layer in (decoder.alpha, *decoder.heads):
        layer.weight.data *= 30  # so sure that the most probable codes are those of the slot that owns a token
    decoder.lookup = lookup
    return decoder.eval()


@pytest.mark.parametrize("build", [build_tokens, build_mixture, build_diffusion])
def test_every_decoder_keeps_the_contract(build, lookup):
    torch.manual_seed(0)
    slots = 5 * torch.randn(2, 3, 6)  # so different that every decoder writes other codes without one of them
    decoder = build((3, 4), lookup)
    assert isinstance(decoder, Decoder)
    assert arguments(type(decoder).forward) == arguments(Decoder.forward)
    promised = arguments(Decoder.generate)
    assert arguments(type(decoder).generate)[: len(promised)] == promised
    off = torch.tensor([[False, True, False], [False, False, True]])
    guidance = torch.randn(2, 5, 3, 4)
    parts = [getattr(decoder(slots, guidance, off), field.name) for field in fields(decoder(slots, guidance))]
    assert all(len(x) == 2 for part in parts for x in (part if isinstance(part, tuple) else [part]))
    for size, shape in (((3, 4), (3, 4)), (4, (4, 4))):
        decoder = build(size, lookup)
        features = decoder.generate(slots)
        assert features.shape == (2, 5, *shape) and features.is_floating_point()
        assert torch.equal(decoder.generate(slots, size=shape, slot_mask=torch.zeros_like(off)), features)
        assert not torch.allclose(decoder.generate(slots, shape, off), features)


def test_without_a_lookup_the_message_says_what_to_set(slots):
    with pytest.raises(RuntimeError, match="set the decoder's `lookup`"):
        build_tokens(3, None).generate(slots)
