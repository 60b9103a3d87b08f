"""Messages: the place, the value, the rule and the way out, in one line."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moiety.errors import InputError, MoietyError, OutputError, nearest


def test_message_names_everything() -> None:
    error = InputError(
        "does not divide num_experts=256", source="plan.yaml:3", field="ep", value=12, remedy="try 8, 16, 32"
    )
    assert str(error) == "plan.yaml:3: ep = 12: does not divide num_experts=256; try 8, 16, 32"


def test_message_leaves_out_what_is_not_known() -> None:
    assert str(InputError("is empty")) == "is empty"
    assert str(InputError("is empty", source="x.yaml")) == "x.yaml: is empty"
    assert str(InputError("is missing", field="name")) == "name: is missing"


def test_source_is_added_once() -> None:
    error = InputError("is missing", field="name", remedy="add it")
    assert str(error.at("a.yaml")) == "a.yaml: name: is missing; add it"
    assert str(error.at("a.yaml").at("b.yaml")) == "a.yaml: name: is missing; add it"


@pytest.mark.parametrize(
    "value",
    ["x" * 10_000, 10**5000, -(10**5000), [10**5000], math.nan, b"\xff" * 1000, "two\nlines", {"a": [1] * 999}],
    ids=lambda value: type(value).__name__,
)
def test_value_is_shown_in_one_short_line(value: object) -> None:
    message = str(InputError("must be small", field="x", value=value))
    assert len(message) < 200
    assert "\n" not in message


def test_endless_value_is_shown() -> None:
    endless: list[object] = []
    for _ in range(100_000):
        endless = [endless]
    assert "too large to show" in str(InputError("must be flat", field="x", value=endless))


def test_exit_codes_and_tree() -> None:
    assert issubclass(InputError, MoietyError)
    assert issubclass(OutputError, MoietyError)
    assert InputError.exit_code == OutputError.exit_code == 2


def test_nearest_name() -> None:
    assert nearest("h20", ["h100", "h200", "a100"]) == "did you mean 'h200'?"
    assert nearest("H200", ["h100", "h200"]) == "did you mean 'h200'?"
    assert nearest("zzzzzz", ["h200", "h100"]) == "known: h100, h200"


@given(st.text(), st.lists(st.text(min_size=1), min_size=1, max_size=5))
def test_nearest_always_answers(name: str, known: list[str]) -> None:
    answer = nearest(name, known)
    assert answer.startswith(("did you mean ", "known: "))
