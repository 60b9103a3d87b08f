"""Time of one op on one GPU's compute stream."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from moiety.dtypes import BYTES_PER_ELEMENT
from moiety.graph.op import AttentionCore, Gemm, MemoryPass

if TYPE_CHECKING:
    from moiety.calibration.calibration import Calibration, Roofline, RooflineKind
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
        kind = roofline_kind(work)
        line = calibration.roofline[kind]
        rows = work.m * (load if work.experts else 1.0)
        flops = 2.0 * padded_rows(rows, work.groups, line) * work.n * work.k * work.times
        moved = work.weight_bytes + rows * (work.k + work.n) * BYTES_PER_ELEMENT[work.activation_dtype] * work.times
        peak = device.peak(work.weight_dtype)
    elif isinstance(work, AttentionCore):
        line = calibration.roofline[roofline_kind(work)]
        flops, moved, peak = work.flops, work.bytes, device.peak(work.dtype)
    else:
        line = calibration.roofline["memory_pass"]
        moved = work.bytes * (load if work.experts else 1.0)
        flops, peak = work.flops, device.peak("fp32")
    reached = line.format_efficiency.get(work.weight_dtype, 1.0) if isinstance(work, Gemm) else 1.0
    compute = flops / (line.compute_efficiency * reached * peak * sm_share)
    memory = moved / (line.memory_efficiency * reached * device.memory_bandwidth_bytes_per_s)
    return line.overhead_s + (compute**line.exponent + memory**line.exponent) ** (1 / line.exponent)


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
