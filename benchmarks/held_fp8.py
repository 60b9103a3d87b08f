"""Weights held in FP8 on a CPU (`--format mxfp4`: in MXFP4): making the numbers of one matrix beside torch's ops.

One thread; every matrix is read from memory, as there are more of them than caches hold. Bar: at least 3 times as fast
as torch's conversion and product with the scales; in MXFP4, 1.5 times as fast as looking up each byte's two numbers.
Printed beside it: how much longer a product with few rows takes than one with weights that are held as the product
takes them, four (eight) or two (four) times as many bytes.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from functools import partial
from typing import TYPE_CHECKING

import torch

from moiety.runtime.block_scaled import BlockScaled, block_bounds, quantised
from moiety.runtime.expansion import expand, room_for, whole
from moiety.runtime.fp8 import BLOCK
from moiety.runtime.mxfp4 import E8M0, FP4_PAIRS, GROUP

if TYPE_CHECKING:
    from collections.abc import Callable

    from moiety.runtime.expansion import Room

SHAPES = ((1024, 2048), (2048, 4096))
COUNT, ROWS, ROUNDS = 6, (1, 16, 256), 9
LEAST = {"fp8": 3.0, "mxfp4": 1.5}
_E2M1 = torch.tensor([0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0])
_SIGNED = torch.cat([_E2M1, -_E2M1])
PAIRS = torch.stack([_SIGNED.repeat(16), _SIGNED.repeat_interleave(16)], dim=1)
"""The two numbers of each byte, low bits first."""


def seconds(function: Callable[[], object]) -> float:
    """Return how long a call takes."""
    start_s = time.perf_counter()
    function()
    return time.perf_counter() - start_s


def in_ops(held: BlockScaled) -> torch.Tensor:
    """Return the numbers of a matrix of whole blocks by torch's conversion, or by a table of a byte's two numbers."""
    rows, columns = held.shape
    if held.has_pairs:
        groups = PAIRS[held.codes.view(torch.uint8).int()].view(rows, columns // GROUP, GROUP)
        return groups.mul_(held.scales.float()[..., None]).view(rows, columns).to(held.dtype)
    blocks = held.codes.float().view(rows // BLOCK, BLOCK, columns // BLOCK, BLOCK)
    return blocks.mul_(held.scales[:, None, :, None]).view(rows, columns).to(held.dtype)


def products_of_held(states: torch.Tensor, matrices: list[BlockScaled], room: Room) -> list[torch.Tensor]:
    """Return the products of states with each matrix, made one after the other in one room."""
    return [states @ expand(each, room).t() for each in matrices]


def products(states: torch.Tensor, matrices: list[torch.Tensor]) -> list[torch.Tensor]:
    """Return the products of states with each matrix."""
    return [states @ each.t() for each in matrices]


def in_mxfp4(rows: int, columns: int, dtype: torch.dtype) -> BlockScaled:
    """Return random codes with scales about one."""
    codes = torch.randint(256, (rows, columns // 2), dtype=torch.uint8).view(FP4_PAIRS)
    scales = torch.randint(120, 130, (rows, columns // GROUP), dtype=torch.uint8).view(E8M0)
    return BlockScaled(codes, scales, tuple(range(rows + 1)), block_bounds(range(columns), GROUP), dtype)


def measured(rows: int, columns: int, dtype: torch.dtype, *, in_fp8: bool) -> tuple[float, list[float]]:
    """Return how many times as fast as torch's ops a matrix is made, and how many times as long products take."""
    matrices = [
        quantised(torch.randn(rows, columns), dtype) if in_fp8 else in_mxfp4(rows, columns, dtype) for _ in range(COUNT)
    ]
    numbers = [whole(each) for each in matrices]
    assert all(map(torch.equal, numbers, map(in_ops, matrices)))
    room = room_for(matrices[0])
    assert room is not None

    def ratio(first: Callable[[], object], second: Callable[[], object]) -> float:
        pairs = [(seconds(first), seconds(second)) for _ in range(ROUNDS + 1)][1:]
        return statistics.median(one / other for one, other in pairs)

    made = ratio(lambda: [in_ops(each) for each in matrices], lambda: [expand(each, room) for each in matrices])
    slower: list[float] = []
    for count in ROWS:
        states = torch.randn(count, columns).to(dtype)
        slower.append(ratio(partial(products_of_held, states, matrices, room), partial(products, states, numbers)))
    return made, slower


def main() -> int:
    """Print the table; return 0 when the bar holds."""
    parser = argparse.ArgumentParser(description="Weights held in FP8 or MXFP4.")
    parser.add_argument("--format", choices=tuple(LEAST), default="fp8")
    codes = parser.parse_args().format
    torch.set_num_threads(1)
    print(f"{'rows x columns, format':32} {'made':>7}  {'  '.join(f'{count:3} rows' for count in ROWS)}")
    met = True
    for shape in SHAPES:
        for dtype in (torch.float32, torch.bfloat16):
            made, slower = measured(*shape, dtype, in_fp8=codes == "fp8")
            label = f"{' x '.join(map(str, shape))}, {str(dtype).removeprefix('torch.')}"
            print(f"{label:32} {made:6.1f}x  {'  '.join(f'{each:7.2f}x' for each in slower)}")
            met = met and made >= LEAST[codes]
    print(f"bar: {'met' if met else 'NOT MET'}")
    return 0 if met else 1


if __name__ == "__main__":
    sys.exit(main())
