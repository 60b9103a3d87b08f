"""The prompts of a run: JSON Lines of token ids or texts, or a few of our own."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

from moiety.errors import InputError, nearest
from moiety.json_object import read_json_object

if TYPE_CHECKING:
    from collections.abc import Sequence

    from moiety.model.model import Model

_KEYS = ("token_ids", "text")
_REMEDY = 'write {"token_ids": [1, 2, 3]} or {"text": "..."} on each line'
_OWN_LENGTHS = (12, 7, 16, 9)
"""Tokens of the prompts that are made up where none are given; of different lengths, as real ones are."""


@dataclass(frozen=True, slots=True)
class Prompt:
    """One prompt as it was given: token ids, or a text that a tokenizer makes into them."""

    source: str
    """File and line."""
    token_ids: tuple[int, ...] = ()
    text: str | None = None


def read_prompts(text: str, *, source: str) -> tuple[Prompt, ...]:
    """Return the prompts of a JSON Lines file; raise InputError with file, line and field for anything else."""
    lines = [(number, line) for number, line in enumerate(text.splitlines(), 1) if line.strip()]
    if not lines:
        raise InputError("holds no prompt", source=source, remedy=_REMEDY)
    return tuple(_prompt(line, f"{source}:{number}") for number, line in lines)


def made_up_prompts(model: Model, number: int, max_new_tokens: int, seed: int) -> tuple[Prompt, ...]:
    """Return `number` prompts of random tokens, the same for the same seed."""
    draw = random.Random(seed)  # noqa: S311 - for prompts, not for secrets
    room = max((model.max_position_embeddings or max_new_tokens + max(_OWN_LENGTHS)) - max_new_tokens, 1)
    lengths = [min(_OWN_LENGTHS[index % len(_OWN_LENGTHS)], room) for index in range(number)]
    return tuple(
        Prompt("made up", tuple(draw.randrange(model.vocab_size) for _ in range(length))) for length in lengths
    )


def check_prompts(prompts: Sequence[Prompt], model: Model, max_new_tokens: int) -> None:
    """Raise InputError for tokens outside the vocabulary, and for what the model's positions have no room for."""
    for each in prompts:
        for index, token in enumerate(each.token_ids):
            if not 0 <= token < model.vocab_size:
                rule = f"the vocabulary has the tokens 0 to {model.vocab_size - 1}"
                raise InputError(rule, source=each.source, field=f"token_ids[{index}]", value=token)
        most = model.max_position_embeddings
        length = len(each.token_ids) + max_new_tokens
        if most is not None and length > most:
            rule = f"has {len(each.token_ids)} tokens, with {max_new_tokens} new ones {length}; "
            rule += f"the model has {most} positions"
            field = "token_ids" if each.text is None else "text"
            remedy = "shorten it, or ask for fewer --max-new-tokens"
            raise InputError(rule, source=each.source, field=field, remedy=remedy)


def _prompt(line: str, source: str) -> Prompt:
    fields = read_json_object(line, source=source, remedy=_REMEDY)
    for key in fields:
        if key not in _KEYS:
            raise InputError("no such field", source=source, field=key, remedy=nearest(key, _KEYS))
    if len(fields) != 1:
        rule = "has token ids and a text; it must have one of them" if fields else "has neither token_ids nor text"
        raise InputError(rule, source=source, remedy=_REMEDY)
    if "text" in fields:
        text = fields["text"]
        if not isinstance(text, str) or not text:
            raise InputError("must be a text of at least one character", source=source, field="text", value=text)
        return Prompt(source, text=text)
    return Prompt(source, _token_ids(fields["token_ids"], source))


def _token_ids(value: object, source: str) -> tuple[int, ...]:
    tokens = cast("list[object]", value) if isinstance(value, list) else []
    if not tokens:
        rule = "must be a list of at least one token id"
        raise InputError(rule, source=source, field="token_ids", value=cast("object", value))
    for index, token in enumerate(tokens):
        if isinstance(token, bool) or not isinstance(token, int):
            raise InputError("must be a whole number", source=source, field=f"token_ids[{index}]", value=token)
    return tuple(cast("list[int]", tokens))
