"""Ranges of numbers and tracks of lines."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from moiety.report.lanes import number_ranges
from moiety.report.routing import tracks
from tests.report.dot_graph import numbers


@given(st.sets(st.integers(0, 60)))
def test_ranges_hold_the_numbers(held: set[int]) -> None:
    assert numbers(number_ranges(held, most=100)) == sorted(held)


@given(st.sets(st.integers(0, 10_000), min_size=20), st.integers(2, 6))
def test_long_lists_say_how_many_there_are(held: set[int], most: int) -> None:
    text = number_ranges(held, most=most)
    assert len(text.split(", ")) <= most + 1
    assert "..." not in text or f"({len(held)} in all)" in text


@given(st.lists(st.tuples(st.integers(0, 30), st.integers(0, 30)).map(sorted), max_size=20))
def test_intervals_on_one_track_do_not_touch(intervals: list[list[int]]) -> None:
    spans = {number: (float(low), float(high)) for number, (low, high) in enumerate(intervals)}
    chosen = tracks(dict(spans))
    assert set(chosen) == set(spans)
    for one, (low, high) in spans.items():
        for other, (start, end) in spans.items():
            if one != other and chosen[one] == chosen[other]:
                assert high < start or end < low
