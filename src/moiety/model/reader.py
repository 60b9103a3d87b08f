"""From the text of a `config.json` to a Model."""

from __future__ import annotations

import json
from collections import Counter
from typing import TYPE_CHECKING, NoReturn, cast

from moiety.errors import InputError
from moiety.model.huggingface import model_from_config

if TYPE_CHECKING:
    from moiety.model.model import Model

_REMEDY = "give a Hugging Face config.json"


def read_model(text: str, *, name: str, source: str) -> Model:
    """Return the model whose `config.json` is `text`; raise InputError with line and column for malformed JSON."""
    return model_from_config(_parse_object(text, source), name=name, source=source)


def _parse_object(text: str, source: str) -> dict[str, object]:
    def refuse_constant(constant: str) -> NoReturn:
        rule = f"{constant} is not a number that a model can have"
        raise InputError(rule, source=source, remedy="write a finite number or null")

    def object_of(pairs: list[tuple[str, object]]) -> dict[str, object]:
        unique = dict(pairs)
        if len(unique) < len(pairs):
            twice = Counter(key for key, _ in pairs).most_common(1)[0][0]
            raise InputError(
                "the key is there twice in one object",
                source=source,
                field=twice if twice.isprintable() else repr(twice),
                remedy="keep one",
            )
        return unique

    try:
        value = json.loads(text.removeprefix("\ufeff"), parse_constant=refuse_constant, object_pairs_hook=object_of)
    except json.JSONDecodeError as error:
        rule = f"line {error.lineno}, column {error.colno}: not valid JSON: {error.msg}"
        raise InputError(rule, source=source, remedy=_REMEDY) from None
    except (ValueError, RecursionError):
        rule = "not JSON that can be read: an integer of thousands of digits, or thousands of brackets in each other"
        raise InputError(rule, source=source, remedy=_REMEDY) from None
    if not isinstance(value, dict):
        rule = f"must hold one JSON object, not {type(value).__name__}"
        raise InputError(rule, source=source, remedy=_REMEDY)
    return cast("dict[str, object]", value)
