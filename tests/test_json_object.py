"""JSON objects, read strictly."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moiety.errors import InputError
from moiety.json_object import read_json_object

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=10,
)


@given(st.dictionaries(st.text(), VALUES))
def test_what_was_written_is_read(value: dict[str, object]) -> None:
    assert read_json_object(json.dumps(value), source="x.json", remedy="mend it") == value


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "x.json: line 1, column 1: not valid JSON: Expecting value; mend it"),
        ("[1]", "x.json: must hold one JSON object, not list; mend it"),
        ('{"a": NaN}', "x.json: NaN is not a number that the file may hold; write a finite number or null"),
        ('{"a": 1, "a": 2}', "x.json: a: the key is there twice in one object; keep one"),
        (
            "[" * 100_000,
            "x.json: not JSON that can be read: an integer of thousands of digits, or thousands of brackets",
        ),
    ],
)
def test_what_is_no_object_gives_one_message(text: str, message: str) -> None:
    with pytest.raises(InputError) as caught:
        read_json_object(text, source="x.json", remedy="mend it")
    assert str(caught.value).startswith(message)
