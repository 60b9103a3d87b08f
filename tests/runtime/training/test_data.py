"""Rows of training data: read in order, refused with their line where they are wrong."""

from __future__ import annotations

import pytest

from moiety.errors import InputError
from moiety.runtime.training.data import read_rows, rows_of_step


def rows(text: str, max_tokens: int | None = 8) -> tuple[tuple[int, ...], ...]:
    return read_rows(text, source="d.jsonl", vocab_size=10, max_tokens=max_tokens)


def test_rows_are_taken_in_order_and_from_the_first_again() -> None:
    read = rows('{"token_ids": [1, 2]}\n\n{"token_ids": [3, 4]}\n{"token_ids": [5, 6]}\n')
    assert read == ((1, 2), (3, 4), (5, 6))
    assert rows_of_step(read, 0, 2) == ((1, 2), (3, 4))
    assert rows_of_step(read, 1, 2) == ((5, 6), (1, 2))
    assert rows_of_step(read, 0, 4) == ((1, 2), (3, 4), (5, 6), (1, 2))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("\n", "d.jsonl: holds no row"),
        ("[1, 2]", "d.jsonl:1"),
        ("{", "d.jsonl:1"),
        ('{"text": "a"}', "d.jsonl:1: text: no such field"),
        ("{}", "d.jsonl:1: token_ids"),
        ('{"token_ids": "12"}', "must be a list"),
        ('{"token_ids": [1]}', "at least 2 tokens"),
        ('{"token_ids": [1, true]}', r"token_ids\[1\]"),
        ('{"token_ids": [1, 10]}', r"token_ids\[1\] = 10: the vocabulary has the tokens 0 to 9"),
        ('{"token_ids": [-1, 1]}', r"token_ids\[0\] = -1"),
        ('{"token_ids": [1, 2]}\n{"token_ids": [1, 2, 3]}', "d.jsonl:2.*the first has 2 tokens"),
        ('{"token_ids": [1, 2, 3, 4, 5, 6, 7, 8, 9]}', "8 positions"),
    ],
)
def test_other_rows_are_refused_with_their_line(text: str, words: str) -> None:
    with pytest.raises(InputError, match=words):
        rows(text)
