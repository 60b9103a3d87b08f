"""From the text of a file to a Model, or to one message."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moiety.errors import InputError
from moiety.model.catalog import catalog_model_text
from moiety.model.reader import read_model


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "line 1, column 1: not valid JSON"),
        ('{"hidden_size": 4096,\n  "vocab_size": }', "line 2, column 17: not valid JSON: Expecting value"),
        ('{"hidden_size": 4096', "line 1, column 21: not valid JSON"),
        ("{} {}", "line 1, column 4: not valid JSON: Extra data"),
        ("[1, 2]", "must hold one JSON object, not list"),
        ("null", "must hold one JSON object, not NoneType"),
        ('{"hidden_size": NaN}', "NaN is not a number that the file may hold"),
        ('{"hidden_size": -Infinity}', "-Infinity is not a number that the file may hold"),
        ('{"hidden_size": 1' + "0" * 5000 + "}", "an integer of thousands of digits"),
        ("[" * 200_000, "thousands of brackets in each other"),
        ('{"hidden_size": 1, "hidden_size": 2}', "hidden_size: the key is there twice"),
        ("{}", "is missing"),
    ],
    ids=range(12),
)
def test_what_is_not_a_config_gives_one_message(text: str, message: str) -> None:
    with pytest.raises(InputError) as caught:
        read_model(text, name="model", source="config.json")
    assert str(caught.value).startswith("config.json: ")
    assert message in str(caught.value)


@given(text=st.text(max_size=200))
def test_no_text_escapes_as_anything_but_an_input_error(text: str) -> None:
    with pytest.raises(InputError):
        read_model(text, name="model", source="config.json")


@given(cut=st.integers(0, 10**6), junk=st.text(max_size=3))
def test_a_damaged_config_gives_a_model_or_an_input_error(cut: int, junk: str) -> None:
    text = catalog_model_text("gpt-oss-20b")
    cut %= len(text)
    damaged = text[:cut] + junk + text[cut + len(junk) :]
    try:
        outcome = read_model(damaged, name="model", source="config.json").name
    except InputError as error:
        outcome = error.source
    assert outcome in {"model", "config.json"}


def test_a_name_that_cannot_be_printed_is_escaped() -> None:
    model = read_model(catalog_model_text("mixtral-8x7b"), name="a\udcffb", source="s")
    assert model.name == r"a\udcffb"
    assert read_model('{"\\ud800": 1, ' + catalog_model_text("mixtral-8x7b")[1:], name="m", source="s").num_layers == 32
    with pytest.raises(InputError, match=r"^s: '\\ud800': the key is there twice"):
        read_model(r'{"\ud800": 1, "\ud800": 2}', name="m", source="s")


def test_a_byte_order_mark_is_passed_over() -> None:
    text = catalog_model_text("mixtral-8x7b")
    assert read_model("\ufeff" + text, name="m", source="s") == read_model(text, name="m", source="s")
