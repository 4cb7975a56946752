"""Codebooks, projections, straight-through gradients, and what holds for every quantiser."""

import math

import pytest
import torch
from scipy.spatial.distance import cdist
from scipy.special import softmax
from scipy.stats import entropy

from ocl_msf.codebook import Codebook
from ocl_msf.finite_scalar import FiniteScalarQuantizer
from ocl_msf.fusion import MultiScaleFusion
from ocl_msf.projection import InvertibleProjection
from ocl_msf.quantization import GroupedQuantizer, QuantizerOutput, VectorQuantizer
from ocl_msf.straight_through import quantization_losses, straight_through

AIDS = {"temperature": 1.0, "residual": 0.5, "replace_below": 0.5}  # of training; evaluation ignores them
QUANTIZERS = {  # and how many codes a super-pixel has
    "vq": (lambda: VectorQuantizer(6, 16, **AIDS), 1),
    "gdr": (lambda: GroupedQuantizer(6, 8, 2, **AIDS), 2),
    "msf": (lambda: MultiScaleFusion(6, 8, 3, **AIDS), 2),
    "halved": (lambda: MultiScaleFusion(6, 8, 3, halve_per_scale=True, **AIDS), 2),
    "fsq": (lambda: FiniteScalarQuantizer(6, [8, 5, 2]), 1),
}


@pytest.fixture(params=QUANTIZERS)
def name(request):
    return request.param


@pytest.fixture
def build(name):
    return QUANTIZERS[name][0]


@pytest.fixture
def maps():
    torch.manual_seed(0)
    return [torch.randn(2, 6, size, size, requires_grad=True) for size in (8, 4, 2)]


def test_match_is_the_nearest_code_and_its_softmax_probability():
    book = Codebook(9, 5).double()
    features = torch.randn(4, 3, 5, dtype=torch.float64)
    match = book.match(features)
    distance = torch.from_numpy(cdist(features.flatten(0, 1).numpy(), book.weight.detach().numpy()))
    probability, nearest = (-distance).softmax(-1).max(-1)
    assert torch.equal(match.indices.flatten(), nearest)
    torch.testing.assert_close(match.confidence.flatten(), probability)


def test_relative_confidence_is_that_of_distances_in_units_of_their_mean():
    book = Codebook(9, 5, relative_confidence=True).double()
    features = torch.randn(12, 5, dtype=torch.float64)
    match = book.match(features)
    distance = cdist(features.numpy(), book.weight.detach().numpy())
    probability = softmax(-distance / distance.mean(1, keepdims=True), axis=1)
    torch.testing.assert_close(match.confidence, torch.from_numpy(probability.max(1)))
    assert torch.equal(match.indices, torch.from_numpy(distance.argmin(1)))
    book.weight.data *= 7
    torch.testing.assert_close(book.match(7 * features).confidence, match.confidence)  # the scale does not count
    assert torch.isfinite(Codebook(1, 5, relative_confidence=True).match(torch.zeros(1, 5)).confidence).all()


def test_relative_confidence_falls_with_the_distance_to_the_nearest_code_where_eq_1_rises():
    torch.manual_seed(0)
    codes, directions = torch.randn(64, 16), torch.randn(500, 16)
    features = directions * torch.linspace(1, 5, 500).unsqueeze(1)  # from amid the codes to far outside
    correlations = []
    for relative in (False, True):
        book = Codebook(64, 16, relative_confidence=relative)
        book.weight.data = codes
        quality = -torch.cdist(features, codes).amin(1)
        correlations.append(torch.corrcoef(torch.stack([book.match(features).confidence, quality]))[0, 1])
    assert correlations[0] < 0 and correlations[1] > 0.5


def test_looking_up_indices_gives_the_quantized_maps(build, maps):
    quantizer = build().eval()
    output = quantizer(maps)
    for quantized, looked_up in zip(output.quantized, quantizer.lookup(output.indices)):
        torch.testing.assert_close(looked_up, quantized)


def test_every_quantizer_has_one_shape_of_output(name, build, maps):
    output, groups = build()(maps), QUANTIZERS[name][1]
    for quantized, indices, given in zip(output.quantized, output.indices, maps):
        assert quantized.shape == given.shape and quantized.dtype == given.dtype
        assert indices.shape == (2, groups, *given.shape[2:]) and indices.dtype == torch.int64
    assert output.codebook_loss.shape == output.commitment_loss.shape == ()
    assert len(output.quantized) == len(output.indices) == 3


