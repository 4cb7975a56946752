"""MSF against Algorithm 1 of the paper, transcribed literally, and against what it must reduce to."""

import pytest
import torch
from torch.nn import functional as F

from ocl_msf.fusion import MultiScaleFusion, inter_scale_fusion, source_rows
from ocl_msf.quantization import Codebook, GroupedQuantizer


def random_maps(dim, num_scales, size=8, batch=2, dtype=torch.float64, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [
        torch.randn(batch, dim, size >> n, size >> n, dtype=dtype, generator=generator).requires_grad_()
        for n in range(num_scales)
    ]


def algorithm_1(weight, codebooks, maps):
    """Algorithm 1 with the slice [:, :c] that its first loop omits; straight-through to the winning source."""
    c, scales = maps[0].shape[1], len(maps)
    inverse = torch.linalg.pinv(weight)
    encodes = [torch.einsum("bchw,cu->buhw", z, inverse) for z in maps]

    def match(features, book):
        distance = (features.permute(0, 2, 3, 1).unsqueeze(-2) - book).norm(dim=-1)
        return (-distance).softmax(-1).max(-1)

    indices, quantized = [], []
    for i in range(scales):
        brought = []
        for j, encode in enumerate(encodes):
            invariant = encode[:, :c]
            if j < i:
                invariant = F.avg_pool2d(invariant, 2 ** (i - j))
            elif j > i:
                invariant = F.interpolate(invariant, scale_factor=2 ** (j - i), mode="nearest")
            brought.append(invariant)
        confidence, numbers = zip(*(match(x, codebooks[0]) for x in brought))
        winner = torch.stack(confidence).argmax(0)
        shared = torch.stack(numbers).gather(0, winner[None])[0]
        encode1 = torch.stack(brought).gather(0, winner[None, :, None].expand(1, -1, c, -1, -1))[0]
        encode2 = encodes[i][:, c:]
        specific = match(encode2, codebooks[1 + i])[1]
        encode = torch.cat([encode1, encode2], 1)
        code = torch.cat([codebooks[0][shared], codebooks[1 + i][specific]], -1).permute(0, 3, 1, 2)
        passed = encode + (code - encode).detach()
        indices.append(torch.stack([shared, specific], 1))
        quantized.append(torch.einsum("buhw,uc->bchw", passed, weight))
    return indices, quantized


@pytest.mark.parametrize("num_scales, dim, codes", [(1, 5, 7), (2, 4, 16), (3, 8, 6), (4, 3, 9)])
def test_indices_values_and_gradients_are_those_of_algorithm_1(num_scales, dim, codes):
    torch.manual_seed(num_scales)
    fusion = MultiScaleFusion(dim, codes, num_scales).double()
    fusion.project.weight.data += 0.1 * torch.randn_like(fusion.project.weight)
    maps = random_maps(dim, num_scales, size=16)
    output = fusion(maps)
    books = [book.weight for book in fusion.codebooks]
    indices, quantized = algorithm_1(fusion.project.weight, books, maps)
    weights = [torch.randn_like(x) for x in quantized]
    inputs = [*maps, fusion.project.weight]
    ours = torch.autograd.grad(sum((x * w).sum() for x, w in zip(output.quantized, weights)), inputs)
    theirs = torch.autograd.grad(sum((x * w).sum() for x, w in zip(quantized, weights)), inputs)
    for a, b in zip(output.indices, indices):
        assert torch.equal(a, b)
    torch.testing.assert_close(list(output.quantized), quantized)
    torch.testing.assert_close(ours, theirs)


def test_equally_confident_sources_go_to_the_finer_scale_and_equally_near_codes_to_the_lower_number():
    book = Codebook(64, 3)
    book.weight.data[40] = book.weight.data[0]
    constant = book.weight.data[40].expand(1, 16, 16, 3)
    fused = inter_scale_fusion(book, [constant, constant[:, :8, :8]])
    assert all((f.winners == 0).all() and (f.indices == 0).all() for f in fused)


def test_a_vague_super_pixel_takes_the_code_of_the_scale_that_is_sure():
    book = Codebook(2, 2)
    book.weight.data = torch.tensor([[0.0, 0.0], [10.0, 0.0]])
    vague, sure = torch.tensor([4.9, 0.0]), torch.tensor([10.0, 0.0])
    fine, coarse = inter_scale_fusion(book, [vague.expand(1, 2, 2, 2), sure.expand(1, 1, 1, 2)])
    assert (fine.winners == 1).all() and (fine.indices == 1).all()
    assert torch.equal(fine.features, sure.expand(1, 2, 2, 2))
    assert (coarse.winners == 1).all()


def test_source_rows_address_pooled_and_upsampled_maps():
    maps = [m.permute(0, 2, 3, 1) for m in random_maps(3, 3)]
    rows, addresses = source_rows(maps)
    for target, address in enumerate(addresses):
        for source, numbers in enumerate(address):
            expected = maps[source].permute(0, 3, 1, 2)
            if source < target:
                expected = F.avg_pool2d(expected, 2 ** (target - source))
            elif source > target:
                expected = F.interpolate(expected, scale_factor=2 ** (source - target), mode="nearest")
            torch.testing.assert_close(rows[numbers], expected.permute(0, 2, 3, 1))


def test_one_scale_is_grouped_quantisation():
    fusion, grouped = MultiScaleFusion(6, 8, 1), GroupedQuantizer(6, 8, 2)
    grouped.load_state_dict(fusion.state_dict())
    maps = random_maps(6, 1, dtype=torch.float32)
    ours, theirs = fusion(maps), grouped(maps)
    assert torch.equal(ours.indices[0], theirs.indices[0])
    torch.testing.assert_close(ours.quantized[0], theirs.quantized[0])
    torch.testing.assert_close(ours.codebook_loss, theirs.codebook_loss)


def test_the_codebooks_and_the_projection_have_the_papers_number_of_parameters():
    fusion = MultiScaleFusion(dim=256, codebook_size=64, num_scales=3)
    assert sum(p.numel() for p in fusion.parameters()) == 196_608
    assert fusion.project.weight.shape == (512, 256)
    assert [tuple(book.weight.shape) for book in fusion.codebooks] == [(64, 256)] * 4


@pytest.mark.parametrize("number, sizes", [(2, [8, 4]), (3, [8, 4, 4]), (3, [8, 5, 2])])
def test_wrong_scales_are_refused(number, sizes):
    with pytest.raises(ValueError, match="scales|halve"):
        MultiScaleFusion(4, 8, 3)([torch.randn(1, 4, s, s) for s in sizes[:number]])
