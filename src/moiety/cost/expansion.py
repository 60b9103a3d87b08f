"""The room in which a step of our run time expands weights that are held in FP8, for products in another format.

One matrix is expanded at a time, in every phase: a projection, or one expert's. Engines whose kernels take FP8 need
none. `runtime/expansion.py` is what is counted here.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

from moiety.dtypes import BYTES_PER_ELEMENT, SCALE_BLOCK

if TYPE_CHECKING:
    from moiety.dtypes import Dtype
    from moiety.graph.op import Op, Tensor

_FP32 = 4
_UNTIL_USED = frozenset({"kv_absorb"})
"""Ops whose matrix is used again at the end of what comes after them: the half that makes values of latents."""


class Expansion(NamedTuple):
    """How weights are expanded."""

    on_cpu: bool
    """A row of blocks is multiplied by its scales in FP32 before it is rounded; a GPU's kernel does that on the way."""
    activations: Dtype
    """What products take."""

    def room_bytes(self, weight: Tensor) -> int:
        """Return what the largest matrix of a weight is expanded into: it, and on CPUs a row of its blocks in FP32."""
        if weight.dtype not in SCALE_BLOCK:
            return 0
        *_, rows, columns = weight.shape
        rows = max(weight.matrices, default=rows)
        room = math.ceil(rows * columns * BYTES_PER_ELEMENT[self.activations])
        if self.on_cpu and self.activations != "fp32":
            # whichever way its codes lie
            room += _FP32 * max(min(size, SCALE_BLOCK[weight.dtype]) * other for size, other in _both(rows, columns))
        return room

    def of_op(self, op: Op, last_use: int, index: int) -> tuple[int, int]:
        """Return the bytes that the op at `index` expands a matrix into, and the op until which they are needed.

        `last_use` is the last op that takes its output.
        """
        size = max((self.room_bytes(each) for each in op.weights), default=0)
        return size, last_use if op.name in _UNTIL_USED else index


def _both(rows: int, columns: int) -> tuple[tuple[int, int], tuple[int, int]]:
    return (rows, columns), (columns, rows)