def test_quantising_codes_changes_nothing():
    quantizer = VectorQuantizer(6, 16).eval()
    once = quantizer([torch.randn(2, 6, 4, 4)]).quantized
    again = quantizer(list(once))
    torch.testing.assert_close(again.quantized, once)
    assert again.codebook_loss < 1e-10


def test_a_batch_is_its_images_one_by_one_and_evaluation_is_deterministic(build, maps):
    quantizer = build().eval()
    whole = quantizer(maps)
    for image in range(2):
        alone = quantizer([m[image : image + 1] for m in maps])
        for a, b in zip(whole.indices, alone.indices):
            assert torch.equal(a[image : image + 1], b)


def test_channels_last_maps_and_autocast_give_the_same_codes(build, maps):
    quantizer = build().eval()
    plain = quantizer(maps)
    last = quantizer([m.contiguous(memory_format=torch.channels_last) for m in maps])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = quantizer(maps)
        looked_up = quantizer.lookup(mixed.indices)
    torch.testing.assert_close(looked_up, mixed.quantized)
    for a, b, c in zip(plain.indices, last.indices, mixed.indices):
        assert torch.equal(a, b) and torch.equal(a, c)
    assert mixed.quantized[0].dtype == torch.float32


@pytest.mark.parametrize("residual", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("projected", [False, True])
def test_straight_through_passes_the_mixture_on_with_the_gradient_of_the_features(residual, projected):
    torch.manual_seed(0)
    features, codes, weight = (torch.randn(*size, requires_grad=True) for size in ((4, 3), (5, 3), (3, 3)))
    indices = torch.tensor([2, 0, 0, 4])
    given = straight_through(features, codes, indices, residual, weight if projected else None)
    mixture = residual * features.detach() + (1 - residual) * codes[indices].detach()
    expected = features + (mixture - features).detach()
    expected = expected @ weight if projected else expected
    torch.testing.assert_close(given, expected)
    direction, inputs = torch.randn_like(given), [features, codes, weight]
    ours = torch.autograd.grad(given, inputs, direction, allow_unused=True)
    theirs = torch.autograd.grad(expected, inputs, direction, allow_unused=True)
    assert ours[1] is None and theirs[1] is None
    torch.testing.assert_close(ours[0], theirs[0])
    torch.testing.assert_close(ours[2], theirs[2])


def test_codebook_loss_moves_codes_and_commitment_loss_moves_features():
    features, codes = (torch.randn(4, 3, requires_grad=True) for _ in range(2))
    codebook, commitment = quantization_losses(features, codes)
    inputs = [features, codes]
    gradient = 2 * (features - codes) / features.numel()
    to_features, to_codes = torch.autograd.grad(codebook, inputs, retain_graph=True)
    torch.testing.assert_close((to_features, to_codes), (torch.zeros_like(features), -gradient))
    to_features, to_codes = torch.autograd.grad(commitment, inputs)
    torch.testing.assert_close((to_features, to_codes), (gradient, torch.zeros_like(codes)))
    torch.testing.assert_close(codebook, (features - codes).square().mean())
    torch.testing.assert_close(commitment, codebook)


def test_up_then_down_is_the_identity_and_differentiable():
    project = InvertibleProjection(3, 2).double()
    project.weight.data += 0.2 * torch.randn(6, 3, dtype=torch.float64)
    x = torch.randn(4, 3, dtype=torch.float64)
    torch.testing.assert_close(sum(group[0] @ project.down_weight(g) for g, group in enumerate(project.up([x]))), x)
    torch.testing.assert_close(project.pinv(), torch.linalg.pinv(project.weight))
    assert torch.autograd.gradcheck(lambda _: project.pinv(), project.weight)


def dependent_columns():
    weight = torch.randn(6, 3, generator=torch.Generator().manual_seed(0))
    weight[:, 2] = weight[:, 0] + 0.5 * weight[:, 1]
    return weight


@pytest.mark.parametrize(
    "weight", [torch.zeros(6, 3), torch.ones(6, 3), torch.full((6, 3), float("nan")), dependent_columns()]
)
def test_a_projection_without_full_rank_is_an_error(weight):
    project = InvertibleProjection(3, 2)
    project.weight.data = weight
    with pytest.raises(ValueError, match="rank"):
        project.up([torch.randn(2, 3)])


def test_sampling_follows_the_softmax_at_its_temperature():
    torch.manual_seed(0)
    book = Codebook(3, 2, temperature=0.5)
    point = torch.tensor([0.3, -0.2])
    drawn = book.match(point.expand(20000, 2)).indices
    expected = (-(point - book.weight).norm(dim=-1) / 0.5).softmax(-1)
    torch.testing.assert_close(torch.bincount(drawn, minlength=3) / 20000, expected.detach(), atol=0.02, rtol=0)
    assert len(book.eval().match(point.expand(100, 2)).indices.unique()) == 1


def test_dead_codes_become_vectors_of_the_batch_and_used_codes_stay():
    torch.manual_seed(0)
    book = Codebook(4, 2, replace_below=0.2, usage_decay=0.5)
    book.weight.data = torch.tensor([[0.0, 0.0], [9.0, 9.0], [100.0, 0.0], [0.0, 100.0]])
    features = torch.cat([torch.randn(50, 2), 9 + torch.randn(50, 2)])
    for _ in range(3):
        book.replace_dead_codes(features, book.nearest(features))
    assert torch.equal(book.weight[:2].detach(), torch.tensor([[0.0, 0.0], [9.0, 9.0]]))
    for code in book.weight[2:].detach():
        assert (features == code).all(-1).any()


PROCESS = """
# Train a codebook whose codes are all far off on one half of a batch.
import os, torch
from torch import distributed
from ocl_msf.quantization import VectorQuantizer
rank = int(os.environ["LOCAL_RANK"])
distributed.init_process_group("gloo", rank=rank, world_size=2)
torch.manual_seed(rank)
quantizer = VectorQuantizer(2, 8, replace_below=0.5, usage_decay=0.5)
book = quantizer.codebook
book.weight.data = torch.arange(100.0, 116.0).view(8, 2)
for step in range(4):
    quantizer([torch.full((1, 2, 3, 3), float(10 * step + rank))])
torch.save(book.state_dict(), f"{rank}.pt")
distributed.barrier()  # and no destroy_process_group: torch 2.0 may then wait for ever, and the process ends anyway
"""


def test_ranks_replace_the_same_codes_by_rows_of_the_whole_batch(run_program, tmp_path):
    (tmp_path / "quantize.py").write_text(PROCESS)
    done = run_program("quantize", cwd=tmp_path, ranks=2)
    assert done.returncode == 0, done.stderr
    first, second = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2))
    assert torch.equal(first["weight"], second["weight"]) and torch.equal(first["usage"], second["usage"])
    new = first["weight"][first["weight"] < 50]
    assert {int(value) % 10 for value in new} == {0, 1}  # rows of both ranks


