import pytest
import torch
from ocl.neural_networks import build_two_layer_mlp
from ocl.typing import FeatureExtractorOutput

from ocl_msf.frames import fit_frames, split_frames
from ocl_msf.invariant import InvariantSlotAttentionGrouping, VideoInvariantSlotAttentionGrouping

pytestmark = [pytest.mark.needs_host, pytest.mark.oclf]


def build(**options):
    torch.manual_seed(0)
    mlp = build_two_layer_mlp(8, 8, 32, initial_layer_norm=True, residual=True)
    grouping = InvariantSlotAttentionGrouping(6, 8, ff_mlp=mlp, **options)
    torch.nn.init.normal_(grouping.to_coefficients.weight)  # positions count
    return grouping


@pytest.fixture
def feature():
    torch.manual_seed(1)
    return FeatureExtractorOutput(torch.randn(2, 40, 6), torch.rand(40, 2))


@pytest.fixture
def queries():
    torch.manual_seed(2)
    return torch.randn(2, 4, 8)


def test_a_moved_and_smaller_image_gives_the_same_slots_with_other_frames(feature, queries):
    grouping = build(min_scale=1e-3)
    output = grouping(feature, queries)
    moved = grouping(FeatureExtractorOutput(feature.features, 0.5 * feature.positions + 0.2), queries)
    vectors, frames = split_frames(output.objects)
    moved_vectors, moved_frames = split_frames(moved.objects)
    torch.testing.assert_close(moved_vectors, vectors, rtol=1e-2, atol=1e-2)  # the first frame is not quite unlimited
    shift = 2 * 0.2 + 0.5 - 1  # of the positions in [-1, 1]
    expected = torch.cat([0.5 * frames[..., :2] + shift, 0.5 * frames[..., 2:]], -1)
    torch.testing.assert_close(moved_frames, expected, rtol=1e-2, atol=1e-2)
    mirrored = grouping(FeatureExtractorOutput(feature.features, 1 - feature.positions), queries)
    assert not torch.allclose(split_frames(mirrored.objects)[0], vectors, atol=0.05)


def test_frames_say_where_the_attention_is(feature, queries):
    output = build()(feature, queries)
    attention = output.feature_attributions
    torch.testing.assert_close(attention.sum(1), torch.ones(2, 40))
    weights = attention + 1e-6
    weights = weights / weights.sum(-1, keepdim=True)
    expected = fit_frames(weights, 2 * feature.positions - 1, 0.1)
    torch.testing.assert_close(output.objects[..., -3:], expected)


def test_the_first_iteration_goes_by_looks_alone(feature, queries):
    grouping = build(iters=1)
    shuffled = FeatureExtractorOutput(feature.features, feature.positions.flip(0))
    first, second = (grouping(x, queries).feature_attributions for x in (feature, shuffled))
    torch.testing.assert_close(first, second, rtol=0.02, atol=1e-3)
    grouping.iters = 2
    first, second = (grouping(x, queries).feature_attributions for x in (feature, shuffled))
    assert not torch.allclose(first, second, atol=0.01)


def test_slots_that_are_off_get_nothing_and_the_order_of_slots_does_not_matter(feature, queries):
    grouping, off = build(), torch.tensor([[False, True, False, False]] * 2)
    output = grouping(feature, queries, off)
    assert output.is_empty is off and (output.feature_attributions[:, 1] == 0).all()
    alone = grouping(feature, queries[:, [3, 0, 2]])
    torch.testing.assert_close(output.objects[:, [3, 0, 2]], alone.objects, rtol=1e-3, atol=1e-3)


def test_features_do_not_know_where_they_are(feature, queries):
    seen = []

    class Embedding(torch.nn.Module):
        def forward(self, features, positions):
            seen.append(positions)
            return features

    build(positional_embedding=Embedding())(feature, queries)
    assert (seen[0] == 0.5).all() and seen[0].shape == (40, 2)


def test_features_without_positions_are_refused(feature, queries):
    with pytest.raises(ValueError, match="positions"):
        build()(FeatureExtractorOutput(feature.features, None), queries)


@pytest.mark.parametrize("gradients, flows", [("all", True), ("last", False), ("straight_through", True)])
def test_gradients_reach_queries_as_in_slot_attention(feature, queries, gradients, flows):
    queries.requires_grad_()
    output = build(gradients=gradients)(feature, queries)
    output.objects.sum().backward()
    assert (queries.grad is not None) == flows
    torch.testing.assert_close(output.objects, build()(feature, queries).objects)


def test_slots_that_come_with_frames_look_around_them(feature, queries):
    grouping = build(iters=1)
    frames = torch.rand(2, 4, 3) + 0.1
    started = torch.cat([queries, frames], -1)
    attention = grouping(feature, started).feature_attributions
    moved = FeatureExtractorOutput(feature.features, feature.positions + 0.2)
    frames[..., :2] += 0.4  # positions are in [-1, 1]
    followed = grouping(moved, torch.cat([queries, frames], -1)).feature_attributions
    torch.testing.assert_close(followed, attention)
    assert not torch.allclose(grouping(moved, started).feature_attributions, attention, atol=0.05)
    again = build(iters=2)(feature, queries)  # two iterations are one, and one more from its slots
    first = build(iters=1)(feature, queries)
    torch.testing.assert_close(build(iters=1)(feature, first.objects).objects, again.objects)


def test_slots_of_videos_start_by_keeping_what_they_are(feature, queries):
    torch.manual_seed(0)
    usual = InvariantSlotAttentionGrouping(6, 8, iters=1)
    torch.manual_seed(0)
    keeping = VideoInvariantSlotAttentionGrouping(6, 8, iters=1)
    far, near = (split_frames(x(feature, queries).objects)[0] - queries for x in (usual, keeping))
    assert near.norm() < 0.5 * far.norm()
