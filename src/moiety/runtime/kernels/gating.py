# pyright: basic, reportArgumentType=false, reportAttributeAccessIssue=false
# Triton is untyped: what a kernel computes with has the types of its call.
"""Gates and ups of a tile: as columns of a weight, as one product twice as wide, and made into one; `runtime/gates.py`.

All of it depends on constants of the kernel only, so that it costs a variant nothing to know of the others.
"""

from __future__ import annotations

import triton
import triton.language as tl

from moiety.runtime.gates import CLAMPED_TO, SHARPNESS, Gate
from moiety.runtime.kernels.scaled_tiles import scaled

GPT_OSS = tl.constexpr(Gate.GPT_OSS.value)
_LIMIT, _SHARPNESS = tl.constexpr(CLAMPED_TO), tl.constexpr(SHARPNESS)


@triton.jit
def gated(gate, up, GATE: tl.constexpr):
    """Return a gate and an up made into one, in FP32; NaN stays NaN."""
    if GATE == GPT_OSS:
        gate = tl.minimum(gate, _LIMIT, propagate_nan=tl.PropagateNan.ALL)
        up = tl.clamp(up, -_LIMIT, _LIMIT, propagate_nan=tl.PropagateNan.ALL)
        middle = gate * tl.sigmoid(gate * _SHARPNESS) * (up + 1.0)
    else:
        middle = gate * tl.sigmoid(gate) * up
    return middle


@triton.jit
def joint_columns(n_tile, width, GATE: tl.constexpr, BLOCK_N: tl.constexpr):
    """Return where the gates and ups of a tile lie among 2 x width columns, [2 x BLOCK_N]; past the end, others'."""
    each = tl.arange(0, 2 * BLOCK_N)
    if GATE == GPT_OSS:
        columns = (n_tile * 2 * BLOCK_N + each) % (2 * width)
    else:
        columns = each // BLOCK_N * width + (n_tile * BLOCK_N + each % BLOCK_N) % width
    return columns


@triton.jit
def parted(both, GATE: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr):
    """Return the gates and the ups of [BLOCK_M, 2 x BLOCK_N] in the order of `joint_columns`."""
    if GATE == GPT_OSS:
        return tl.split(both.reshape(BLOCK_M, BLOCK_N, 2))
    return tl.split(both.reshape(BLOCK_M, 2, BLOCK_N).permute(0, 2, 1))


@triton.jit
def add_biases(gate, up, bias_at, column, width, GATE: tl.constexpr):
    """Return gates and ups of columns [BLOCK_N] with a slot's biases [2 x width]."""
    inside = column < width
    if GATE == GPT_OSS:
        gate_at = bias_at + 2 * column
        up_at = gate_at + 1
    else:
        gate_at = bias_at + column
        up_at = gate_at + width
    gate += tl.load(gate_at, mask=inside, other=0.0).to(tl.float32)[None, :]
    up += tl.load(up_at, mask=inside, other=0.0).to(tl.float32)[None, :]
    return gate, up


@triton.jit
def wide_products(
    hidden_at, weights_at, scales_at, hidden_size, in_stride, scale_in_stride, block_offset, block_size,
    GATE: tl.constexpr, EVEN_K: tl.constexpr, WHOLE: tl.constexpr, UPCAST: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """Return the gates and the ups of a tile by one product, the weights read where the pointers say."""
    k = tl.arange(0, BLOCK_K)
    both = tl.zeros((BLOCK_M, 2 * BLOCK_N), dtype=tl.float32)
    for step in range(tl.cdiv(hidden_size, BLOCK_K)):
        if EVEN_K:
            states = tl.load(hidden_at)
            tile = tl.load(weights_at)
        else:
            is_k = k < hidden_size - step * BLOCK_K
            states = tl.load(hidden_at, mask=is_k[None, :], other=0.0)
            tile = tl.load(weights_at, mask=is_k[:, None], other=0.0)
        if scales_at is not None:
            tile = scaled(
                tile, scales_at, scale_in_stride, step * BLOCK_K, hidden_size, block_offset, block_size,
                states.dtype, WHOLE, UPCAST,
            )  # fmt: skip
        if UPCAST:
            states = states.to(tl.float32)
            tile = tile.to(tl.float32)
        both = tl.dot(states, tile, both, input_precision="ieee")
        hidden_at += BLOCK_K
        weights_at += BLOCK_K * in_stride
    return parted(both, GATE, BLOCK_M, BLOCK_N)
