"""MSF against Algorithm 1 of the paper, transcribed literally, and against what it must reduce to."""

from pathlib import Path

import pytest
import torch
from torch import distributed
from torch.nn import functional as F

from ocl_msf.codebook import Codebook
from ocl_msf.fusion import Concat, MultiScaleFusion, Separate, Sum, Vote, source_vectors
from ocl_msf.quantization import GroupedQuantizer, VectorQuantizer


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
        variant = match(encode2, codebooks[1 + i])[1]
        encode = torch.cat([encode1, encode2], 1)
        code = torch.cat([codebooks[0][shared], codebooks[1 + i][variant]], -1).permute(0, 3, 1, 2)
        passed = encode + (code - encode).detach()
        indices.append(torch.stack([shared, variant], 1))
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


def test_ties_are_those_of_algorithm_1():
    fusion = MultiScaleFusion(2, 6, 3).double()
    for book in fusion.codebooks:
        book.weight.data[3:] = book.weight.data[:3]
    maps = [torch.ones_like(m).requires_grad_() for m in random_maps(2, 3)]
    output = fusion(maps)
    indices, quantized = algorithm_1(fusion.project.weight, [book.weight for book in fusion.codebooks], maps)
    for a, b in zip(output.indices, indices):
        assert torch.equal(a, b) and a.max() < 3
    torch.testing.assert_close(list(output.quantized), quantized)


def test_equally_confident_sources_go_to_the_finer_scale_and_equally_near_codes_to_the_lower_number():
    book = Codebook(64, 3)
    book.weight.data[40] = book.weight.data[0]
    constant = book.weight.data[40].expand(1, 16, 16, 3)
    fused, diagnostics = Vote()(book, [constant, constant[:, :8, :8]])
    for winners, indices in zip(diagnostics["winners"], fused.indices):
        assert (winners == 0).all() and (indices == 0).all()


def test_a_vague_super_pixel_takes_the_code_of_the_scale_that_is_sure():
    book = Codebook(2, 2)
    book.weight.data = torch.tensor([[0.0, 0.0], [10.0, 0.0]])
    vague, sure = torch.tensor([4.9, 0.0]), torch.tensor([10.0, 0.0])
    fused, diagnostics = Vote()(book, [vague.expand(1, 2, 2, 2), sure.expand(1, 1, 1, 2)])
    assert all((winners == 1).all() for winners in diagnostics["winners"])
    assert (fused.indices[0] == 1).all() and (diagnostics["unfused"][0] == 0).all()
    assert torch.equal(fused.features[0], sure.expand(1, 2, 2, 2))


def test_source_vectors_are_those_of_pooled_and_upsampled_maps():
    maps = [m.permute(0, 2, 3, 1) for m in random_maps(3, 3)]
    vectors, rows = source_vectors(maps)
    for target, sources in enumerate(rows):
        for source, numbers in enumerate(sources):
            expected = maps[source].permute(0, 3, 1, 2)
            if source < target:
                expected = F.avg_pool2d(expected, 2 ** (target - source))
            elif source > target:
                expected = F.interpolate(expected, scale_factor=2 ** (source - target), mode="nearest")
            torch.testing.assert_close(vectors[numbers], expected.permute(0, 2, 3, 1))


def test_one_scale_is_grouped_quantisation():
    fusion, grouped = MultiScaleFusion(6, 8, 1), GroupedQuantizer(6, 8, 2)
    grouped.load_state_dict(fusion.state_dict())
    maps = random_maps(6, 1, dtype=torch.float32)
    ours, theirs = fusion(maps), grouped(maps)
    assert torch.equal(ours.indices[0], theirs.indices[0])
    torch.testing.assert_close(ours.quantized[0], theirs.quantized[0])
    torch.testing.assert_close(ours.codebook_loss, theirs.codebook_loss)


def test_without_any_fusion_it_is_naive_multi_scale_behind_the_projection():
    fusion, naive = MultiScaleFusion(6, 8, 3, inter_scale=Separate(), intra_scale=False), VectorQuantizer(6, 8)
    fusion.project.weight.data += 0.1 * torch.randn(6, 6)
    naive.codebook.weight.data = fusion.codebooks[0].weight.data
    maps = random_maps(6, 3, dtype=torch.float32)
    last = [m.permute(0, 2, 3, 1) for m in maps]
    (up,) = fusion.project.up(last)
    ours, theirs = fusion(maps), naive([u.permute(0, 3, 1, 2) for u in up])
    down = [x.permute(0, 2, 3, 1) @ fusion.project.weight for x in theirs.quantized]
    for a, b, i, j in zip(ours.quantized, down, ours.indices, theirs.indices):
        assert torch.equal(i, j)
        torch.testing.assert_close(a, b.permute(0, 3, 1, 2))
    torch.testing.assert_close(ours.codebook_loss, theirs.codebook_loss)


