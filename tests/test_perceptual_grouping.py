import pytest
import torch
from ocl.neural_networks import build_two_layer_mlp
from ocl.perceptual_grouping import SlotAttentionGrouping
from ocl.typing import FeatureExtractorOutput

from ocl_msf.perceptual_grouping import (
    BlockSlotAttentionGrouping,
    FactorMemory,
    TemporalPredictor,
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
def apart(grouping, frames):
    """Mean distance of normed slots after so many frames, as a share of that at the start."""
    torch.manual_seed(1)
    feature, slots = FeatureExtractorOutput(torch.randn(2, 100, 16), torch.rand(100, 2)), torch.randn(2, 5, 64)
    distances = []
    for _ in range(frames):
        distances.append(torch.pdist(torch.nn.functional.layer_norm(slots[0], (64,))).mean())
        slots = grouping(feature, slots).objects
    return (distances[-1] / distances[0]).item()


def test_slots_stay_apart_over_a_whole_video_before_anything_is_learnt():
    assert apart(build(SlotAttentionGrouping), 24) < 0.05
    assert apart(build(VideoSlotAttentionGrouping), 24) > 0.2


def test_but_for_its_start_it_is_the_slot_attention_of_images():
    plain, video = build(SlotAttentionGrouping, iters=2), build(VideoSlotAttentionGrouping, iters=2, keep_bias=0.0)
    assert apart(video, 3) == apart(plain, 3)
    changed = build(VideoSlotAttentionGrouping, iters=2)
    different = [name for name, x in changed.state_dict().items() if not torch.equal(x, plain.state_dict()[name])]
    assert different == ["slot_attention.gru.bias_ih"]


@pytest.fixture
def grouping():
    torch.manual_seed(0)
    return BlockSlotAttentionGrouping(5, 8, num_blocks=2, num_prototypes=6)


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
            memory = factor.memory.refine(factor.memory.prototypes)
            scores = factor.memory.to_query(factor.memory.norm(block)) @ memory.T / 2
            blocks.append(scores.softmax(1) @ memory)
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


def test_blocks_are_mixtures_of_prototypes():
    torch.manual_seed(0)
    memory = FactorMemory(4, 6)
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
