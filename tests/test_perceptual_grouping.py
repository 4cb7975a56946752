import pytest
import torch
from ocl.neural_networks import build_two_layer_mlp
from ocl.perceptual_grouping import SlotAttentionGrouping
from ocl.typing import FeatureExtractorOutput

from ocl_msf.perceptual_grouping import (
    BlockSlotAttentionGrouping,
    FactorMemory,
    TemporalPredictor,
    TruncatedSlotAttentionGrouping,
    VideoSlotAttentionGrouping,
)

pytestmark = [pytest.mark.needs_host, pytest.mark.oclf]


@pytest.mark.parametrize("training", [True, False])
def test_the_predictor_leaves_empty_slots_out(training):
    predictor = TemporalPredictor(8, num_heads=2).train(training)
    slots, off = torch.randn(2, 4, 8), torch.tensor([[False, True, False, True], [False, False, False, True]])
    predicted = predictor(slots, off)
    assert predicted.shape == slots.shape
    others = slots.masked_scatter(off[..., None], torch.randn(3, 8))
    torch.testing.assert_close(predictor(others, off)[~off], predicted[~off])
    alone = predictor(slots[:1, [0, 2]])
    torch.testing.assert_close(predicted[0, [0, 2]], alone[0])


def test_the_predictor_lets_slots_look_at_one_another_in_any_order():
    predictor = TemporalPredictor(8, num_heads=2)
    slots = torch.randn(1, 4, 8)
    torch.testing.assert_close(predictor(slots.flip(1)), predictor(slots).flip(1))
    changed = slots.clone()
    changed[:, 3] += torch.randn(8)
    assert not torch.allclose(predictor(changed)[:, 0], predictor(slots)[:, 0])


def test_channels_that_cannot_be_split_are_named():
    with pytest.raises(ValueError, match="10 channels"):
        TemporalPredictor(10, num_heads=4)


def build(kind, **options):
    torch.manual_seed(0)
    mlp = build_two_layer_mlp(64, 64, 256, initial_layer_norm=True, residual=True)
    return kind(16, 64, ff_mlp=mlp, **options)


@torch.no_grad()
def over_frames(grouping, frames, predictor=None):
    """Mean distance of normed slots after so many frames, as a share of that at the start, and the slots' size."""
    torch.manual_seed(1)
    feature, slots = FeatureExtractorOutput(torch.randn(2, 100, 16), torch.rand(100, 2)), torch.randn(2, 5, 64)
    distances = []
    for _ in range(frames):
        distances.append(torch.pdist(torch.nn.functional.layer_norm(slots[0], (64,))).mean())
        slots = grouping(feature, predictor(slots) if predictor else slots).objects
    return (distances[-1] / distances[0]).item(), slots.square().mean().sqrt().item()


def apart(grouping, frames):
    return over_frames(grouping, frames)[0]


def test_slots_stay_apart_over_a_whole_video_before_anything_is_learnt():
    assert apart(build(SlotAttentionGrouping), 24) < 0.05
    assert apart(build(VideoSlotAttentionGrouping), 24) > 0.2


def test_normalising_the_predictor_keeps_slots_at_their_size_and_apart():
    plain, normalising = (TemporalPredictor(64, normalize=normalize) for normalize in (False, True))
    video = build(VideoSlotAttentionGrouping)
    assert over_frames(video, 24, plain)[1] > 3
    distance, size = over_frames(video, 24, normalising)
    assert distance > 0.1 and 0.5 < size < 2


@torch.no_grad()
@pytest.mark.parametrize("normalize", [False, True])
def test_the_predictor_is_its_equation(normalize):
    """Pre-norm self-attention and MLP, between two norms or none, on slots of one video."""
    torch.manual_seed(0)
    predictor, slots = TemporalPredictor(8, num_heads=1, normalize=normalize), 3 * torch.randn(5, 8) + 1
    block, weights = predictor.block, predictor.block.self_attn
    x = torch.nn.functional.layer_norm(slots, (8,)) if normalize else slots
    query, key, value = (block.norm1(x) @ weights.in_proj_weight.T + weights.in_proj_bias).chunk(3, -1)
    x = x + weights.out_proj((query @ key.T / 8**0.5).softmax(-1) @ value)
    x = x + block.linear2(block.linear1(block.norm2(x)).relu())
    x = torch.nn.functional.layer_norm(x, (8,)) if normalize else x
    torch.testing.assert_close(predictor(slots[None])[0], x)