def test_without_a_vote_and_with_shared_variant_codes_it_is_grouped_quantisation_of_every_scale():
    fusion, grouped = (
        MultiScaleFusion(6, 8, 3, inter_scale=Separate(), per_scale_codebooks=False),
        GroupedQuantizer(6, 8, 2),
    )
    grouped.load_state_dict(fusion.state_dict())
    maps = random_maps(6, 3, dtype=torch.float32)
    ours, theirs = fusion(maps), grouped(maps)
    for a, b in zip(ours.indices, theirs.indices):
        assert torch.equal(a, b)
    torch.testing.assert_close(ours.quantized, theirs.quantized)
    torch.testing.assert_close(ours.commitment_loss, theirs.commitment_loss)


def test_sharing_the_variant_codebook_leaves_the_invariant_codes_alone():
    whole, shared = MultiScaleFusion(6, 8, 3), MultiScaleFusion(6, 8, 3, per_scale_codebooks=False)
    shared.project, shared.codebooks[0] = whole.project, whole.codebooks[0]
    maps = random_maps(6, 3, dtype=torch.float32)
    differ = []
    for a, b in zip(whole(maps).indices, shared(maps).indices):
        assert torch.equal(a[:, 0], b[:, 0])
        differ.append(not torch.equal(a[:, 1], b[:, 1]))
    assert any(differ)


@pytest.mark.parametrize("mixing", [Sum(), Concat(3, 3)], ids=["sum", "concat"])
def test_naive_fusions_mix_what_the_pyramid_brings_to_one_grid(mixing):
    book = Codebook(7, 3)
    maps = random_maps(3, 3, dtype=torch.float32)
    fused, _ = mixing(book, [m.permute(0, 2, 3, 1) for m in maps])
    brought = [F.avg_pool2d(maps[0], 2), maps[1], F.interpolate(maps[2], scale_factor=2, mode="nearest")]
    if isinstance(mixing, Concat):
        expected = F.conv2d(torch.cat(brought, 1), mixing.project.weight[..., None, None]).permute(0, 2, 3, 1)
    else:
        expected = sum(brought).permute(0, 2, 3, 1)
    torch.testing.assert_close(fused.features[1], expected)
    assert torch.equal(fused.codes[1], book(torch.cdist(expected, book.weight).argmin(-1)))


@pytest.mark.parametrize(
    "options",
    [{}, {"inter_scale": Separate()}, {"inter_scale": Sum()}, {"intra_scale": False}],
    ids=["msf", "no_inter", "sum", "no_intra"],
)
def test_the_maps_of_figure_3_make_up_the_output(options):
    fusion = MultiScaleFusion(4, 8, 3, **options).eval()
    maps = fusion.fusion_maps(fusion(random_maps(4, 3, dtype=torch.float32)))
    for scale in range(3):
        codes = [maps.invariant[scale]] + ([maps.variant[scale]] if maps.variant else [])
        combined = torch.einsum("buhw,uc->bchw", torch.cat(codes, 1), fusion.project.weight)
        torch.testing.assert_close(combined, maps.quantized[scale])
        if "inter_scale" in options:
            assert maps.unfused is None or torch.equal(maps.unfused[scale], maps.invariant[scale])


def test_before_fusion_a_scale_has_the_codes_it_would_choose_alone():
    fusion, alone = MultiScaleFusion(4, 8, 3).eval(), MultiScaleFusion(4, 8, 3, inter_scale=Separate()).eval()
    alone.load_state_dict(fusion.state_dict())
    maps = random_maps(4, 3, dtype=torch.float32)
    output = fusion(maps)
    for unfused, expected in zip(output.diagnostics["unfused"], alone(maps).indices):
        assert torch.equal(unfused, expected[:, 0])
    winners = torch.cat([w.flatten() for w in output.diagnostics["winners"]])
    for scale in range(3):
        share = fusion.statistics(output)[f"won.scale_{scale + 1}"].item()
        assert share == pytest.approx((winners == scale).sum().item() / len(winners))


def test_the_codebooks_and_the_projection_have_the_papers_number_of_parameters():
    fusion = MultiScaleFusion(dim=256, codebook_size=64, num_scales=3)
    assert sum(p.numel() for p in fusion.parameters()) == 196_608
    assert fusion.project.weight.shape == (512, 256)
    assert [tuple(book.weight.shape) for book in fusion.codebooks] == [(64, 256)] * 4


