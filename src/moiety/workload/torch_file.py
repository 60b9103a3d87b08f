"""PyTorch files read without PyTorch: plain containers and tensors as numpy arrays; nothing in them is ever run."""

from __future__ import annotations

import io
import pickle
import pickletools
import zipfile
from collections import OrderedDict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, cast

import numpy as np

from moiety.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from numpy.typing import NDArray

LEGACY_START = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."
"""How files begin that PyTorch wrote before its version 1.6: the pickle of a magic number."""
_STORAGE_TYPES = {
    "DoubleStorage": "f8",
    "FloatStorage": "f4",
    "HalfStorage": "f2",
    "BFloat16Storage": "u2",  # the upper half of a float32
    "LongStorage": "i8",
    "IntStorage": "i4",
    "ShortStorage": "i2",
    "CharStorage": "i1",
    "ByteStorage": "u1",
    "BoolStorage": "?",
}
_MAX_DIMENSIONS = 32
_OPCODES = frozenset({
    "PROTO", "FRAME", "STOP", "MARK", "NONE", "NEWTRUE", "NEWFALSE",
    "BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT", "BINUNICODE", "SHORT_BINUNICODE",
    "EMPTY_DICT", "EMPTY_LIST", "EMPTY_TUPLE", "TUPLE", "TUPLE1", "TUPLE2", "TUPLE3",
    "APPEND", "APPENDS", "SETITEM", "SETITEMS",
    "BINPUT", "LONG_BINPUT", "MEMOIZE", "BINGET", "LONG_BINGET",
    "GLOBAL", "STACK_GLOBAL", "BINPERSID", "REDUCE",
})  # fmt: skip
"""All that tensors in dicts, lists and tuples need; what makes objects, changes them or calls by name is not here."""


def is_torch_archive(names: Iterable[str]) -> bool:
    """Return whether the members of a zip file are those of a PyTorch file: `NAME/data.pkl`."""
    return any(name.count("/") == 1 and name.endswith("/data.pkl") for name in names)


def read_torch_file(data: bytes, *, source: str, max_bytes: int) -> object:
    """Return what `torch.save` wrote into a zip archive, tensors as numpy arrays (bfloat16 widened to float32).

    Dicts, lists, tuples, numbers, text and tensors of the usual types are read; `max_bytes` bounds the unpacked
    members and each tensor. Raises InputError for anything else, and for damaged files; no code from the file is
    looked up or run.
    """
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        sizes = {entry.filename: entry.file_size for entry in archive.infolist()}
        if sum(sizes.values()) > max_bytes:
            raise InputError(f"unpacks to {sum(sizes.values()):,} bytes; at most {max_bytes:,} are read", source=source)
        root = next(name for name in sizes if is_torch_archive([name])).removesuffix("data.pkl")
        order = archive.read(f"{root}byteorder") if f"{root}byteorder" in sizes else b"little"
        if order not in {b"little", b"big"}:
            raise InputError(f"has the byte order {order[:20]!r}; little or big is known", source=source)
        pickled = archive.read(f"{root}data.pkl")
        _check_opcodes(pickled, source)
        storages = _Storages(archive, sizes, f"{root}data/", "<" if order == b"little" else ">", max_bytes, source)
        return _TensorUnpickler(pickled, storages).load()


def _check_opcodes(pickled: bytes, source: str) -> None:
    """Refuse a pickle with an instruction that plain tensors do not need, before any of it is followed."""
    for opcode, argument, _ in pickletools.genops(pickled):
        name = opcode.name
        if name not in _OPCODES:
            raise _not_plain(source, f"needs the pickle instruction {name}")
        if name == "LONG_BINPUT" and cast("int", argument) > len(pickled):
            raise InputError(f"is damaged: its pickle numbers an object {argument}", source=source)


def _not_plain(source: str, why: str) -> InputError:
    rule = f"holds more than tensors in dicts and lists: it {why}, which is not followed"
    return InputError(rule, source=source, remedy="save only the tensors, e.g. torch.save({'logical_count': ...})")


@dataclass(frozen=True, slots=True)
class _StorageType:
    """A class name of a PyTorch storage, as the pickle names it; it cannot be called."""

    name: str
    code: str


@dataclass(frozen=True, slots=True)
class _Storage:
    """A flat run of numbers that tensors are views of."""

    key: str
    kind: _StorageType
    size: int


