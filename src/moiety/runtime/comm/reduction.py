"""Room: where the tensors of the other members of a group come to be summed with one's own."""

from __future__ import annotations

import ctypes
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from moiety.runtime.comm.mesh import Part

_WRITE = 0x200
"""PyBUF_WRITE of Python's C API."""
_memory = ctypes.pythonapi.PyMemoryView_FromMemory
_memory.restype = ctypes.py_object
_memory.argtypes = (ctypes.c_void_p, ctypes.c_ssize_t, ctypes.c_int)
_NOTHING = memoryview(bytearray())

MOST_KEPT_BYTES = 4 << 20
"""Of room for sums that is kept for the next one."""
_ROUNDED = (torch.bfloat16, torch.float16)
_TWO = 2


def bytes_of(tensor: torch.Tensor) -> memoryview:
    """Return the bytes of a contiguous tensor on the CPU, which must outlive them: not a copy."""
    assert tensor.device.type == "cpu", f"a tensor on {tensor.device} in a group of the CPU"
    size_bytes = tensor.nbytes
    return _memory(tensor.data_ptr(), size_bytes, _WRITE) if size_bytes else _NOTHING


def widened(tensor: torch.Tensor) -> torch.Tensor:
    """Return the tensor in the format that its sums are taken in: FP32 where it has fewer bits, else as it is."""
    return tensor.float() if tensor.dtype in _ROUNDED else tensor


class Room:
    """Room for one tensor [n] of each of the other members."""

    def __init__(self, own: torch.Tensor, others: tuple[int, ...]) -> None:
        self._rows = {other: torch.empty_like(own) for other in others}
        shape = own.shape if own.dtype in _ROUNDED else (0,)
        self._total, self._wide = (own.new_empty(shape, dtype=torch.float32) for _ in range(2))
        self.parts: list[Part] = [(other, bytes_of(row)) for other, row in self._rows.items()]

    def add_up(self, own: torch.Tensor) -> None:
        """Replace `own` [n] by the sum of all tensors in the order of the members, in FP32 where it has fewer bits."""
        rows = [self._rows.get(place, own) for place in range(len(self._rows) + 1)]
        if own.dtype in _ROUNDED:
            total = self._total.copy_(rows[0])
            for row in rows[1:]:
                total += self._wide.copy_(row)  # which PyTorch would otherwise ask for memory for
            own.copy_(total)
        elif len(rows) == _TWO:
            torch.add(rows[0], rows[1], out=own)
        else:
            total = rows[0] if rows[0] is not own else rows[1]  # which is not needed any more
            torch.add(rows[0], rows[1], out=total)
            for row in rows[2:-1]:
                total += row
            torch.add(total, rows[-1], out=own)


class Rooms:
    """The rooms that a group has made last, kept for the next reduction of the same size unless they are big."""

    def __init__(self, others: tuple[int, ...], num_kept: int = 16) -> None:
        self._others = others
        self._num_kept = num_kept
        self._rooms: dict[tuple[torch.dtype, int], Room] = {}

    def let_go(self) -> None:
        """Keep none."""
        self._rooms.clear()

    def room_for(self, own: torch.Tensor) -> Room:
        """Return room for tensors like `own`."""
        key = (own.dtype, own.numel())
        room = self._rooms.get(key)
        if room is not None:
            return room
        room = Room(own, self._others)
        if own.nbytes <= MOST_KEPT_BYTES:
            if len(self._rooms) == self._num_kept:
                self._rooms.pop(next(iter(self._rooms)))
            self._rooms[key] = room
        return room