@pytest.mark.parametrize("number, sizes", [(2, [8, 4]), (3, [8, 4, 4]), (3, [8, 5, 2])])
def test_wrong_scales_are_refused(number, sizes):
    with pytest.raises(ValueError, match="scales|halve"):
        MultiScaleFusion(4, 8, 3)([torch.randn(1, 4, s, s) for s in sizes[:number]])


def train_fusion(folder, rank=0, world=1):
    """Three steps of SGD on this rank's share of four images; most codes are replaced on the way."""
    torch.manual_seed(0)
    fusion = MultiScaleFusion(4, 16, 3, replace_below=0.9, usage_decay=0.5).double()
    model = torch.nn.parallel.DistributedDataParallel(fusion) if world > 1 else fusion
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    share = slice(rank * 4 // world, (rank + 1) * 4 // world)
    for step in range(3):
        output = model([m[share].detach() for m in random_maps(4, 3, batch=4, seed=step)])
        loss = output.codebook_loss + output.commitment_loss + sum(x.square().mean() for x in output.quantized)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    torch.save(fusion.state_dict(), f"{folder}/{rank}_of_{world}.pt")


def train_on_rank(rank):
    distributed.init_process_group("gloo", rank=rank, world_size=2)
    train_fusion(".", rank, 2)
    distributed.barrier()  # and no destroy_process_group: torch 2.0 may then wait for ever, and the process ends anyway


def test_two_processes_learn_what_one_learns_from_the_whole_batch(run_program, tmp_path):
    train_fusion(tmp_path)
    program = f"import os, sys; sys.path.append({str(Path(__file__).parent)!r}); import test_fusion\n"
    (tmp_path / "train.py").write_text(program + "test_fusion.train_on_rank(int(os.environ['LOCAL_RANK']))")
    done = run_program("train", cwd=tmp_path, ranks=2)
    assert done.returncode == 0, done.stderr
    names = ["0_of_1", "0_of_2", "1_of_2"]
    whole, first, second = (torch.load(tmp_path / f"{name}.pt", weights_only=True) for name in names)
    torch.manual_seed(0)
    moved = whole["codebooks.0.weight"] - MultiScaleFusion(4, 16, 3).codebooks[0].weight.detach()
    assert (moved.abs().amax(1) > 0.3).sum() > 4  # replaced: no gradient goes that far
    for name, value in whole.items():
        assert torch.equal(first[name], second[name])
        torch.testing.assert_close(first[name], value)


@pytest.mark.parametrize("num_scales, dim, size", [(1, 4, 3), (2, 4, 2), (3, 5, 12), (5, 4, 16)])
@pytest.mark.parametrize("batch", [1, 3])
def test_any_batch_and_any_divisible_grid_will_do(num_scales, dim, size, batch):
    maps = random_maps(dim, num_scales, size, batch, torch.float32)
    output = MultiScaleFusion(dim, 8, num_scales, temperature=1.0, residual=0.5, replace_below=0.5)(maps)
    assert [x.shape for x in output.quantized] == [m.shape for m in maps]
    grads = torch.autograd.grad(sum(x.square().sum() for x in output.quantized), maps)
    assert all(torch.isfinite(g).all() for g in grads)


@pytest.mark.needs_new_torch
def test_evaluation_compiles_to_one_graph():
    fusion = MultiScaleFusion(4, 8, 3).eval()
    maps = random_maps(4, 3, dtype=torch.float32)
    expected = fusion(maps)
    output = torch.compile(fusion, backend="aot_eager", fullgraph=True)(maps)
    torch.testing.assert_close(output.quantized, expected.quantized)
    assert all(torch.equal(a, b) for a, b in zip(output.indices, expected.indices))


@pytest.mark.needs_new_torch
def test_evaluation_exports():
    fusion = MultiScaleFusion(4, 8, 3).eval()
    maps = tuple(x.detach() for x in random_maps(4, 3, dtype=torch.float32))
    expected = fusion(maps)
    program = torch.export.export(Codes(fusion), (maps,))
    quantized, indices = program.module()(maps)
    for scale in range(3):
        assert torch.equal(indices[scale], expected.indices[scale])
        torch.testing.assert_close(quantized[scale], expected.quantized[scale])


class Codes(torch.nn.Module):
    """The quantiser with an output that a graph can have: tensors in tuples."""

    def __init__(self, fusion):
        super().__init__()
        self.fusion = fusion

    def forward(self, maps):
        output = self.fusion(list(maps))
        return output.quantized, output.indices


def test_codebooks_can_halve_from_scale_to_scale():
    quantizer = MultiScaleFusion(4, 16, 3, halve_per_scale=True)
    assert [len(book.weight) for book in quantizer.codebooks] == [16, 16, 8, 4]
