"""The header of a safetensors file: every tensor's name, number format, shape and place; no weights are read."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, BinaryIO, cast

from moiety.errors import InputError
from moiety.json_object import read_json_object

if TYPE_CHECKING:
    from pathlib import Path

BITS: dict[str, int] = {
    "BOOL": 8, "U8": 8, "I8": 8, "U16": 16, "I16": 16, "U32": 32, "I32": 32, "U64": 64, "I64": 64,
    "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6, "F8_E4M3": 8, "F8_E5M2": 8, "F8_E8M0": 8, "F8_E4M3FNUZ": 8, "F8_E5M2FNUZ": 8,
    "F16": 16, "BF16": 16, "F32": 32, "F64": 64, "C64": 64,
}  # fmt: skip
"""Bits of an element, by the name that safetensors gives the number format."""
_MAX_HEADER_BYTES = 100_000_000  # what the safetensors library accepts
_LENGTH_BYTES = 8
_DOWNLOAD = "the file is damaged or not downloaded to its end: fetch it again"


@dataclass(frozen=True, slots=True)
class TensorEntry:
    """One tensor in a file."""

    name: str
    dtype: str
    """Number format in the words of safetensors, such as BF16."""
    shape: tuple[int, ...]
    file: Path
    offset: int
    """Position in the file of the tensor's first byte."""

    @property
    def size_bytes(self) -> int:
        """Bytes that the tensor takes in the file."""
        return math.prod(self.shape) * BITS[self.dtype] // 8


def read_header(file: Path) -> tuple[TensorEntry, ...]:
    """Return the tensors of a safetensors file, in the order of its header.

    Raises InputError, naming file and tensor, where the file cannot be opened, ends before its header or its data
    do, or holds a header that is not JSON or does not describe tensors.
    """
    try:
        with file.open("rb") as stream:
            size_bytes = stream.seek(0, 2)
            stream.seek(0)
            text, data_start = _header_text(stream, file, size_bytes)
    except OSError as error:
        raise InputError(f"cannot be read: {error.strerror}", source=str(file)) from None
    header = read_json_object(text, source=str(file), remedy="is it a safetensors file? " + _DOWNLOAD)
    header.pop("__metadata__", None)
    return tuple(_entry(name, value, file, data_start, size_bytes) for name, value in header.items())


def _header_text(stream: BinaryIO, file: Path, size_bytes: int) -> tuple[str, int]:
    start = stream.read(_LENGTH_BYTES)
    if start == b"version ":
        raise InputError("is a pointer of Git LFS, not the weights", source=str(file), remedy="run `git lfs pull`")
    if len(start) < _LENGTH_BYTES:
        raise InputError(f"is truncated: {size_bytes} bytes hold no header", source=str(file), remedy=_DOWNLOAD)
    length = int.from_bytes(start, "little")
    if length > _MAX_HEADER_BYTES:
        rule = f"is not a safetensors file: a header of {length:,} bytes, of at most {_MAX_HEADER_BYTES:,}"
        raise InputError(rule, source=str(file), remedy=_DOWNLOAD)
    if _LENGTH_BYTES + length > size_bytes:
        rule = f"is truncated: the header ends at byte {_LENGTH_BYTES + length:,}, the file at {size_bytes:,}"
        raise InputError(rule, source=str(file), remedy=_DOWNLOAD)
    try:
        return stream.read(length).decode(), _LENGTH_BYTES + length
    except UnicodeDecodeError:
        raise InputError("the header is not JSON: not UTF-8 text", source=str(file), remedy=_DOWNLOAD) from None


def _entry(name: str, value: object, file: Path, data_start: int, size_bytes: int) -> TensorEntry:
    described = _object(value)
    dtype, shape, offsets = (described.get(key) for key in ("dtype", "shape", "data_offsets"))
    if not isinstance(dtype, str) or not _is_naturals(shape) or not _is_naturals(offsets, length=2):
        rule = "the header must give dtype, shape and data_offsets of the tensor"
        raise InputError(rule, source=str(file), field=name, value=value, remedy=_DOWNLOAD)
    if dtype not in BITS:
        raise InputError(
            "unsupported dtype", source=str(file), field=name, value=dtype, remedy=f"known: {', '.join(BITS)}"
        )
    begin, end = cast("list[int]", offsets)
    entry = TensorEntry(name, dtype, tuple(cast("list[int]", shape)), file, data_start + begin)
    if data_start + end > size_bytes:
        rule = f"is truncated: the tensor ends at byte {data_start + end:,}, the file at {size_bytes:,}"
        raise InputError(rule, source=str(file), field=name, remedy=_DOWNLOAD)
    if end - begin != entry.size_bytes:
        rule = f"{dtype} of shape {list(entry.shape)} takes {entry.size_bytes:,} bytes, not {end - begin:,}"
        raise InputError(rule, source=str(file), field=name, remedy=_DOWNLOAD)
    return entry


def _object(value: object) -> dict[str, object]:
    return cast("dict[str, object]", value) if isinstance(value, dict) else {}


def _is_naturals(value: object, length: int | None = None) -> bool:
    if not isinstance(value, list):
        return False
    numbers = cast("list[object]", value)
    return len(numbers) == (length or len(numbers)) and all(type(each) is int and each >= 0 for each in numbers)
