"""Preheated queries, and fewer iterations for frames behind the first."""

import pytest
import torch
from ocl.typing import FeatureExtractorOutput

from ocl_msf.conditioning import BoxQueries, GaussianQueries
from ocl_msf.invariant import InvariantSlotAttentionGrouping
from ocl_msf.perceptual_grouping import (
    BlockSlotAttentionGrouping,
    TruncatedSlotAttentionGrouping,
    VideoSlotAttentionGrouping,
)
from ocl_msf.preheating import PreheatedQueries, PreheatingLoss

pytestmark = pytest.mark.needs_host

GROUPINGS = [
    TruncatedSlotAttentionGrouping,
    VideoSlotAttentionGrouping,
    BlockSlotAttentionGrouping,
    InvariantSlotAttentionGrouping,
]


@pytest.fixture
def preheated():
    torch.manual_seed(0)
    return PreheatedQueries(8, 6, GaussianQueries(8, 3, sigma=0.0), num_heads=2)


def test_a_block_that_adds_nothing_leaves_the_cold_queries(preheated):
    for layer in (preheated.look.out_proj, preheated.talk.out_proj, preheated.mlp[-1]):
        torch.nn.init.zeros_(layer.weight)
        torch.nn.init.zeros_(layer.bias) if layer.bias is not None else None
    assert torch.equal(preheated.eval()(torch.randn(2, 5, 6)).queries, preheated.cold(2))


def test_queries_know_the_features_and_have_noise_in_training_alone(preheated):
    features = torch.randn(2, 5, 6)
    made = preheated.eval()(features)
    assert made.queries.shape == (2, 3, 8) and made.is_empty is None
    assert torch.equal(made.queries, made.preheated) and torch.equal(made.queries, preheated(features).queries)
    assert (preheated(features + 1).queries - made.queries).abs().max() > 1e-3
    torch.testing.assert_close(preheated(features.flip(1)).queries, made.queries)  # features are a set
    noise = torch.stack([preheated.train()(features).queries for _ in range(500)]) - made.queries
    torch.testing.assert_close(noise.std(0), torch.ones(2, 3, 8), atol=0.2, rtol=0)


def test_the_loss_alone_teaches_the_block_and_not_the_slots(preheated):
    features = torch.randn(2, 5, 6, requires_grad=True)
    made = preheated(features)
    assert made.queries.grad_fn is None or made.queries.requires_grad  # of the deviation alone
    made.queries.sum().backward()
    assert (
        features.grad is None and preheated.to_memory.weight.grad is None and preheated.log_deviation.grad is not None
    )
    slots = torch.randn(2, 3, 8, requires_grad=True)
    loss = PreheatingLoss(100.0)(made.preheated, slots)
    torch.testing.assert_close(loss, 100 * (made.preheated - slots).square().mean())
    loss.backward()
    assert slots.grad is None and features.grad is None and preheated.to_memory.weight.grad is not None
    preheated.detach = 0.0
    PreheatingLoss()(preheated(features).preheated, slots).backward()
    assert features.grad is not None


def test_of_videos_the_first_frame_and_slots_with_a_box_count():
    torch.manual_seed(0)
    queries = PreheatedQueries(8, 6, BoxQueries(8, 3), num_heads=2).eval()
    boxes = torch.rand(2, 4, 2, 4).sort(-1).values
    boxes[0, 0, 1] = 0
    features = torch.randn(2, 4, 5, 6)
    made = queries(features, boxes)
    assert made.is_empty.tolist() == [[False, False, True], [False] * 3]
    changed = features.clone()
    changed[:, 1:] += 1
    assert torch.equal(queries(changed, boxes).queries, made.queries)
    slots = torch.randn(2, 4, 3, 11)  # vectors and frames, of all frames of the videos
    kept = ~made.is_empty
    expected = (made.preheated[kept] - slots[:, 0, :, :8][kept]).square().mean()
    torch.testing.assert_close(PreheatingLoss(1.0)(made.preheated, slots, made.is_empty), expected)


@pytest.mark.parametrize("gradients", ["all", "straight_through"])
@pytest.mark.parametrize("kind", GROUPINGS)
def test_frames_behind_the_first_take_their_own_number_of_iterations(kind, gradients):
    feature = FeatureExtractorOutput(torch.randn(2, 9, 8), torch.rand(9, 2), None)
    queries, previous = torch.randn(2, 3, 8), torch.randn(2, 3, 8)

    def build(iters, later=None):
        torch.manual_seed(1)
        return kind(8, 8, iters=iters, gradients=gradients, later_iters=later)

    for later, given, iters in ((None, previous, 3), (1, None, 3), (1, previous, 1), (3, previous, 3)):
        made, expected = build(3, later)(feature, queries, None, given), build(iters)(feature, queries)
        torch.testing.assert_close(made.objects, expected.objects)
        torch.testing.assert_close(made.feature_attributions, expected.feature_attributions)
