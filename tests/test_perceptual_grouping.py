import pytest
import torch

from ocl_msf.perceptual_grouping import TemporalPredictor


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
