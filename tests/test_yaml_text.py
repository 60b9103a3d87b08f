"""YAML: what scalars mean, and the line each value stands on."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moiety.errors import InputError
from moiety.yaml_text import Fields, Node, parse_yaml


def value_of(scalar: str) -> object:
    root = parse_yaml(f"key: {scalar}\n", source="x.yaml").value
    assert isinstance(root, dict)
    return root["key"].value


@pytest.mark.parametrize(
    ("scalar", "expected"),
    [
        ("7", 7),
        ("-7", -7),
        ("2_109_312", 2109312),
        ("1e6", 1e6),  # text in YAML 1.1
        (".5", 0.5),
        ("-.inf", -math.inf),
        ("true", True),
        ("~", None),
        ("", None),
        ("no", "no"),  # false in YAML 1.1
        ("1:30", "1:30"),  # 90 in YAML 1.1
        ("0x10", "0x10"),
        ("2024-01-01", "2024-01-01"),
        ("'7'", "7"),
        ("'true'", "true"),
        ("900 GB/s", "900 GB/s"),
    ],
)
def test_plain_scalars_mean_what_they_look_like(scalar: str, expected: object) -> None:
    found = value_of(scalar)
    assert found == expected
    assert type(found) is type(expected)


def test_nan_is_a_number() -> None:
    found = value_of(".nan")
    assert isinstance(found, float)
    assert math.isnan(found)


def test_every_value_knows_its_line() -> None:
    root = parse_yaml("# top\na: 1\nb:\n  - x\n  - {c: 2,\n     d: 3}\n", source="x.yaml").value
    assert isinstance(root, dict)
    assert root["a"] == Node(1, 2)
    listed = root["b"].value
    assert isinstance(listed, list)
    assert [item.line for item in listed] == [4, 5]
    inner = listed[1].value
    assert isinstance(inner, dict)
    assert {key: node.line for key, node in inner.items()} == {"c": 5, "d": 6}


def test_texts_may_be_one_or_a_list() -> None:
    def texts(value: str) -> tuple[str, ...]:
        fields = Fields.parse(f"assumed: {value}\n", source="x.yaml", what="test", known=["assumed"])
        return fields.texts("assumed")

    assert texts("[a, b]") == ("a", "b")
    assert texts("a") == ("a",)
    assert texts("") == ()
    with pytest.raises(InputError, match="list of texts"):
        texts("[1]")


@given(st.integers(-(10**99), 10**99))
def test_whole_numbers_stay_whole(number: int) -> None:
    assert value_of(str(number)) == number


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_floats_survive(number: float) -> None:
    assert value_of(repr(number)) == number
