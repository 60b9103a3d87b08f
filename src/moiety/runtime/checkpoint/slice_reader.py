"""Slices of tensors, read from the files: no more bytes than the slice has."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import torch

from moiety.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from moiety.runtime.checkpoint.header import TensorEntry

Box: TypeAlias = "tuple[range, ...]"
"""A slice of a tensor: the indices on each axis, one after the other (step 1)."""

DTYPES: dict[str, torch.dtype] = {
    "F32": torch.float32,
    "BF16": torch.bfloat16,
    "F16": torch.float16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "U8": torch.uint8,
}
"""What can be read, by the name that safetensors gives the number format."""
_CHECKED = frozenset({torch.float32, torch.bfloat16, torch.float16})
_BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32}
"""Integers that carry the bytes of an element of that size: NumPy has no BF16 and no FP8."""


def whole(shape: Sequence[int]) -> Box:
    """Return the box of all elements."""
    return tuple(range(size) for size in shape)


def lengths(box: Box) -> tuple[int, ...]:
    """Return the shape of what a box cuts out."""
    return tuple(len(axis) for axis in box)


class SliceReader:
    """Reads slices and counts their bytes. No file stays open."""

    def __init__(self) -> None:
        self.bytes_read = 0

    def read(self, entry: TensorEntry, box: Box) -> torch.Tensor:
        """Return a slice of the tensor in its own number format, in memory of its own.

        What lies together in the file is read in one go; a slice of columns through a memory map, of which the
        system loads the pages that hold some of the slice. Raises InputError where the file ended meanwhile, and for
        values in FP32, BF16 or FP16 that are not finite: no token that comes of them means anything.
        """
        dtype = DTYPES[entry.dtype]
        bits = torch.empty(lengths(box), dtype=_BITS[dtype.itemsize])
        target = bits.numpy()
        if target.nbytes:
            try:
                if _lies_together(entry.shape, box):
                    _read_run(entry, box, target)
                else:
                    _read_strided(entry, box, target)
            except (OSError, ValueError) as error:
                raise InputError(f"cannot be read: {error}", source=str(entry.file), field=entry.name) from None
        self.bytes_read += target.nbytes
        found = bits.view(dtype)
        if target.nbytes and dtype in _CHECKED and not _is_finite(found):
            rule, remedy = "holds values that are not finite", "the file is damaged, or was saved so: fetch another"
            raise InputError(rule, source=str(entry.file), field=entry.name, remedy=remedy)
        return found


def _is_finite(tensor: torch.Tensor) -> bool:
    """Return whether all values are; the extremes of others are none (one pass, a tenth of `isfinite`'s time)."""
    return all(math.isfinite(float(each)) for each in torch.aminmax(tensor))


def _lies_together(shape: Sequence[int], box: Box) -> bool:
    """Say whether the slice is one run of bytes: single indices, then one range, then whole axes."""
    first = next((axis for axis, indices in enumerate(box) if len(indices) != 1), len(box))
    return lengths(box[first + 1 :]) == tuple(shape[first + 1 :])


def _read_run(entry: TensorEntry, box: Box, target: NDArray[Any]) -> None:
    strides = (math.prod(entry.shape[axis + 1 :]) for axis in range(len(entry.shape)))
    start = sum(indices.start * stride for indices, stride in zip(box, strides, strict=True))
    left = memoryview(target.data).cast("B")
    with entry.file.open("rb", buffering=0) as stream:
        stream.seek(entry.offset + start * target.itemsize)
        while left:
            count = stream.readinto(left)  # at most 2 GB a call
            if not count:
                rule = "the file ends before the tensor does; it was whole when its header was read"
                raise InputError(rule, source=str(entry.file), field=entry.name)
            left = left[count:]


def _read_strided(entry: TensorEntry, box: Box, target: NDArray[Any]) -> None:
    mapped = np.memmap(entry.file, dtype=target.dtype, mode="r", offset=entry.offset, shape=entry.shape)
    np.copyto(target, mapped[tuple(slice(indices.start, indices.stop) for indices in box)])