def test_perplexity_and_dead_codes_are_those_of_the_indices():
    quantizer = VectorQuantizer(2, 8)

    def statistics(*indices):
        numbers = torch.tensor(indices).view(1, 1, 1, -1)
        scalars = quantizer.statistics(QuantizerOutput((), (numbers,), torch.tensor(0.0), torch.tensor(0.0)))
        return scalars["codebook.perplexity"].item(), scalars["codebook.dead"].item()

    assert statistics(*range(8)) == pytest.approx((8, 0))
    assert statistics(3, 3, 3) == pytest.approx((1, 7))
    assert statistics(0, 0, 1, 1) == pytest.approx((2, 6))


def test_every_codebook_is_counted_over_the_scales_that_use_it(build, maps):
    quantizer = build().eval()
    output = quantizer(maps)
    used = {}
    for scale, indices in enumerate(output.indices):
        for group in range(indices.shape[1]):
            used.setdefault(quantizer.describe_codebook(scale, group), []).append(indices[:, group].flatten())
    statistics = quantizer.statistics(output)
    for (name, size), codes in used.items():
        counts = torch.bincount(torch.cat(codes), minlength=size).double()
        share = counts[counts > 0] / counts.sum()
        assert statistics[f"{name}.dead"] == (counts == 0).sum()
        assert statistics[f"{name}.perplexity"].item() == pytest.approx(math.exp(-(share * share.log()).sum()))


def test_a_codebook_is_described_by_its_module_and_its_size(maps):
    for build, groups in list(QUANTIZERS.values())[:3]:
        quantizer, described = build(), set()
        for scale in range(3):
            for group in range(groups):
                name, size = quantizer.describe_codebook(scale, group)
                assert quantizer.get_submodule(name) is quantizer.codebook_of(scale, group)
                assert size == len(quantizer.codebook_of(scale, group).weight)
                described.add(name)
        assert described == {name for name, module in quantizer.named_modules() if isinstance(module, Codebook)}


