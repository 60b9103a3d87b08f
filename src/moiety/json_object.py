"""JSON text that holds one object, read strictly: what is not plain JSON gives one message."""

from __future__ import annotations

import json
from collections import Counter
from typing import NoReturn, cast

from moiety.errors import InputError


def read_json_object(text: str, *, source: str, remedy: str) -> dict[str, object]:
    """Return the object in `text`.

    Raises InputError with line and column for malformed JSON, and for NaN, infinities, keys that are there twice and
    anything but an object; `remedy` is the way out.
    """

    def refuse_constant(constant: str) -> NoReturn:
        rule = f"{constant} is not a number that the file may hold"
        raise InputError(rule, source=source, remedy="write a finite number or null")

    try:
        value = json.loads(text.removeprefix("\ufeff"), parse_constant=refuse_constant, object_pairs_hook=unique_keys)
    except InputError as error:
        raise error.at(source) from None
    except json.JSONDecodeError as error:
        rule = f"line {error.lineno}, column {error.colno}: not valid JSON: {error.msg}"
        raise InputError(rule, source=source, remedy=remedy) from None
    except (ValueError, RecursionError):
        rule = "not JSON that can be read: an integer of thousands of digits, or thousands of brackets in each other"
        raise InputError(rule, source=source, remedy=remedy) from None
    if not isinstance(value, dict):
        raise InputError(f"must hold one JSON object, not {type(value).__name__}", source=source, remedy=remedy)
    return cast("dict[str, object]", value)


def unique_keys(pairs: list[tuple[str, object]]) -> dict[str, object]:
    """Return an object that `json.loads` has read (its `object_pairs_hook`); raise InputError for a key twice."""
    unique = dict(pairs)
    if len(unique) < len(pairs):
        twice = Counter(key for key, _ in pairs).most_common(1)[0][0]
        field = twice if twice.isprintable() else repr(twice)
        raise InputError("the key is there twice in one object", field=field, remedy="keep one")
    return unique
