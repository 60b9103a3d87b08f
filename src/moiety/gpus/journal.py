"""The journal of changed limits: on disk before the first is set, gone when all are restored."""

from __future__ import annotations

import fcntl
import os
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pydantic import ValidationError

from moiety.errors import InputError, OutputError
from moiety.files import read_text, write_all
from moiety.records import Record

if TYPE_CHECKING:
    from collections.abc import Generator

DEFAULT_JOURNAL = Path("/var/lib/moiety/gpu-limits.json")
"""One for the machine, whoever sets limits: setting them takes root anyway."""


class Changed(Record):
    """One limit of one GPU that is no longer what it was."""

    uuid: str
    kind: Literal["clock", "power"]
    before_w: float | None = None
    """The power limit to put back; a clock is given back to the GPU."""


class _Content(Record):
    changed: tuple[Changed, ...]


class Journal:
    """A file; what stands in it outlives the process that wrote it."""

    def __init__(self, path: Path = DEFAULT_JOURNAL) -> None:
        self.path = path

    def read(self) -> tuple[Changed, ...]:
        """Return what is changed, nothing without a file; raise InputError for one that is not a journal."""
        if not self.path.exists():
            return ()
        try:
            return _Content.model_validate_json(read_text(self.path)).changed
        except ValidationError as error:
            first = error.errors()[0]
            field = ".".join(str(part) for part in first["loc"]) or None
            remedy = "restore the limits with nvidia-smi -rgc and -pl, then remove the file"
            rule = f"is no journal of GPU limits: {first['msg']}"
            raise InputError(rule, source=str(self.path), field=field, remedy=remedy) from None

    def write(self, changed: tuple[Changed, ...]) -> None:
        """Make the file say that these are changed, through a power cut too; without any there is no file."""
        if changed:
            text = _Content(changed=changed).model_dump_json(indent=2) + "\n"
            write_all(self.path.parent, {self.path.name: text})
        else:
            self.path.unlink(missing_ok=True)

    @contextmanager
    def owned(self) -> Generator[None]:
        """Keep others from setting or restoring limits meanwhile; raise InputError while someone else does.

        The lock ends with the process, however it ends.
        """
        lock = self.path.with_name(f"{self.path.name}.lock")
        try:
            lock.parent.mkdir(parents=True, exist_ok=True)
            handle = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        except OSError as error:
            raise OutputError(f"{lock}: cannot be written: {error.strerror}; nothing was changed") from None
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(handle)
            rule = "another run holds limits on this machine's GPUs"
            raise InputError(rule, source=str(self.path), remedy="end that run first") from None
        try:
            yield
        finally:
            os.close(handle)
