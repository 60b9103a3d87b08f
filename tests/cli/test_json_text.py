"""JSON texts: the same values, in lines that people can read."""

from __future__ import annotations

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moiety.cli.json_text import WIDTH, json_text

SCALARS = (
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=30)
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=12) | st.dictionaries(st.text(max_size=12), inner, max_size=6),
    max_leaves=60,
)


@given(st.dictionaries(st.text(max_size=12), VALUES))
def test_the_text_holds_the_same_values(document: dict[str, object]) -> None:
    assert json.loads(json_text(document)) == document


@given(st.lists(st.integers(0, 10**6), min_size=50, max_size=400))
def test_numbers_fill_lines_of_readable_width(numbers: list[int]) -> None:
    lines = json_text({"numbers": numbers}).splitlines()
    assert max(map(len, lines)) <= WIDTH + 1
    assert len(lines) < len(numbers) / 3


@pytest.mark.parametrize("number", [math.nan, math.inf])
def test_what_json_cannot_hold_is_our_bug(number: float) -> None:
    with pytest.raises(ValueError, match="JSON"):
        json_text({"number": number})
