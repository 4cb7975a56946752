import numpy as np
import pytest
import torch
from torch.nn import functional as F

from ocl_msf.losses import GroupedCrossEntropy, NormLoss, PyramidLoss, SlotSparsity, WeightedLoss


def test_pyramid_loss_adds_the_scales():
    made, images = ([torch.randn(2, 3, s, s) for s in (8, 4)] for _ in range(2))
    expected = sum(((a - b) ** 2).mean() for a, b in zip(made, images))
    torch.testing.assert_close(PyramidLoss()(made, images), expected)


def test_pyramid_loss_resizes_images_to_smaller_reconstructions():
    made, images = ([torch.randn(2, 3, s, s) for s in sizes] for sizes in ((4, 2), (8, 4)))
    half = [F.interpolate(x, scale_factor=0.5, mode="bicubic") for x in images]
    torch.testing.assert_close(PyramidLoss()(made, images), PyramidLoss()(made, half))


def test_weighted_scales_a_loss():
    assert WeightedLoss(0.25)(torch.tensor(2.0)) == 0.5


def test_the_norm_loss_pulls_encodings_to_their_group_normalised_selves():
    torch.manual_seed(0)
    encodings = [torch.randn(2, 4, s, s, requires_grad=True) for s in (8, 4)]
    maps = [3.0 * z + 1.0 for z in encodings]
    expected = 0.0
    for z in (m.detach().double().numpy() for m in maps):
        mean, spread = z.mean((1, 2, 3), keepdims=True), z.std((1, 2, 3), keepdims=True)
        expected += 0.1 * ((z - (z - mean) / spread) ** 2).mean()
    loss = NormLoss(0.1)(maps)
    assert loss.item() == pytest.approx(expected, rel=1e-4)
    for m, grad in zip(maps, torch.autograd.grad(loss, encodings)):
        target = F.group_norm(m.detach(), 1)  # no gradient goes through it
        torch.testing.assert_close(grad, 3.0 * 0.1 * 2 * (m - target).detach() / m.numel())


def test_cross_entropy_adds_the_codebooks():
    logits = (torch.randn(2, 6, 5), torch.randn(2, 6, 4))
    indices = torch.stack([torch.randint(5, (2, 2, 3)), torch.randint(4, (2, 2, 3))], 1)
    loss, parts = GroupedCrossEntropy()(logits, indices)
    for g in range(2):
        chosen = logits[g].log_softmax(-1).gather(-1, indices[:, g].flatten(1)[..., None])
        torch.testing.assert_close(parts[f"codebook_{g}"], -chosen.mean())
    torch.testing.assert_close(loss, sum(parts.values()))


def test_a_certain_and_right_prediction_costs_nothing():
    indices = torch.randint(5, (1, 1, 2, 2))
    logits = 100.0 * F.one_hot(indices.flatten(1)[0], 5).float()[None]
    assert GroupedCrossEntropy()([logits], indices)[0] < 1e-6


def test_a_joint_head_is_scored_by_the_number_of_the_combination():
    torch.manual_seed(0)
    indices = torch.stack([torch.randint(7, (2, 3, 4)), torch.randint(4, (2, 3, 4))], 1)
    logits = torch.randn(2, 12, 28)
    loss, parts = GroupedCrossEntropy(joint_sizes=[7, 4])([logits], indices)
    numbers = np.ravel_multi_index(tuple(indices.flatten(2).transpose(0, 1).numpy()), (7, 4))
    expected = -logits.log_softmax(-1).gather(-1, torch.from_numpy(numbers)[..., None]).mean()
    torch.testing.assert_close(loss, expected)
    assert list(parts) == ["codebook_0"]


@pytest.mark.parametrize("heads, sizes", [(1, None), (2, [7, 4])])
def test_a_joint_head_and_its_loss_go_together(heads, sizes):
    with pytest.raises(ValueError, match="msf/heads=joint"):
        GroupedCrossEntropy(sizes)([torch.randn(1, 4, 28)] * heads, torch.zeros(1, 2, 2, 2, dtype=torch.long))


def test_slot_sparsity_is_one_for_one_slot_and_the_root_of_their_number_for_equal_ones():
    one = torch.zeros(2, 4, 10)
    one[:, 2] = 1
    equal = torch.full((2, 4, 10), 0.25)
    assert SlotSparsity()(one).item() == pytest.approx(1, abs=0.05)
    assert SlotSparsity(0.5)(equal).item() == pytest.approx(0.5 * 2, rel=1e-3)


def test_slot_sparsity_merges_pieces_of_a_background_before_it_gives_an_object_up():
    owned = {"pieces": [0.16] * 5 + [0.18, 0.02], "merged": [0.8, 0.18, 0.02], "given_up": [0.16] * 5 + [0.2]}
    loss = {name: SlotSparsity()(torch.tensor(x)[None, :, None]).item() for name, x in owned.items()}
    assert loss["merged"] < loss["given_up"] < loss["pieces"]


def test_slot_sparsity_has_finite_gradients_for_empty_slots_and_takes_a_schedule():
    class Schedule(torch.nn.Module):
        def __float__(self):
            return 0.5

    attention = torch.tensor([1.0, 0.0])[None, :, None].requires_grad_()
    loss = SlotSparsity(Schedule())(attention)
    loss.backward()
    assert attention.grad.isfinite().all() and attention.grad.abs().max() > 0
    assert loss.item() == pytest.approx(0.5 * SlotSparsity()(attention).item())


def test_slot_sparsity_asks_no_schedule_in_evaluation():
    """Which has no value there, in OCLF."""
    attention = torch.tensor([0.5, 0.5])[None, :, None]
    loss = SlotSparsity(torch.nn.Identity()).eval()(attention)
    assert torch.equal(loss, SlotSparsity()(attention))
    assert SlotSparsity(0.5).eval()(attention).item() == pytest.approx(0.5 * loss.item())
