# pyright: basic, reportArgumentType=false, reportAttributeAccessIssue=false
# Triton is untyped: what a kernel computes with has the types of its call.
"""Tile sizes of the expert products: short lists that Triton times on the GPU at hand, for few and many rows a slot.

A program of the first kernel holds two accumulators, gate and up, and reads two tiles of weights: its columns count
twice in registers and shared memory. With `halves` a slot's last rows are computed by a tile of half as many rows where
that holds them. Programs that `stay`, one on a multiprocessor, compute one tile after the other and fetch the next
while they store the last. All sizes fit compute capability 9.0; what does not fit a GPU is passed over.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any

import torch
import triton
from triton import knobs
from triton.testing import do_bench

from moiety.runtime.kernels.tile_copies import set_tile_sizes

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

INTERPRETED = bool(knobs.runtime.interpret)
"""Whether kernels run in Triton's interpreter (`TRITON_INTERPRET=1` before the first import), on CPU tensors."""
FEW_ROWS = 16
"""Of a slot, on average, up to which reading the weights takes the time: the smallest row tile of `tl.dot`."""
MOST_ROWS = 1024
"""Of a slot, from which on more rows choose no other tiles."""


def _config(
    rows: int,
    columns: int,
    inner: int,
    warps: int,
    stages: int,
    group: int = 8,
    *,
    halves: bool = False,
    stays: bool = False,
) -> triton.Config:
    sizes = {"BLOCK_M": rows, "BLOCK_N": columns, "BLOCK_K": inner, "GROUP_M": group, "HALVES": int(halves)}
    if stays:
        sizes["STAYS"] = 1
    return triton.Config(sizes, num_warps=warps, num_stages=stages, pre_hook=set_tile_sizes)


GATE_UP = {
    "few": [_config(16, 64, 128, 4, 5, group=4)],
    "many": [
        _config(128, 128, 64, 8, 4, halves=True),
        _config(128, 128, 64, 8, 3, halves=True),
        _config(64, 128, 64, 4, 4),
        _config(128, 64, 64, 4, 3, halves=True),
    ],
}
"""On an H100 all sizes for few rows that fill the shared memory are within 1 % of each other, so nothing is tried."""
DOWN = {
    "few": [_config(16, 64, 128, 4, 4, group=4)],
    "many": [
        _config(128, 256, 64, 8, 4, halves=True),
        _config(128, 256, 64, 8, 3, halves=True),
        _config(64, 256, 64, 8, 4),
        _config(64, 128, 64, 4, 4),
        _config(128, 128, 64, 4, 3, halves=True),
    ],
    "most": [
        _config(128, 256, 64, 8, 4, stays=True),
        _config(128, 256, 64, 8, 3, stays=True),
        _config(128, 256, 64, 8, 4, halves=True),
    ],
}
"""The last of both lists for many rows lets two programs share a multiprocessor: one computes while the other begins or
ends. `most`: from 513 rows a slot on, by tile copies; with fewer, whole tiles for a slot's last rows cost more than
staying gains. Gate-up, whose states are gathered, is slower so."""
GATE_UP_OF_CODES = {
    "few codes": [_config(16, 64, 128, 4, 5, group=4), _config(16, 128, 64, 4, 5, group=4)],
    "many codes": [
        _config(256, 64, 64, 8, 3),
        _config(128, 64, 128, 8, 3),
        _config(128, 64, 64, 8, 3),
    ],
}
DOWN_OF_CODES = {
    "few codes": [_config(16, 64, 128, 4, 5, group=4), _config(16, 128, 64, 4, 5, group=4)],
    "many codes": [
        _config(256, 128, 64, 8, 3),
        _config(128, 128, 128, 8, 3),
        _config(128, 128, 64, 8, 3),
    ],
}
"""For weights that are held in FP8, which a product first makes into numbers: between the tiles of codes and the tensor
cores stands a tile of those. No tile sums over more than a block of 128."""
EXACT = [_config(32, 64, 32, 4, 2)]
"""For FP32, whose products are not the tensor cores': one size, as this is for comparison rather than for speed."""


@cache
def num_multiprocessors(device: torch.device) -> int:
    """Return how many multiprocessors a GPU has, each a program that stays; in the interpreter there are three."""
    return 3 if INTERPRETED else torch.cuda.get_device_properties(device).multi_processor_count


def rows_class(num_rows: int, num_slots: int) -> int:
    """Return the power of two up to which slots have rows on average: what tiles are chosen by."""
    average = -(-num_rows // max(1, min(num_slots, num_rows)))
    return min(max(triton.next_power_of_2(average), FEW_ROWS), MOST_ROWS)


def tuned(
    kernel: Callable[..., None],
    configs: Mapping[str, Sequence[triton.Config]],
    *,
    inner: str,
    key: Sequence[str],
) -> dict[str, Any]:
    """Return the kernel for each list of tiles, and for `exact` products.

    `inner` names the argument that is summed over: where the tile divides it, nothing is masked. Tiles are chosen anew
    whenever an argument in `key`, or a format, changes.
    """
    compiled = triton.jit(do_not_specialize=["num_rows", "rows_class"])(kernel)
    known = {"EVEN_K": lambda given: given[inner] % given["BLOCK_K"] == 0, "WHOLE": _is_in_one_block}
    masked = triton.heuristics(known)(compiled)
    lists = {**configs, "exact": EXACT}
    return {
        name: triton.autotune(_interpreted(each) if INTERPRETED else list(each), key=list(key), do_bench=_seconds)(
            masked
        )
        for name, each in lists.items()
    }


def _interpreted(configs: Sequence[triton.Config]) -> list[triton.Config]:
    """Return small tiles for the interpreter; its programs stay if some of a list's do."""
    stays = any("STAYS" in each.kwargs for each in configs)
    return [_config(16, 32, 32, 4, 1, group=2, halves=True, stays=stays)]


def _is_in_one_block(given: Mapping[str, Any]) -> bool:
    """Return whether no tile of codes along what is summed over lies in two blocks of scales."""
    at, size = given["block_offset"], given["block_size"]
    return size is not None and at % given["BLOCK_K"] == size % given["BLOCK_K"] == 0


def _seconds(call: Callable[[], None], quantiles: Sequence[float]) -> object:
    """Return the quantiles of a call's time; shorter than Triton's own, the cache flushed too."""
    return do_bench(call, warmup=5, rep=25, quantiles=quantiles)
