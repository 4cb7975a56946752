import pytest
import torch
from torch.nn import functional as F

from ocl_msf.pyramid import ImagePyramid, pool, upsample


def test_scales_halve_and_the_first_is_the_image():
    image = torch.randn(2, 3, 32, 16)
    scales = ImagePyramid(3)(image)
    assert scales[0] is image
    assert [tuple(s.shape) for s in scales] == [(2, 3, 32, 16), (2, 3, 16, 8), (2, 3, 8, 4)]


def test_bilinear_downsampling_by_two_is_the_mean_of_four():
    image = torch.randn(1, 3, 8, 8)
    torch.testing.assert_close(ImagePyramid(2)(image)[1], F.avg_pool2d(image, 2))


def test_pooling_and_upsampling_agree_with_torch():
    features = torch.randn(2, 8, 4, 5)
    torch.testing.assert_close(pool(features, 2).permute(0, 3, 1, 2), F.avg_pool2d(features.permute(0, 3, 1, 2), 2))
    grid = torch.arange(8.0).view(2, 2, 2)
    torch.testing.assert_close(upsample(grid, 4), F.interpolate(grid[:, None], scale_factor=4)[:, 0])


def test_a_size_that_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="30x32.*divisible by 4"):
        ImagePyramid(3)(torch.randn(1, 3, 30, 32))
    with pytest.raises(ValueError, match="num_scales"):
        ImagePyramid(0)