def test_the_predictor_leaves_frames_as_they_are():
    predictor = TemporalPredictor(8, frames=True)
    slots, frames = torch.randn(2, 3, 8), torch.randn(2, 3, 3)
    predicted = predictor(torch.cat([slots, frames], -1))
    assert torch.equal(predicted[..., 8:], frames)
    predictor.frames = False
    torch.testing.assert_close(predicted[..., :8], predictor(slots))


def test_but_for_its_start_it_is_the_slot_attention_of_images():
    plain, video = build(SlotAttentionGrouping, iters=2), build(VideoSlotAttentionGrouping, iters=2, keep_bias=0.0)
    assert apart(video, 3) == apart(plain, 3)
    changed = build(VideoSlotAttentionGrouping, iters=2)
    different = [name for name, x in changed.state_dict().items() if not torch.equal(x, plain.state_dict()[name])]
    assert different == ["slot_attention.gru.bias_ih"]


def learn(grouping):
    """Objects, attention, and gradients of the queries and of all weights."""
    torch.manual_seed(1)
    feature, queries = FeatureExtractorOutput(torch.randn(2, 30, 16), torch.rand(30, 2)), torch.randn(2, 3, 64)
    queries.requires_grad_()
    output = grouping(feature, queries)
    output.objects.square().sum().backward()
    weights = {name: p.grad for name, p in grouping.named_parameters() if p.grad is not None}
    return output.objects, output.feature_attributions, queries.grad, weights


KINDS = [TruncatedSlotAttentionGrouping, VideoSlotAttentionGrouping, BlockSlotAttentionGrouping]


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_flow_through_all_iterations_or_the_last(kind):
    """The last one alone: as if its slots were given. Straight through: the queries get their gradient."""
    objects, attention, of_queries, of_weights = learn(build(kind))
    torch.manual_seed(1)
    feature, queries = FeatureExtractorOutput(torch.randn(2, 30, 16), torch.rand(30, 2)), torch.randn(2, 3, 64)
    slots = build(kind, iters=2)(feature, queries).objects.detach().requires_grad_()
    last = build(kind, iters=1)
    last(feature, slots).objects.square().sum().backward()
    expected = {name: p.grad for name, p in last.named_parameters()}
    for gradients, reached in (("last", None), ("straight_through", slots.grad)):
        same = learn(build(kind, gradients=gradients))
        torch.testing.assert_close(same[:2], (objects, attention))
        torch.testing.assert_close(same[2], reached)
        torch.testing.assert_close(same[3], expected)
    assert not torch.allclose(of_queries, slots.grad)
    assert any(not torch.allclose(of_weights[name], expected[name]) for name in expected)


def test_with_all_gradients_it_is_the_slot_attention_of_the_host():
    for ours, theirs in zip(learn(build(TruncatedSlotAttentionGrouping)), learn(build(SlotAttentionGrouping))):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=0)


@pytest.mark.parametrize("kind", KINDS)
def test_unknown_ways_of_gradients_are_named(kind):
    with pytest.raises(ValueError, match="gradients must be all, last or straight_through, got 'first'"):
        learn(build(kind, gradients="first"))


@pytest.fixture(params=[False, True], ids=["mapped query", "normalised memory"])
def grouping(request):
    torch.manual_seed(0)
    return BlockSlotAttentionGrouping(5, 8, num_blocks=2, num_prototypes=6, normalize_memory=request.param)


@pytest.fixture
def inputs():
    return FeatureExtractorOutput(torch.randn(2, 30, 5), torch.rand(30, 2)), torch.randn(2, 3, 8)


def test_masks_share_the_features_among_slots(grouping, inputs):
    output = grouping(*inputs)
    assert output.objects.shape == (2, 3, 8) and output.feature_attributions.shape == (2, 3, 30)
    torch.testing.assert_close(output.feature_attributions.sum(1), torch.ones(2, 30))


