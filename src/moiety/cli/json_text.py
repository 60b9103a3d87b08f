"""JSON as people read it: what fits a line stands on one, numbers fill their lines."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, cast

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

WIDTH = 118
_INDENT = 2


def json_text(document: Mapping[str, object]) -> str:
    """Return the document as text; the same document gives the same bytes. NaN and infinities are our bug."""
    return f"{_text(document, 0)}\n"


def _text(value: object, indent: int) -> str:
    compact = json.dumps(value, allow_nan=False)
    if not isinstance(value, (dict, list, tuple)) or len(compact) + indent <= WIDTH:
        return compact
    inner = indent + _INDENT
    margin = " " * inner
    if isinstance(value, dict):
        fields = cast("dict[str, object]", value)
        lines = [f"{margin}{json.dumps(key)}: {_text(each, inner)}" for key, each in fields.items()]
        return "{\n" + ",\n".join(lines) + f"\n{' ' * indent}}}"
    items = list(cast("Iterable[object]", value))
    return "[\n" + _items(items, inner) + f"\n{' ' * indent}]"


def _items(items: list[object], indent: int) -> str:
    """Return the items of a list: short ones side by side, others one below the other."""
    margin = " " * indent
    if any(isinstance(each, dict) for each in items):
        return ",\n".join(margin + _text(each, indent) for each in items)
    lines: list[str] = []
    line = ""
    for each in items:
        text = _text(each, indent)
        if line and (len(line) + len(text) + 2 + indent > WIDTH or "\n" in text):
            lines.append(margin + line)
            line = text
        else:
            line = f"{line}, {text}" if line else text
    return ",\n".join([*lines, margin + line])
