"""The placement matrix: runs of numbers, every expert on some node."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from moiety.cli.placement_tables import runs


def test_runs_are_joined() -> None:
    assert runs([0, 1, 2, 3, 8, 10, 11]) == "0-3, 8, 10-11"
    assert runs([]) == ""
    assert runs([7]) == "7"


@given(st.sets(st.integers(0, 500)).map(sorted))
def test_runs_name_just_the_numbers(numbers: list[int]) -> None:
    named: list[int] = []
    for part in filter(None, runs(numbers).split(", ")):
        low, _, high = part.partition("-")
        named += range(int(low), int(high or low) + 1)
    assert named == numbers