@dataclass(slots=True)
class _Storages:
    """The storages of an archive, read when a tensor first needs them."""

    archive: zipfile.ZipFile
    sizes: dict[str, int]
    folder: str
    order: Literal["<", ">"]
    max_bytes: int
    source: str
    read: dict[_Storage, NDArray[Any]] = field(default_factory=dict[_Storage, "NDArray[Any]"])

    def numbers(self, storage: _Storage) -> NDArray[Any]:
        """Return the storage's numbers, one dimension."""
        if storage not in self.read:
            dtype = np.dtype(storage.kind.code).newbyteorder(self.order)
            name = f"{self.folder}{storage.key}"
            held = self.sizes.get(name, -1)
            if held < 0 or held // dtype.itemsize < storage.size:
                found = "is missing" if held < 0 else f"holds {held:,} bytes"
                rule = (
                    f"is damaged: {storage.size:,} numbers of {dtype.itemsize} bytes are expected; the member {found}"
                )
                raise InputError(rule, source=self.source, field=name)
            numbers = np.frombuffer(self.archive.read(name), dtype, storage.size)
            numbers = numbers.astype(dtype.newbyteorder("="), copy=False)
            if storage.kind.name == "BFloat16Storage":
                numbers = (numbers.astype(np.uint32) << 16).view(np.float32)
            self.read[storage] = numbers
        return self.read[storage]


class _TensorUnpickler(pickle.Unpickler):
    """An unpickler that knows ordered dicts and tensors by name, and nothing else."""

    def __init__(self, pickled: bytes, storages: _Storages) -> None:
        super().__init__(io.BytesIO(pickled))
        self._storages = storages
        self._known: dict[tuple[str, str], object] = {
            ("collections", "OrderedDict"): OrderedDict,
            ("torch._utils", "_rebuild_tensor_v2"): self._tensor,
        }
        for name, code in _STORAGE_TYPES.items():
            self._known["torch", name] = _StorageType(name, code)

    def find_class(self, module_name: str, global_name: str, /) -> object:
        """Return what a name of the pickle stands for; nothing is imported."""
        known = self._known.get((module_name, global_name))
        if known is None:
            raise _not_plain(self._storages.source, f"names {f'{module_name}.{global_name}'[:100]!r}")
        return known

    def persistent_load(self, pid: object, /) -> _Storage:
        """Return the storage that a reference of the pickle means."""
        match pid:
            case ("storage", _StorageType() as kind, str(key), str(), int(size)) if size >= 0:
                return _Storage(key, kind, size)
            case _:
                raise InputError("is damaged: a reference in its pickle is not one to a storage", source=self._source)

    @property
    def _source(self) -> str:
        return self._storages.source

    def _tensor(self, storage: object, offset: object, size: object, stride: object, *_: object) -> NDArray[Any]:
        """Return the view of the storage that a tensor is, as an array of its own shape."""
        shape, steps = _whole_numbers(size), _whole_numbers(stride)
        starts = _whole_numbers((offset,))
        if not isinstance(storage, _Storage) or shape is None or steps is None or starts is None:
            raise InputError("is damaged: a tensor in its pickle has no shape", source=self._source)
        if len(shape) != len(steps) or len(shape) > _MAX_DIMENSIONS:
            rule = f"is damaged: a tensor has {len(shape)} dimensions and {len(steps)} strides"
            raise InputError(rule, source=self._source)
        numbers = self._storages.numbers(storage)
        start, count = starts[0], 1
        for length in shape:
            count *= length
        if max((count, *shape)) * numbers.itemsize > self._storages.max_bytes:
            rule = f"holds a tensor of shape {list(shape)}; at most {self._storages.max_bytes:,} bytes are read"
            raise InputError(rule, source=self._source)
        if count == 0:
            return np.zeros(shape, numbers.dtype)
        last = start + sum((length - 1) * step for length, step in zip(shape, steps, strict=True))
        if last >= len(numbers):
            rule = f"is damaged: a tensor reaches number {last:,} of a storage of {len(numbers):,}"
            raise InputError(rule, source=self._source)
        byte_steps = tuple(step * numbers.itemsize for step in steps)
        return np.lib.stride_tricks.as_strided(numbers[start:], shape, byte_steps, writeable=False)


def _whole_numbers(value: object) -> tuple[int, ...] | None:
    """Return the tuple where it holds whole numbers from 0, else None."""
    if not isinstance(value, tuple):
        return None
    numbers = cast("tuple[object, ...]", value)
    whole = tuple(each for each in numbers if type(each) is int and each >= 0)
    return whole if len(whole) == len(numbers) else None
