"""Training data: rows of token ids, all of one length, in the order of a JSON Lines file."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

from moiety.errors import InputError
from moiety.json_object import read_json_object

if TYPE_CHECKING:
    from collections.abc import Sequence

Row = tuple[int, ...]
_REMEDY = 'write {"token_ids": [1, 2, 3]} on each line'
_SHORTEST = 2
"""Tokens of a row: one to go by, and one to predict."""


def read_rows(text: str, *, source: str, vocab_size: int, max_tokens: int | None) -> tuple[Row, ...]:
    """Return the rows of a JSON Lines file of `{"token_ids": [...]}`.

    Raises InputError with file, line and field for anything else: for rows of unequal length, of one token, of more
    than `max_tokens` (None: of any length), or with a token outside the vocabulary.
    """
    lines = [(number, line) for number, line in enumerate(text.splitlines(), 1) if line.strip()]
    if not lines:
        raise InputError("holds no row", source=source, remedy=_REMEDY)
    rows: list[Row] = []
    for number, line in lines:
        place = f"{source}:{number}"
        row = _row(line, place, vocab_size)
        if rows and len(row) != len(rows[0]):
            rule = f"rows must be of equal length, and the first has {len(rows[0])} tokens"
            remedy = "cut the text into pieces of one length"
            raise InputError(rule, source=place, field="token_ids", value=f"{len(row)} tokens", remedy=remedy)
        if not rows and max_tokens is not None and len(row) > max_tokens:
            rule = f"the model has {max_tokens} positions"
            raise InputError(rule, source=place, field="token_ids", value=f"{len(row)} tokens", remedy="cut the rows")
        rows.append(row)
    return tuple(rows)


def rows_of_step(rows: Sequence[Row], step: int, batch_size: int) -> tuple[Row, ...]:
    """Return the batch of step `step`, counted from 0: the next rows in order, from the first again after the last."""
    return tuple(rows[index % len(rows)] for index in range(step * batch_size, (step + 1) * batch_size))


def _row(line: str, source: str, vocab_size: int) -> Row:
    fields = read_json_object(line, source=source, remedy=_REMEDY)
    for key in fields:
        if key != "token_ids":
            raise InputError("no such field", source=source, field=key, remedy=_REMEDY)
    value = fields.get("token_ids")
    if not isinstance(value, list):
        raise InputError("must be a list of token ids", source=source, field="token_ids", value=value, remedy=_REMEDY)
    tokens = cast("list[object]", value)
    if len(tokens) < _SHORTEST:
        rule = f"needs at least {_SHORTEST} tokens: the next one is what is learnt"
        raise InputError(rule, source=source, field="token_ids", value=cast("object", value))
    for index, token in enumerate(tokens):
        if isinstance(token, bool) or not isinstance(token, int):
            raise InputError("must be a whole number", source=source, field=f"token_ids[{index}]", value=token)
        if not 0 <= token < vocab_size:
            rule = f"the vocabulary has the tokens 0 to {vocab_size - 1}"
            raise InputError(rule, source=source, field=f"token_ids[{index}]", value=token)
    return tuple(cast("list[int]", tokens))