def test_every_map_gets_a_gradient_and_so_does_every_weight(build, maps):
    quantizer = build()
    output = quantizer(maps)
    loss = sum(x.square().sum() for x in output.quantized) + output.codebook_loss + output.commitment_loss
    grads = torch.autograd.grad(loss, [*maps, *quantizer.parameters()])
    assert all(torch.isfinite(grad).all() and grad.any() for grad in grads)


@pytest.mark.parametrize("replace_below, training", [(0.0, True), (1.0, False)])
def test_nothing_is_replaced_unless_asked_and_in_training(replace_below, training):
    quantizer = VectorQuantizer(2, 64, replace_below=replace_below).train(training)
    before = quantizer.codebook.weight.detach().clone()
    for _ in range(50):
        quantizer([torch.zeros(1, 2, 4, 4)])
    assert torch.equal(quantizer.codebook.weight, before)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_what_is_not_finite_is_named_in_training(build, maps, value):
    broken = [maps[0].detach(), maps[1].detach().clone(), maps[2].detach()]
    broken[1][0, 0, 0, 0] = value
    with pytest.raises(ValueError, match="Z_2"):
        build()(broken)


def test_half_precision_maps_are_quantised_in_full_precision(build):
    maps = [torch.full((4, 6, size, size), 500.0, dtype=torch.float16) for size in (8, 4, 2)]  # their sum overflows
    output = build()(maps)
    assert all(x.dtype == torch.float32 and torch.isfinite(x).all() for x in output.quantized)


def test_an_empty_batch_is_refused_in_training(build):
    with pytest.raises(ValueError, match="empty"):
        build()([torch.zeros(0, 6, size, size) for size in (8, 4, 2)])


def test_a_map_of_other_channels_is_refused(build):
    with pytest.raises(ValueError, match="Scale 1"):
        build()([torch.randn(1, 5, 8, 8), torch.randn(1, 6, 4, 4), torch.randn(1, 6, 2, 2)])


@pytest.mark.parametrize("residual", [0.0, 0.3, 1.0])
def test_an_annealed_commitment_moves_features_to_what_is_passed_on(maps, residual):
    torch.manual_seed(1)
    quantizer = VectorQuantizer(6, 16, residual=residual, anneal_commitment=True)
    given = maps[0].permute(0, 2, 3, 1)
    codes = quantizer.codebook(quantizer.codebook.nearest(given))
    passed = residual * given + (1 - residual) * codes
    expected = (given - passed.detach()).square().mean()
    loss = quantizer(maps[:1]).commitment_loss
    torch.testing.assert_close(loss, expected)
    towards_code = (given - codes.detach()).square().mean()
    (plain,) = torch.autograd.grad(towards_code, maps[:1])
    (ours,) = torch.autograd.grad(loss, maps[:1])
    torch.testing.assert_close(ours, (1 - residual) ** 2 * plain)
    torch.testing.assert_close(quantizer.eval()(maps[:1]).commitment_loss, towards_code)


def test_the_utilization_loss_is_the_entropy_that_the_mean_probabilities_lack(maps):
    torch.manual_seed(1)
    quantizer = GroupedQuantizer(6, 8, 2, utilization=True, replace_below=0.5)
    expected = 0.0
    for book, group in zip(quantizer.codebooks, quantizer.project.up([m.permute(0, 2, 3, 1) for m in maps])):
        vectors = torch.cat([u.flatten(0, 2) for u in group]).detach().numpy()
        share = softmax(-cdist(vectors, book.weight.detach().numpy()), axis=1).mean(0)
        expected += math.log(8) - entropy(share)
    loss = quantizer(maps).utilization_loss
    assert loss.item() == pytest.approx(expected, rel=1e-4)
    assert all(grad.any() for grad in torch.autograd.grad(loss, [maps[0], quantizer.codebooks[0].weight]))
    assert quantizer.eval()(maps).utilization_loss == 0


def test_the_utilization_loss_makes_codes_used_alike():
    torch.manual_seed(0)
    quantizer, points = VectorQuantizer(2, 2, utilization=True), torch.randn(1, 2, 16, 16)
    quantizer.codebook.weight.data = torch.tensor([[0.0, 0.0], [3.0, 3.0]])
    before = quantizer([points]).utilization_loss.item()
    optimizer = torch.optim.SGD(quantizer.parameters(), 2.0)
    for _ in range(100):
        optimizer.zero_grad()
        quantizer([points]).utilization_loss.backward()
        optimizer.step()
    assert quantizer([points]).utilization_loss.item() < 0.1 * before
