import pytest
import torch

from ocl_msf.feature_extractors import NaiveCNN


@pytest.mark.parametrize("stride", [1, 2])
def test_features_and_positions_cover_the_grid_of_the_stride(stride):
    output = NaiveCNN(5, stride=stride)(torch.randn(2, 3, 8, 12))
    height, width = 8 // stride, 12 // stride
    assert output.features.shape == (2, height * width, 5)
    assert output.positions.shape == (height * width, 2)
    assert len(output.positions.unique(dim=0)) == height * width


def test_layers_keep_the_scale_of_the_image():
    torch.manual_seed(0)
    features = NaiveCNN(64)(torch.randn(4, 3, 16, 16)).features
    assert 0.3 < features.pow(2).mean() < 3