def test_slots_and_features_are_sets(grouping, inputs):
    feature, queries = inputs
    output = grouping(feature, queries)
    turned = FeatureExtractorOutput(feature.features.flip(1), feature.positions)
    flipped = grouping(turned, queries.flip(1))
    torch.testing.assert_close(flipped.objects, output.objects.flip(1))
    torch.testing.assert_close(flipped.feature_attributions, output.feature_attributions.flip(1, 2))


def read_memory(memory, query):
    """SysBinder: both are normalised, without weights; what came before it here: the query alone, then mapped."""
    prototypes = memory.refine(memory.prototypes)
    if len(memory.refine) == 7:  # four layers
        centred = [x - x.mean(1, keepdim=True) for x in (prototypes, query)]
        prototypes, query = (x / (x.square().mean(1, keepdim=True) + 1e-5).sqrt() for x in centred)
    else:
        query = memory.to_query(memory.norm(query))
    return (query @ prototypes.T / query.shape[1] ** 0.5).softmax(1) @ prototypes


def test_one_iteration_is_its_equations(grouping, inputs):
    feature, queries = inputs
    grouping.iters = 1
    features = grouping.norm_features(feature.features)
    for b in range(2):
        logits = grouping.to_query(grouping.norm_slots(queries[b])) @ grouping.to_key(features[b]).T / 8**0.5
        weights = logits.softmax(0)
        read = weights / weights.sum(1, keepdim=True) @ grouping.to_value(features[b])
        blocks = []
        for factor, part in zip(grouping.factors, (slice(0, 4), slice(4, 8))):
            block = factor.gru(read[:, part], queries[b, :, part])
            block = block + factor.mlp(block)
            blocks.append(read_memory(factor.memory, block))
        torch.testing.assert_close(grouping(feature, queries).objects[b], torch.cat(blocks, 1))


def test_a_block_is_its_factors_business_alone(grouping, inputs):
    """Whatever becomes of one factor's weights, the other block of a single iteration stays."""
    grouping.iters = 1
    before = grouping(*inputs).objects
    with torch.no_grad():
        for parameter in grouping.factors[1].parameters():
            parameter.add_(torch.randn_like(parameter))
    after = grouping(*inputs).objects
    assert torch.equal(before[..., :4], after[..., :4]) and (before[..., 4:] - after[..., 4:]).abs().min() > 1e-6


def test_a_normalised_memory_keeps_slots_apart_before_anything_is_learnt():
    """By their deviation from the mean slot, as a share of their size."""
    shares = []
    for normalize in (False, True):
        torch.manual_seed(0)
        grouping = BlockSlotAttentionGrouping(16, 64, normalize_memory=normalize)
        with torch.no_grad():
            feature = FeatureExtractorOutput(torch.randn(4, 100, 16), torch.rand(100, 2))
            slots = grouping(feature, torch.randn(4, 11, 64)).objects
        shares.append((slots - slots.mean(1, keepdim=True)).norm() / slots.norm())
    assert shares[1] > 100 * shares[0]


@pytest.mark.parametrize("normalize", [False, True])
def test_blocks_are_mixtures_of_prototypes(normalize):
    torch.manual_seed(0)
    memory = FactorMemory(4, 6, normalize)
    prototypes = memory.memory()
    read = memory(100 * torch.randn(50, 4))
    assert (read <= prototypes.amax(0) + 1e-5).all() and (read >= prototypes.amin(0) - 1e-5).all()


def test_slots_that_are_off_get_nothing(grouping, inputs):
    feature, queries = inputs
    off = torch.tensor([[False, True, False], [False, False, False]])
    output = grouping(feature, queries, off)
    assert (output.feature_attributions[0, 1] == 0).all() and torch.equal(output.is_empty, off)
    alone = grouping(feature, queries[:, [0, 2]])
    torch.testing.assert_close(output.objects[0, [0, 2]], alone.objects[0])


def test_every_parameter_and_query_learns(grouping, inputs):
    feature, queries = inputs
    queries.requires_grad_()
    grouping(feature, queries).objects.square().sum().backward()
    assert queries.grad.abs().sum() > 0
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in grouping.parameters())


def test_channels_that_cannot_be_split_into_blocks_are_refused():
    with pytest.raises(ValueError, match="9 channels cannot be split into 2"):
        BlockSlotAttentionGrouping(5, 9)
