"""Benchmarks of small models print their tables; their numbers are not tested."""

import argparse
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from ocl_msf.fusion import MultiScaleFusion

pytestmark = pytest.mark.needs_host

SCRIPT = Path(__file__).parent.parent / "scripts" / "benchmark.py"


@pytest.mark.slow
@pytest.mark.parametrize(
    "arguments, rows",
    [
        ("stage1 --batch 1 --dim 8 --size 32 --repeat 1 --warmup 0", ["vq", "msf", "encoder + decoder"]),
        (
            "stage2 --batch 1 --dim 8 --size 16 --layers 1 --repeat 1 --warmup 0 --decoder",
            ["stage 2", "stage 2, nn.TransformerDecoder", "decoder", "decoder, nn.TransformerDecoder"],
        ),
        ("generate --batch 1 --dim 8 --size 16 --layers 1 --repeat 1 --warmup 0", ["cache", "no cache"]),
        ("loader --shards 2 --samples 8 --batch 4 --size 16 --repeat 1 --warmup 0", ["ours", "plain webdataset"]),
        ("predict --samples 4 --size 64 --repeat 1", ["predict", "evaluation"]),
        (
            "data --samples 16 --raw-size 64 48 --size 16 --repeat 1",
            ["convert to webdataset, 1 workers", "convert to lmdb, 2 workers", "read LMDB", "decode raw files by PIL"],
        ),
    ],
)
def test_a_benchmark_prints_its_table(run_program, arguments, rows):
    done = run_program("benchmark_forked", *arguments.split(), cwd=SCRIPT.parent, PYTHONPATH=str(Path(__file__).parent))
    assert done.returncode == 0, done.stderr
    check_table(done.stdout, rows)


def test_the_script_prints_its_table():
    command = [sys.executable, str(SCRIPT), *"quantizer --batch 1 --dim 8 --size 32 --repeat 1 --warmup 0".split()]
    printed = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    check_table(printed, ["ours", "literal Algorithm 1"])


def check_table(printed, rows):
    for row in rows:
        (cells,) = [line.split("|")[2:-1] for line in printed.splitlines() if line.startswith(f"| {row} |")]
        assert all(float(cell) >= 0 for cell in cells)


@pytest.fixture
def stage2(monkeypatch):
    monkeypatch.syspath_prepend(SCRIPT.parent)
    torch.manual_seed(0)
    options = argparse.Namespace(size=16, dim=16, layers=2)
    module = runpy.run_path(str(SCRIPT.parent / "_stage2.py"))
    decoder = module["build_decoder"]("decoder", options)
    for vector in (x for x in decoder.parameters() if x.dim() == 1):
        torch.nn.init.normal_(vector, std=0.3)  # away from ones and zeros
    return argparse.Namespace(**module, decoder=decoder, plain=module["PlainTokenDecoder"](16, 16, 2).take(decoder))


def test_the_plain_decoder_that_is_timed_computes_what_the_token_decoder_computes(stage2):
    slots, guidance = torch.randn(2, 11, 16, requires_grad=True), torch.randn(2, 16, 4, 4)
    outputs = [decoder.eval()(slots, guidance) for decoder in (stage2.decoder, stage2.plain)]
    torch.testing.assert_close(outputs[0].logits, outputs[1].logits)
    assert torch.equal(outputs[0].indices, outputs[1].indices)
    gradients = [torch.autograd.grad(sum(x.square().sum() for x in output.logits), slots)[0] for output in outputs]
    assert gradients[0].abs().amax(-1).min() > 0
    torch.testing.assert_close(*gradients)


def test_the_generation_that_is_timed_without_cache_writes_what_the_cached_one_writes(stage2):
    codes = torch.randn(2, stage2.CODES, 16)
    slots = torch.randn(2, 11, 16)

    def lookup(indices):
        return (codes[0][indices[:, 0]] + codes[1][indices[:, 1]]).permute(0, 3, 1, 2)

    stage2.decoder.lookup = lookup
    written = stage2.decoder.eval().generate_codes(slots)
    chosen = stage2.generate_without_cache(stage2.decoder, slots, written, range(1, 16, 2))
    assert torch.equal(chosen, written.flatten(2)[..., 1::2])
    assert len(written.unique()) > 4


def test_the_listing_that_is_timed_computes_what_the_quantizer_computes(monkeypatch):
    monkeypatch.syspath_prepend(SCRIPT.parent)
    literal = runpy.run_path(str(SCRIPT.parent / "_stage1.py"))["literal_algorithm_1"]
    torch.manual_seed(0)
    fusion = MultiScaleFusion(4, 8, 3).double()
    maps = [torch.randn(2, 4, size, size, dtype=torch.float64) for size in (8, 4, 2)]
    quantized, loss = literal(fusion.project.weight, [book.weight for book in fusion.codebooks], maps)
    output = fusion(maps)
    torch.testing.assert_close(list(quantized), list(output.quantized))
    torch.testing.assert_close(loss, output.codebook_loss + output.commitment_loss)
