"""Routing dumps as bytes: the arrays in an npz, a JSON or a PyTorch file, and routing written as npz."""

from __future__ import annotations

import io
import json
import zipfile
from typing import TYPE_CHECKING, Any, TypeVar, cast

import numpy as np

from moiety.errors import InputError
from moiety.workload.sglang_dump import arrays_of_records
from moiety.workload.torch_file import LEGACY_START, is_torch_archive, read_torch_file

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from numpy.typing import NDArray

_Read = TypeVar("_Read")
_MAX_BYTES = 2 * 2**30
_TOO_LARGE = 2**63
_KEYS = ("topk", "counts", "logical_count", "sequence")
_PICKLE_STARTS = (b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")


def arrays_of_file(data: bytes, source: str) -> Mapping[str, NDArray[Any]]:
    """Return the arrays under the known keys; the format is told by content, not by the file's name.

    Raises InputError for bytes of no known format, and for damaged ones. Nothing in them is ever run.
    """
    if data.startswith(b"PK"):
        return _from_zip(data, source)
    if data.startswith(LEGACY_START):
        rule = "is in PyTorch's old format, from before version 1.6"
        raise InputError(rule, source=source, remedy="write it anew: torch.save(torch.load('old.pt'), 'new.pt')")
    if data.startswith(_PICKLE_STARTS):
        rule = "is a Python pickle, which could run anything, not a PyTorch file or a dump"
        raise InputError(rule, source=source, remedy="save its arrays with numpy.savez(topk=...)")
    if data.startswith(b"\x93NUMPY"):
        raise InputError("is a single array without a key", source=source, remedy="save it with numpy.savez(topk=...)")
    return _guarded(source, "JSON", lambda: _of_object(json.loads(data.decode("utf-8-sig")), source, "JSON"))


def _guarded(source: str, what: str, read: Callable[[], _Read]) -> _Read:
    try:
        return read()
    except InputError:
        raise
    except Exception as error:  # noqa: BLE001 - what a broken file makes of the parsers has no common class
        reason = str(error).partition("\n")[0][:200] or type(error).__name__
        raise InputError(f"cannot be read as {what}: {reason}", source=source) from None


def _from_zip(data: bytes, source: str) -> Mapping[str, NDArray[Any]]:
    entries = _guarded(source, "a .npz or .pt file", lambda: _sizes(data))
    if is_torch_archive(entries):

        def read() -> Mapping[str, NDArray[Any]]:
            return _of_object(read_torch_file(data, source=source, max_bytes=_MAX_BYTES), source, "PyTorch")

        return _guarded(source, "a PyTorch file", read)
    return _guarded(source, "a .npz file", lambda: _from_npz(data, entries, source))


def _sizes(data: bytes) -> dict[str, int]:
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        return {entry.filename: entry.file_size for entry in archive.infolist()}


def _from_npz(data: bytes, entries: Mapping[str, int], source: str) -> Mapping[str, NDArray[Any]]:
    wanted = [key for key in _KEYS if f"{key}.npy" in entries]
    size = sum(entries[f"{key}.npy"] for key in wanted)
    if size > _MAX_BYTES:
        raise InputError(f"unpacks to {size:,} bytes; at most {_MAX_BYTES:,} are read", source=source)
    with np.load(io.BytesIO(data), allow_pickle=False) as archive:
        return {key: np.asarray(archive[key]) for key in wanted}


def _of_object(parsed: object, source: str, what: str) -> Mapping[str, NDArray[Any]]:
    """Return the arrays of a JSON object or of the dict that a PyTorch file holds."""
    if not isinstance(parsed, dict):
        held = "object" if what == "JSON" else "dict"
        raise InputError(f"must be a {what} {held} with topk, counts, logical_count or records", source=source)
    found = cast("dict[str, object]", parsed)
    arrays = {key: _array(found[key], source, key) for key in _KEYS if found.get(key) is not None}
    if found.get("records") is not None and not arrays.keys() & {"topk", "counts", "logical_count"}:
        return arrays_of_records(found, source)
    return arrays


def _array(value: object, source: str, key: str) -> NDArray[Any]:
    try:
        array = np.asarray(value)
    except ValueError:
        _refuse_ragged(value, source, key)
        raise
    if array.dtype.kind == "O" and array.ndim:
        _refuse_strange(array, source, key)
    return array


def _refuse_strange(array: NDArray[Any], source: str, key: str) -> None:
    """Raise InputError that names the first entry that is no number, or one of more digits than an array holds."""
    for place, each in np.ndenumerate(array):
        if type(each) is not float and (type(each) is not int or abs(each) >= _TOO_LARGE):
            field = key + "".join(f"[{index}]" for index in place)
            whole = "" if key in {"counts", "logical_count"} else "whole "
            rule = f"must hold {whole}numbers of the usual size"
            raise InputError(rule, source=source, field=field, value="null" if each is None else each)


def _refuse_ragged(value: object, source: str, key: str) -> None:
    """Raise InputError that names the first two rows of nested lists that differ in length; return where none do."""
    level: list[tuple[str, object]] = [(key, value)]
    while level:
        lengths = [(name, len(cast("list[object]", each)) if isinstance(each, list) else -1) for name, each in level]
        first_name, first = lengths[0]
        for name, length in lengths:
            if length != first:
                said = [f"has {n} entries" if n >= 0 else "is a single value" for n in (length, first)]
                raise InputError(f"{said[0]}, {first_name} {said[1]}", source=source, field=name)
        level = [
            (f"{name}[{i}]", each)
            for name, row in level
            if isinstance(row, list)
            for i, each in enumerate(cast("list[object]", row))
        ]


def npz_bytes(arrays: Mapping[str, NDArray[Any]]) -> bytes:
    """Return the arrays, by name, as a `.npz` file.

    The same arrays give the same bytes: the archive's members carry no time of writing.
    """
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        for key, array in arrays.items():
            member = io.BytesIO()
            np.lib.format.write_array(member, np.ascontiguousarray(array), allow_pickle=False)
            entry = zipfile.ZipInfo(f"{key}.npy", date_time=(1980, 1, 1, 0, 0, 0))
            archive.writestr(entry, member.getvalue(), zipfile.ZIP_DEFLATED, compresslevel=1)
    return stream.getvalue()
