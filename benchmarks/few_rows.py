"""Few rows against an expert's weights on a CPU, as in decoding: the run time's product against `torch.mm`, float32.

Each expert's weights are read from memory, as there are more of them than caches hold. Bar: nowhere slower than 0.9 of
`torch.mm`, and at least 1.5 times as fast where an expert has two rows and the inner size is at most 1,024. The line
above the bars says why BF16 stays with oneDNN, which asks for memory in every product: what PyTorch's own takes beside
it.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from typing import TYPE_CHECKING

import torch

from moiety.runtime.experts.by_slot import multiply_few

if TYPE_CHECKING:
    from collections.abc import Callable

SHAPES = ((64, 512, 512), (64, 256, 512), (8, 512, 4096), (16, 2048, 1024))
"""Experts, inner size, outer size."""
ROWS = (1, 2, 3, 4, 6, 8, 12)
ROUNDS = 15
LEAST, LEAST_OF_TWO, MOST_INNER = 0.9, 1.5, 1024


def seconds(function: Callable[[], object]) -> float:
    """Return how long a call takes."""
    start_s = time.perf_counter()
    function()
    return time.perf_counter() - start_s


def ratio(experts: int, inner: int, outer: int, rows: int) -> float:
    """Return how many times as fast as torch's the product is: the median of rounds, by turns."""
    weights = torch.randn(experts, outer, inner).transpose(1, 2)
    hidden, out = torch.randn(experts, rows, inner), torch.empty(experts, rows, outer)

    def ours() -> None:
        for expert in range(experts):
            multiply_few(hidden[expert], weights[expert], out[expert])

    def theirs() -> None:
        for expert in range(experts):
            torch.mm(hidden[expert], weights[expert], out=out[expert])

    pairs = [(seconds(theirs), seconds(ours)) for _ in range(ROUNDS + 1)][1:]
    return statistics.median(plain / mine for plain, mine in pairs)


def without_onednn(rows: int, size: int = 1024) -> float:
    """Return how many times as long PyTorch's own BF16 product of so many rows takes as oneDNN's, by turns."""
    weight, hidden = torch.randn(size, size).bfloat16().t(), torch.randn(rows, size).bfloat16()
    out = torch.empty(rows, size, dtype=torch.bfloat16)

    def product() -> None:
        torch.mm(hidden, weight, out=out)

    def own() -> float:
        with torch.backends.mkldnn.flags(enabled=False):
            return seconds(product)

    pairs = [(own(), seconds(product)) for _ in range(ROUNDS + 1)][1:]
    return statistics.median(plain / theirs for plain, theirs in pairs)


def main() -> int:
    """Print the table; return 0 when the bars hold."""
    parser = argparse.ArgumentParser(description="Few rows against an expert's weights.")
    parser.add_argument("--threads", type=int, default=2, metavar="N")
    torch.set_num_threads(parser.parse_args().threads)
    print(f"{'experts x inner x outer':24} {'  '.join(f'{rows:2} rows' for rows in ROWS)}")
    met = True
    for shape in SHAPES:
        ratios = [ratio(*shape, rows) for rows in ROWS]
        print(f"{' x '.join(map(str, shape)):24} {'  '.join(f'{each:6.2f}x' for each in ratios)}")
        met = met and min(ratios) >= LEAST and (shape[1] > MOST_INNER or ratios[ROWS.index(2)] >= LEAST_OF_TWO)
    print(f"BF16 without oneDNN: {'  '.join(f'{rows} rows {without_onednn(rows):.1f}x' for rows in (1, 3, 8, 32))}")
    print(f"bars: {'met' if met else 'NOT MET'}")
    return 0 if met else 1


if __name__ == "__main__":
    sys.exit(main())
