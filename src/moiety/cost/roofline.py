"""Time of one op on one GPU's compute stream."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from moiety.dtypes import BYTES_PER_ELEMENT
from moiety.graph.op import AttentionCore, Gemm, MemoryPass

if TYPE_CHECKING:
    from moiety.calibration.calibration import Calibration, Roofline, RooflineKind, TileGrid
    from moiety.cluster.device import Device

_DECODE_ROWS_PER_EXPERT = 32


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
    if isinstance(work, Gemm):
        return product_seconds(work, device, calibration.roofline[roofline_kind(work)], load=load, sm_share=sm_share)
    if isinstance(work, AttentionCore):
        line = calibration.roofline[roofline_kind(work)]
        flops, moved, peak = work.flops, work.bytes, device.peak(work.dtype)
    else:
        line = calibration.roofline["memory_pass"]
        moved = work.bytes * (load if work.experts else 1.0)
        flops, peak = work.flops, device.peak("fp32")
    compute = flops / (line.compute_efficiency * peak * sm_share)
    return _together(compute, moved / (line.memory_efficiency * device.memory_bandwidth_bytes_per_s), line)


def product_seconds(work: Gemm, device: Device, line: Roofline, *, load: float = 1.0, sm_share: float = 1.0) -> float:
    """Return seconds of a product on the compute stream, by waves of tiles where the kernel's tiles are known.

    Such a kernel reads its rows in the format that the tensor cores multiply, and writes activations.
    """
    rows = work.m * (load if work.experts else 1.0)
    written = BYTES_PER_ELEMENT[work.activation_dtype]
    reached = line.format_efficiency.get(work.weight_dtype, 1.0)
    rate = line.compute_efficiency * reached * device.peak(work.weight_dtype)
    if line.tiles is None or work.groups > 1:
        read = written
        compute = 2.0 * padded_rows(rows, work.groups, line) * work.n * work.k / (rate * sm_share)
    else:
        read = BYTES_PER_ELEMENT[device.compute_dtype(work.weight_dtype)]
        sms, sm_rate = max(round(device.num_sms * sm_share), 1), rate / device.num_sms
        compute = tile_wave_seconds(rows, work.n, work.k * read, line.tiles, sms, sm_rate * read)
    moved = work.weight_bytes + rows * (work.k * read + work.n * written) * work.times
    memory = moved / (line.memory_efficiency * reached * device.memory_bandwidth_bytes_per_s)
    return _together(compute * work.times, memory, line)


def tile_wave_seconds(
    rows: float, columns: int, depth_bytes: float, tiles: TileGrid, num_sms: int, sm_rate: float
) -> float:
    """Return the seconds in which the SMs get through a product's tiles, a wave of one tile each after the other.

    `depth_bytes` is what a row of an operand holds, `sm_rate` the FLOP/s of an SM times the bytes of an element: so
    neither depends on the format. The last wave takes as long as a full one.
    """
    waves_s = math.inf
    for height in tiles.rows:
        down = math.ceil(rows / height)
        for width in tiles.columns:
            waves = math.ceil(down * math.ceil(columns / width) / num_sms)
            step_s = math.hypot(tiles.step_s, 2.0 * height * width * tiles.step_bytes / sm_rate)
            waves_s = min(waves_s, waves * step_s)
    return waves_s * depth_bytes / tiles.step_bytes


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
