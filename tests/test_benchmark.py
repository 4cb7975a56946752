"""The benchmarks run, small, and print their tables; how fast they are is nobody's test."""

import runpy
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from ocl_msf.fusion import MultiScaleFusion

SCRIPT = Path(__file__).parent.parent / "scripts" / "benchmark.py"


@pytest.mark.parametrize(
    "arguments, rows",
    [
        ("quantizer --batch 1 --dim 8 --size 32 --repeat 1 --warmup 0", ["ours", "literal Algorithm 1"]),
        ("stage1 --batch 1 --dim 8 --size 32 --repeat 1 --warmup 0", ["vq", "msf", "encoder + decoder"]),
        (
            "stage2 --batch 1 --dim 8 --size 16 --layers 1 --repeat 1 --warmup 0",
            ["decoder", "decoder, nn.TransformerDecoder", "stage 2", "stage 2, nn.TransformerDecoder"],
        ),
        ("generate --batch 1 --dim 8 --size 16 --layers 1 --repeat 1 --warmup 0", ["cache", "no cache"]),
        ("loader --shards 2 --samples 8 --batch 4 --size 16 --repeat 1 --warmup 0", ["ours", "plain webdataset"]),
        (
            "data --samples 16 --raw-size 64 48 --size 16 --repeat 1",
            ["convert to webdataset, 1 workers", "convert to lmdb, 2 workers", "read LMDB", "decode raw files by PIL"],
        ),
    ],
)
def test_a_benchmark_prints_its_table(arguments, rows):
    command = [sys.executable, str(SCRIPT), *arguments.split()]
    printed = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    for row in rows:
        (cells,) = [line.split("|")[2:-1] for line in printed.splitlines() if line.startswith(f"| {row} |")]
        assert all(float(cell) >= 0 for cell in cells)


def test_the_listing_that_is_timed_computes_what_the_quantizer_computes(monkeypatch):
    monkeypatch.syspath_prepend(SCRIPT.parent)
    literal = runpy.run_path(str(SCRIPT))["literal_algorithm_1"]
    torch.manual_seed(0)
    fusion = MultiScaleFusion(4, 8, 3).double()
    maps = [torch.randn(2, 4, size, size, dtype=torch.float64) for size in (8, 4, 2)]
    quantized, loss = literal(fusion.project.weight, [book.weight for book in fusion.codebooks], maps)
    output = fusion(maps)
    torch.testing.assert_close(list(quantized), list(output.quantized))
    torch.testing.assert_close(loss, output.codebook_loss + output.commitment_loss)
