import pytest
import torch

from ocl_msf.conditioning import BoxQueries, GaussianQueries


def test_in_training_queries_are_gaussian_around_a_mean_of_each_slot():
    torch.manual_seed(0)
    queries = GaussianQueries(3, 4, sigma=0.5)
    queries.mean.data = torch.randn(1, 4, 3)
    drawn = queries(20000)
    assert drawn.shape == (20000, 4, 3)
    torch.testing.assert_close(drawn.mean(0), queries.mean[0], atol=0.02, rtol=0)
    torch.testing.assert_close(drawn.std(0), torch.full((4, 3), 0.5), atol=0.02, rtol=0)


def test_a_learned_deviation_starts_as_that_of_a_unit_vector_and_belongs_to_each_channel():
    torch.manual_seed(0)
    queries = GaussianQueries(4, 3, sigma="learned", mean_std="xavier")
    torch.testing.assert_close(queries(20000).std(0), torch.full((3, 4), 0.5), atol=0.02, rtol=0)
    queries(2).square().sum().backward()
    assert (queries.log_deviation.grad != 0).all()
    assert torch.equal(queries.eval()(2), queries.mean.expand(2, -1, -1))


def test_shared_queries_are_drawn_from_one_gaussian_and_fixed_in_evaluation():
    torch.manual_seed(0)
    queries = GaussianQueries(3, 4, shared=True)
    queries.mean.data, queries.log_deviation.data = torch.randn(1, 1, 3), torch.randn(1, 1, 3)
    drawn = queries(20000)
    deviation = queries.log_deviation[0, 0].exp()
    assert drawn.shape == (20000, 4, 3)
    assert ((drawn.mean(0) - queries.mean[0]).abs() < 0.03 * deviation).all()
    torch.testing.assert_close(drawn.std(0), deviation.expand(4, 3), rtol=0.03, atol=0)
    copy = GaussianQueries(3, 4, shared=True)
    copy.load_state_dict(queries.state_dict())
    fixed = queries.eval()(2)
    assert torch.equal(fixed[0], fixed[1]) and torch.equal(fixed, copy.eval()(2))
    assert torch.pdist(fixed[0]).min() > 0


def test_means_start_as_the_unit_gaussian_a_narrower_one_or_xaviers():
    for mean_std, expected in ((1.0, 1.0), (0.09, 0.09), ("xavier", (2 / (11 + 256)) ** 0.5)):
        torch.manual_seed(0)
        mean = GaussianQueries(256, 11, mean_std=mean_std).mean
        assert mean.std().item() == pytest.approx(expected, rel=0.05)
    torch.manual_seed(0)
    default = GaussianQueries(256, 11).mean
    torch.manual_seed(0)
    assert torch.equal(default, torch.randn(1, 11, 256))


def test_in_evaluation_they_are_the_means_and_no_schedule_is_read():
    class Unset(torch.nn.Module):
        def __float__(self):
            raise RuntimeError("read before its first update")

    queries = GaussianQueries(3, 4, sigma=Unset()).eval()
    queries.mean.data = torch.randn(1, 4, 3)
    assert torch.equal(queries(2), queries.mean.expand(2, -1, -1))


def test_box_queries_encode_the_first_frame_and_leave_slots_without_a_box_empty():
    boxes = torch.rand(2, 6, 3, 4)
    boxes[0, 0, 1] = 0
    queries = BoxQueries(8, n_slots=5)
    made = queries(boxes)
    assert made.queries.shape == (2, 5, 8)
    assert made.is_empty.tolist() == [[False, False, True, False, True], [False, False, False, False, True]]
    torch.testing.assert_close(made.queries[:, 1:4], queries.mlp(boxes[:, 0]))
    torch.testing.assert_close(made.queries[:, 0], queries.mlp(torch.tensor([[0.0, 0, 1, 1]])).expand(2, -1))
    boxes[:, 1:] = 0.5
    assert torch.equal(queries(boxes).queries, made.queries)


def test_queries_have_the_frames_of_their_boxes():
    boxes = torch.tensor([0.2, 0.4, 0.4, 0.8]).view(1, 1, 1, 4)  # x, y, x, y
    plain, framed = BoxQueries(8, n_slots=2), BoxQueries(8, n_slots=2, frames=True)
    framed.load_state_dict(plain.state_dict())
    queries = framed(boxes).queries
    torch.testing.assert_close(queries[..., :8], plain(boxes).queries)
    expected = torch.tensor([[0, 0, 1 / 3**0.5], [0.2, -0.4, 0.3 / 3**0.5]])  # y, x, scale, of [-1, 1]
    torch.testing.assert_close(queries[0, :, 8:], expected)


def test_queries_of_boxes_start_as_far_apart_as_gaussian_ones():
    """By their distance after the layer norm of slot attention; near boxes have near queries."""
    torch.manual_seed(0)
    centre, half = torch.rand(200, 2), torch.rand(200, 1) * 0.1 + 0.05
    boxes = torch.cat([centre - half, centre + half], -1).clamp(0, 1)
    norm = torch.nn.LayerNorm(64)

    def encode(boxes):
        return norm(made(boxes[None, None]).queries[0, 1:])

    made = BoxQueries(64, n_slots=201)
    apart, gaussian = torch.pdist(encode(boxes)).mean(), torch.pdist(norm(torch.randn(200, 64))).mean()
    assert apart > 0.8 * gaussian
    assert (encode(boxes) - encode(boxes + 0.02)).norm(dim=1).mean() < 0.15 * apart


def test_boxes_beyond_the_last_slot_are_cut():
    queries = BoxQueries(8, n_slots=3)
    boxes = torch.rand(2, 1, 7, 4)
    torch.testing.assert_close(queries(boxes).queries[:, 1:], queries.mlp(boxes[:, 0, :2]))
    assert not queries(boxes).is_empty.any()


def test_boxes_without_frames_are_refused():
    with pytest.raises(ValueError, match=r"\(batch, frames, objects, 4\)"):
        BoxQueries(8, 3)(torch.rand(2, 7, 4))
