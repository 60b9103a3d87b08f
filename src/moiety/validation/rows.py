"""Files of measurements: one JSON object a line; a malformed line is reported and does not stop the rest."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pydantic import ValidationError

from moiety.errors import InputError
from moiety.files import read_bytes
from moiety.json_object import unique_keys
from moiety.records import broken_rule
from moiety.validation.serving_row import ServingRow
from moiety.validation.system_row import SystemRow

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

_LONGEST_LINE = 1_000_000


@dataclass(frozen=True, slots=True)
class ReadRow:
    """A row and where it stands."""

    row: ServingRow | SystemRow
    line: int


@dataclass(frozen=True, slots=True)
class MalformedLine:
    """A line that is no row, and why."""

    line: int
    reason: str


@dataclass(frozen=True, slots=True)
class ReadRows:
    """What a file holds."""

    source: str
    rows: tuple[ReadRow, ...]
    malformed: tuple[MalformedLine, ...]


def read_rows(path: Path) -> ReadRows:
    """Return the rows of a file; raise InputError where it cannot be read at all."""
    return rows_of_text(read_bytes(path), str(path))


def rows_of_text(text: bytes, source: str) -> ReadRows:
    """Return the rows of a text in JSON Lines."""
    rows, malformed = list[ReadRow](), list[MalformedLine]()
    for number, line in enumerate(text.split(b"\n"), 1):
        if not line.strip():
            continue
        try:
            rows.append(ReadRow(_row(line), number))
        except InputError as error:
            malformed.append(MalformedLine(number, str(error)))
    return ReadRows(source, tuple(rows), tuple(malformed))


def refuse_empty(files: Sequence[ReadRows]) -> None:
    """Raise InputError where no file holds a row."""
    if not any(file.rows for file in files):
        first = next((f"line {each.line}: {each.reason}" for file in files for each in file.malformed), "it is empty")
        rule = f"holds no row of measurements; {first}"
        raise InputError(rule, source=", ".join(file.source for file in files), remedy="one JSON object a line")


def _row(line: bytes) -> ServingRow | SystemRow:
    if len(line) > _LONGEST_LINE:
        raise InputError(f"is longer than {_LONGEST_LINE:,} bytes")
    try:
        document: object = json.loads(line, object_pairs_hook=unique_keys)
    except (ValueError, RecursionError):
        raise InputError("is no JSON") from None
    if not isinstance(document, dict):
        raise InputError("is no JSON object")
    kind = SystemRow if "kind" in document else ServingRow
    try:
        return kind.model_validate(document)
    except ValidationError as error:
        first = broken_rule(error)
    raise InputError(first.rule, field=first.field, value=first.value)
