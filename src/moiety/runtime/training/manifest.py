"""The manifest of a saved state: a checksum of every tensor's bytes in its files, so that no damage goes unseen."""

from __future__ import annotations

import hashlib
import itertools
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Annotated, NamedTuple

from pydantic import Field, ValidationError

from moiety.errors import InputError
from moiety.files import read_text
from moiety.machine.readings import num_cores
from moiety.records import Record, broken_rule

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path
    from typing import BinaryIO

MANIFEST = "manifest.json"
_CHUNK_BYTES = 1 << 20

Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class Part(Record):
    """Consecutive bytes of a file."""

    name: str
    """The tensor that they are a box of; the file itself where it holds no tensors."""
    size_bytes: Annotated[int, Field(ge=0)]
    sha256: Digest


class ManifestFile(Record):
    """A file as it was written: its parts in order, which are all of it."""

    name: Annotated[str, Field(pattern=r"^[^/\\]+$")]
    parts: tuple[Part, ...]


class Manifest(Record):
    """All files of a state."""

    step: Annotated[int, Field(ge=0)]
    """That the training had come to."""
    files: Annotated[tuple[ManifestFile, ...], Field(min_length=1)]
    sha256: Digest
    """Of the manifest without this field."""

    @classmethod
    def of(cls, step: int, files: Sequence[ManifestFile]) -> Manifest:
        """Return the manifest of files that have been written."""
        unsigned = cls.model_construct(step=step, files=tuple(files))
        return cls(step=step, files=tuple(files), sha256=unsigned.own_sha256())

    def own_sha256(self) -> str:
        """Return the digest that the manifest must carry."""
        return hashlib.sha256(self.model_dump_json(exclude={"sha256"}).encode()).hexdigest()


def summed(file: Path, parts: Sequence[tuple[str, int]]) -> ManifestFile:
    """Return a file that has been written, given the name and the bytes of each part in order; OSError as reading."""
    with file.open("rb") as stream:
        found = tuple(Part(name=name, size_bytes=size, sha256=_sha256(stream, size)) for name, size in parts)
    return ManifestFile(name=file.name, parts=found)


def whole_state(folder: Path) -> Manifest:
    """Return the manifest of a state whose bytes are all as they were written.

    Raises InputError with the first file, and the tensor in it, that is missing, truncated or altered.
    """
    if not folder.is_dir():
        raise InputError("there is no such folder", source=str(folder))
    source = str(folder / MANIFEST)
    try:
        manifest = Manifest.model_validate_json(read_text(source))
    except ValidationError as error:
        first = broken_rule(error)
        raise InputError(f"is damaged: {first.rule}", source=source, field=first.field) from None
    if manifest.sha256 != manifest.own_sha256():
        raise InputError("is damaged: it is not what was written", source=source)
    for each in manifest.files:
        _check_size(folder, each)
    places = [
        _Place(folder / each.name, part, offset)
        for each in manifest.files
        for part, offset in zip(each.parts, _offsets(each), strict=False)
    ]
    with ThreadPoolExecutor(num_cores()) as pool:
        for damage in pool.map(_damage, places):
            if damage is not None:
                raise damage
    return manifest


def _offsets(file: ManifestFile) -> list[int]:
    """Return where each part begins, and where the last one ends."""
    return [0, *itertools.accumulate(part.size_bytes for part in file.parts)]


def _check_size(folder: Path, file: ManifestFile) -> None:
    """Raise InputError where a file is missing or has another size, with the first tensor that is not all there."""
    path, offsets = folder / file.name, _offsets(file)
    try:
        size = path.stat().st_size
    except OSError as error:
        raise InputError(f"cannot be read: {error.strerror or error}", source=str(path)) from None
    if size < offsets[-1]:
        cut = next(part.name for part, end in zip(file.parts, offsets[1:], strict=True) if end > size)
        rule = f"is truncated: the file ends at byte {size:,} of {offsets[-1]:,}"
        raise InputError(rule, source=str(path), field=cut)
    if size > offsets[-1]:
        raise InputError(f"has {size:,} bytes where {offsets[-1]:,} were written", source=str(path))


class _Place(NamedTuple):
    """Where a part lies."""

    path: Path
    part: Part
    offset: int


def _damage(place: _Place) -> InputError | None:
    """Return what is wrong with a part of a file, if anything."""
    path, part, offset = place
    try:
        with path.open("rb") as stream:
            stream.seek(offset)
            found = _sha256(stream, part.size_bytes)
    except OSError as error:
        return InputError(f"cannot be read: {error.strerror or error}", source=str(path), field=part.name)
    if found == part.sha256:
        return None
    return InputError("is damaged: its bytes are not those that were written", source=str(path), field=part.name)


def _sha256(stream: BinaryIO, size_bytes: int) -> str:
    digest = hashlib.sha256()
    while size_bytes and (chunk := stream.read(min(size_bytes, _CHUNK_BYTES))):
        digest.update(chunk)
        size_bytes -= len(chunk)
    return digest.hexdigest()
