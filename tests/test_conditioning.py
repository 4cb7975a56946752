import torch

from ocl_msf.conditioning import GaussianQueries


def test_in_training_queries_are_gaussian_around_a_mean_of_each_slot():
    torch.manual_seed(0)
    queries = GaussianQueries(3, 4, sigma=0.5)
    queries.mean.data = torch.randn(1, 4, 3)
    drawn = queries(20000)
    assert drawn.shape == (20000, 4, 3)
    torch.testing.assert_close(drawn.mean(0), queries.mean[0], atol=0.02, rtol=0)
    torch.testing.assert_close(drawn.std(0), torch.full((4, 3), 0.5), atol=0.02, rtol=0)


def test_in_evaluation_they_are_the_means_and_no_schedule_is_read():
    class Unset(torch.nn.Module):
        def __float__(self):
            raise RuntimeError("read before its first update")

    queries = GaussianQueries(3, 4, sigma=Unset()).eval()
    queries.mean.data = torch.randn(1, 4, 3)
    assert torch.equal(queries(2), queries.mean.expand(2, -1, -1))
