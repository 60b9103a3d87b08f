"""Time of one op on one GPU's compute stream."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from moiety.dtypes import BYTES_PER_ELEMENT
from moiety.graph.op import AttentionCore, Gemm, MemoryPass

if TYPE_CHECKING:
    from collections.abc import Sequence

    from moiety.calibration.calibration import Calibration, Roofline, RooflineKind, TileGrid
    from moiety.cluster.device import Device

_DECODE_ROWS_PER_EXPERT = 32
_EQUAL = 1e-6
"""Groups whose sizes differ by less, in tiles, count as equal."""
_ROUNDING = 1e-9


def compute_seconds(
    work: Gemm | AttentionCore | MemoryPass,
    device: Device,
    calibration: Calibration,
    *,
    load: float = 1.0,
    sm_share: float = 1.0,
) -> float:
    """Return seconds on the compute stream.

    `load` scales the rows of routed-expert work (this rank's share relative to the mean); `sm_share` is the part of
    the SMs that communication leaves to computation. Source: performance model `t = t0 + (tc^p + tm^p)^(1/p)`.
    """
    line = calibration.roofline[roofline_kind(work)]
    return line_seconds(work, device, line, load=load, sm_share=sm_share)


def line_seconds(
    work: Gemm | AttentionCore | MemoryPass,
    device: Device,
    line: Roofline,
    *,
    load: float = 1.0,
    sm_share: float = 1.0,
) -> float:
    """Return seconds on the compute stream by a line of the work's own choice of kernel."""
    if isinstance(work, Gemm):
        return product_seconds(work, device, line, load=load, sm_share=sm_share)
    moved, peak, tiles_s = work.bytes, device.peak("fp32"), 0.0
    if isinstance(work, AttentionCore):
        peak, tiles_s = device.peak(work.dtype), query_tile_seconds(work, line, device.num_sms)
    elif work.experts:
        moved *= load
    compute = (work.flops / (line.compute_efficiency * peak) + tiles_s) / sm_share
    return _together(compute, moved / (line.memory_efficiency * device.memory_bandwidth_bytes_per_s), line)


def product_seconds(work: Gemm, device: Device, line: Roofline, *, load: float = 1.0, sm_share: float = 1.0) -> float:
    """Return seconds of a product on the compute stream, by waves of tiles where the kernel's tiles are known.

    Such a kernel reads its rows in the format that the tensor cores multiply, and writes activations.
    """
    rows, groups = work.m * (load if work.experts else 1.0), work.groups
    if line.contiguous_layout:
        rows, groups = buffer_rows(rows, work.slots, line.row_block), 1
    written = BYTES_PER_ELEMENT[work.activation_dtype]
    reached = line.format_efficiency.get(work.weight_dtype, 1.0)
    moves = line.memory_efficiency * line.format_memory_efficiency.get(work.weight_dtype, reached)
    if work.block_scales:
        moves *= line.block_scale_memory_efficiency
    rate = line.compute_efficiency * reached * device.peak(work.weight_dtype)
    if line.tiles is None:
        read = written
        compute = 2.0 * padded_rows(rows, groups, line) * work.n * work.k / (rate * sm_share)
    else:
        read = BYTES_PER_ELEMENT[device.compute_dtype(work.weight_dtype)]
        sms, sm_rate = max(round(device.num_sms * sm_share), 1), rate / device.num_sms
        down = [row_tiles(rows, groups, height, line.row_spread) for height in line.tiles.rows]
        parts = line.tiles.depth_parts.get(work.weight_dtype, (1,))
        compute = tile_wave_seconds(down, work.n, work.k * read, line.tiles, sms, sm_rate * read, parts)
    moved = work.weight_bytes + rows * (work.k * read + work.n * written) * work.times
    memory = moved / (moves * device.memory_bandwidth_bytes_per_s)
    return _together(compute * work.times, memory, line)


def query_tile_seconds(work: AttentionCore, line: Roofline, num_sms: int) -> float:
    """Return what the tiles of a prompt's queries take beside their FLOPs, shared by all SMs."""
    if line.query_tile is None or work.shape is None or work.phase != "prefill":
        return 0.0
    each = math.ceil(work.shape.tokens / line.query_tile.rows)
    return work.shape.sequences * work.shape.heads * each / num_sms * line.query_tile.seconds


def buffer_rows(rows: float, slots: int, row_block: int) -> int:
    """Return the rows of a buffer in which each of the GPU's experts begins at a multiple of `row_block`.

    Only the device knows how many rows each has, so the host keeps as many as the worst routing needs (vLLM's
    `compute_aligned_M`).
    """
    return math.ceil((rows + slots * (row_block - 1)) / row_block) * row_block


def row_tiles(rows: float, groups: float, height: int, spread: float) -> float:
    """Return the tiles of so many rows, of which every group has its own, expected over groups of unequal size.

    Sizes are spread evenly from `1 - spread` to `1 + spread` of their mean: a tile more is begun with every `height`
    rows that a group may have.
    """
    if rows <= 0:
        return 0.0
    mean = rows / groups
    least, most = (1 - spread) * mean, (1 + spread) * mean
    if most - least < _EQUAL * height:
        return groups * math.ceil(mean / height)
    always, ever = math.floor(least / height) + 1, math.ceil(most / height)
    between = max(ever - always, 0)
    sometimes = between * (most - height * (always + ever - 1) / 2) / (most - least)
    return groups * (always + sometimes)


def tile_wave_seconds(
    down: Sequence[float],
    columns: int,
    depth_bytes: float,
    tiles: TileGrid,
    num_sms: int,
    sm_rate: float,
    depth_parts: Sequence[int] = (1,),
) -> float:
    """Return the seconds in which the SMs get through a product's tiles, a wave of one tile each after the other.

    `down` counts tiles over the rows, for each height that there is; `depth_bytes` is what a row of an operand holds,
    `sm_rate` the FLOP/s of an SM times the bytes of an element: so neither depends on the format. The last wave takes
    as long as a full one. The kernel has the shape of tile, and of `depth_parts` the number, that ends first.
    """
    found = math.inf
    for height, count in zip(tiles.rows, down, strict=True):
        for width in tiles.columns:
            step_s = math.hypot(tiles.step_s, 2.0 * height * width * tiles.step_bytes / sm_rate)
            for parts in depth_parts:
                waves = math.ceil(parts * count * math.ceil(columns / width) / num_sms - _ROUNDING)
                steps = depth_bytes / tiles.step_bytes / parts
                found = min(found, waves * step_s * steps + (tiles.parts_s if parts > 1 else 0.0))
    return found


def _together(compute_s: float, memory_s: float, line: Roofline) -> float:
    """Return the time of computation and memory traffic that hide each other in part."""
    return line.overhead_s + (compute_s**line.exponent + memory_s**line.exponent) ** (1 / line.exponent)


def roofline_kind(work: Gemm | AttentionCore | MemoryPass) -> RooflineKind:
    """Return which measured roofline an op follows."""
    if isinstance(work, Gemm):
        if not work.experts:
            return "dense_gemm"
        few = work.m <= _DECODE_ROWS_PER_EXPERT * max(work.groups, 1e-9)
        return "grouped_gemm_decode" if few else "grouped_gemm_prefill"
    if isinstance(work, AttentionCore):
        if work.variant == "linear":
            return "attention_linear"
        if work.phase == "prefill":
            return "attention_prefill"
        return "attention_decode_mla" if work.variant == "mla" else "attention_decode_gqa"
    return "memory_pass"


def padded_rows(rows: float, groups: float, line: Roofline) -> float:
    """Return the rows that the kernel computes: each group's share rounded up to whole blocks.

    Expected rows are fractional; a group with r rows on average wastes half a block on average beyond the first.
    """
    if groups <= 1:
        return max(math.ceil(rows / line.row_block) * line.row_block, 0)
    per_group = rows / groups
    if per_group <= line.row_block:
        return groups * line.row_block
    return groups * (per_group + line.row_block / 2)
