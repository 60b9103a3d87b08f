"""The room in which a step of our run time expands weights that are held as codes and scales: FP8, experts in MXFP4.

One matrix is expanded at a time, in every phase: a projection, or one expert's. Engines whose kernels take the codes
need none. `runtime/expansion.py` is what is counted here.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

from moiety.dtypes import BYTES_PER_ELEMENT, HELD_BLOCK

if TYPE_CHECKING:
    from moiety.dtypes import Dtype
    from moiety.graph.op import Op, Tensor

_FP32 = 4
ROWS_AT_A_TIME = 128
"""Of MXFP4 that are made in FP32 at a time, so that they are in the CPU's caches for the next op; as a block of FP8."""
_STACK = len("erc")
"""Axes of experts' weights: experts, rows, columns."""
_UNTIL_USED = frozenset({"kv_absorb"})
"""Ops whose matrix is used again at the end of what comes after them: the half that makes values of latents."""


class Expansion(NamedTuple):
    """How weights are expanded."""

    on_cpu: bool
    """Of matrices in FP8 a row of blocks is multiplied by its scales in FP32 before it is rounded, which a GPU's kernel
    does on the way."""
    activations: Dtype
    """What products take."""

    def room_bytes(self, weight: Tensor) -> int:
        """Return what the largest matrix of a weight is expanded into, with what that takes beside it."""
        if weight.dtype not in HELD_BLOCK or not self._expands(weight):
            return 0
        *_, rows, columns = weight.shape
        rows = max(weight.matrices, default=rows)
        beside = self._fp8_items(rows, columns) if weight.dtype == "fp8" else self._mxfp4_items(rows, columns)
        return math.ceil(rows * columns * BYTES_PER_ELEMENT[self.activations]) + _FP32 * beside

    def _expands(self, weight: Tensor) -> bool:
        """Return whether it is held as codes, and no kernel multiplies by these: GPUs' do by experts in FP8."""
        is_of_experts = len(weight.shape) == _STACK
        return is_of_experts if weight.dtype == "mxfp4" else self.on_cpu or not is_of_experts

    def of_op(self, op: Op, last_use: int, index: int) -> tuple[int, int]:
        """Return the bytes that the op at `index` expands a matrix into, and the op until which they are needed.

        `last_use` is the last op that takes its output.
        """
        size = max((self.room_bytes(each) for each in op.weights), default=0)
        return size, last_use if op.name in _UNTIL_USED else index

    def _fp8_items(self, rows: int, columns: int) -> int:
        """Return the FP32 numbers of a row of blocks, whichever way the codes lie."""
        if self.activations == "fp32" or not self.on_cpu:
            return 0
        block, _ = HELD_BLOCK["fp8"]
        return max(min(rows, block) * columns, min(columns, block) * rows)

    def _mxfp4_items(self, rows: int, columns: int) -> int:
        """Return the FP32 numbers of the rows that are made at a time, and of their scales."""
        _, group = HELD_BLOCK["mxfp4"]
        numbers = 0 if self.activations == "fp32" else columns
        return min(rows, ROWS_AT_A_TIME) * (numbers + math.ceil(columns / group))
