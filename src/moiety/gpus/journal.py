"""The journal of changed limits: on disk before the first is set, gone when all are restored."""

from __future__ import annotations

from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pydantic import ValidationError

from moiety.errors import InputError
from moiety.files import held_alone, read_text, write_all
from moiety.records import Record, broken_rule

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
            first = broken_rule(error)
            remedy = "restore the limits with nvidia-smi -rgc and -pl, then remove the file"
            rule = f"is no journal of GPU limits: {first.rule}"
            raise InputError(rule, source=str(self.path), field=first.field, remedy=remedy) from None

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
        rule, remedy = "another run holds limits on this machine's GPUs", "end that run first"
        taken = InputError(rule, source=str(self.path), remedy=remedy)
        with held_alone(self.path.with_name(f"{self.path.name}.lock"), taken):
            yield
