import numpy as np
import pytest
import torch

from ocl_msf.frames import box_frames, fit_frames, frame_features, relative_features, split_frames, unlimited_frames
from ocl_msf.mixture import FramedMixtureDecoder


@pytest.fixture
def points():
    torch.manual_seed(0)
    return torch.rand(30, 2, dtype=torch.float64) * 2 - 1


def test_slots_are_vectors_and_frames():
    vectors, frames = torch.randn(2, 3, 5), torch.randn(2, 3, 3)
    first, second = split_frames(torch.cat([vectors, frames], -1))
    assert torch.equal(first, vectors) and torch.equal(second, frames)


def test_frames_are_the_weighted_mean_and_deviation(points):
    weights = torch.rand(2, 4, 30, dtype=torch.float64).softmax(-1)
    frames = fit_frames(weights, points, min_scale=0.01)
    for b in range(2):
        for k in range(4):
            covariance = np.cov(points.numpy().T, aweights=weights[b, k].numpy(), ddof=0)
            mean = np.average(points.numpy(), axis=0, weights=weights[b, k].numpy())
            expected = [*mean, np.sqrt(np.diag(covariance)).mean()]
            np.testing.assert_allclose(frames[b, k].numpy(), expected, rtol=1e-6)


def test_one_point_gets_the_smallest_scale(points):
    weights = torch.eye(30, dtype=torch.float64)[None, :3]
    frames = fit_frames(weights, points, min_scale=0.1)
    torch.testing.assert_close(frames[0, :, :2], points[:3])
    assert (frames[..., 2] == 0.1).all()


def test_a_frame_moved_and_scaled_with_the_points_sees_the_same(points):
    frame, factor, shift = torch.tensor([0.2, -0.4, 0.5]).double(), 0.3, torch.tensor([0.5, 0.1]).double()
    moved = torch.cat([frame[:2] * factor + shift, frame[2:] * factor])
    before = relative_features(frame, points)
    torch.testing.assert_close(relative_features(moved, points * factor + shift), before)
    r = ((points - frame[:2]) / 0.5).norm(dim=-1)
    torch.testing.assert_close(before[:, 2], r**2)
    torch.testing.assert_close(before[:, 6], (-(r**2) / 8).exp() - 1)


def test_all_places_are_one_without_limits(points):
    frames = unlimited_frames(torch.randn(2, 3, 5, dtype=torch.float64))
    assert frames.shape == (2, 3, 3)
    assert relative_features(frames.unsqueeze(2), points).abs().max() < 0.01


def test_a_slot_with_a_moved_frame_draws_the_same_elsewhere():
    torch.manual_seed(0)
    decoder = FramedMixtureDecoder(6, 5, [7, 4], size=(8, 9), dim=16).eval()
    vectors, guidance = torch.randn(2, 3, 6), torch.zeros(2, 5, 8, 9)
    frames = torch.tensor([[0.1, 0.0, 0.3], [-0.2, 0.1, 0.2], [0.0, -0.3, 0.25]]).expand(2, 3, 3)
    step = torch.tensor([2 / 7, 2 * 2 / 8, 0.0])  # one row down, two columns to the right
    here = decoder(torch.cat([vectors, frames], -1), guidance).logits
    there = decoder(torch.cat([vectors, frames + step], -1), guidance).logits
    for p, q in zip(here, there):
        p, q = p.unflatten(1, (8, 9)), q.unflatten(1, (8, 9))
        torch.testing.assert_close(q[:, 1:, 2:], p[:, :-1, :-2], rtol=1e-3, atol=1e-4)
        assert not torch.allclose(q, p, atol=1e-2)
    codes = decoder.generate_codes(torch.cat([vectors, frames], -1))
    assert codes.shape == (2, 2, 8, 9)


def test_equal_slots_own_what_is_near_them():
    decoder = FramedMixtureDecoder(6, 5, [7, 4], size=8, dim=16, focus=50.0).eval()
    vector = torch.randn(1, 1, 6)
    frames = torch.tensor([[[-0.5, 0.0, 0.5], [0.5, 0.0, 0.5]]])
    slots = torch.cat([vector.expand(1, 2, 6), frames], -1)
    both = decoder(slots, torch.zeros(1, 5, 8, 8)).logits[0].unflatten(1, (8, 8))
    upper = decoder(slots[:, :1], torch.zeros(1, 5, 8, 8)).logits[0].unflatten(1, (8, 8))
    torch.testing.assert_close(both[:, :3], upper[:, :3], rtol=1e-3, atol=1e-3)


def test_frames_of_boxes_are_those_of_points_spread_evenly_in_them():
    boxes = torch.tensor([[0.1, 0.2, 0.5, 0.6], [0.0, 0.0, 1.0, 1.0], [0.5, 0.75, 0.75, 1.0]])  # x, y, x, y
    axis = (torch.arange(400) + 0.5) / 400
    grid = torch.cartesian_prod(axis, axis)  # n 2, y and x
    inside = ((grid > boxes[:, None, [1, 0]]) & (grid < boxes[:, None, [3, 2]])).all(-1).float()  # k n
    weights = inside / inside.sum(-1, keepdim=True)
    expected = fit_frames(weights[None], 2 * grid - 1, 0.0)[0]
    torch.testing.assert_close(box_frames(boxes), expected, atol=1e-4, rtol=1e-4)


def test_the_frame_of_no_box_is_finite():
    assert frame_features(box_frames(torch.zeros(2, 4))).isfinite().all()


def test_features_of_frames_make_the_squared_distance_of_a_point():
    frames, point = torch.rand(5, 3) + 0.1, torch.rand(2)
    inverse, y, x, square = frame_features(frames)[:, 3:].unbind(-1)
    distance = point.square().sum() * inverse - 2 * (point[0] * y + point[1] * x) + square
    expected = (frames[:, :2] - point).square().sum(-1) / (frames[:, 2].square() + 0.1)
    torch.testing.assert_close(distance, expected)
