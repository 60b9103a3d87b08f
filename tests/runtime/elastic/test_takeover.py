"""Takeover: laws of who holds which experts afterwards."""

from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from moiety.runtime.elastic.takeover import slots_needed, taken_over


@st.composite
def layers(draw: st.DrawFn) -> tuple[list[tuple[int, ...]], int, int]:
    """Return what each rank holds, how many experts there are, and slots a rank that hold them."""
    count = draw(st.integers(1, 12))
    ranks = draw(st.integers(1, 6))
    held = [tuple(draw(st.permutations(range(count)))[: draw(st.integers(0, count))]) for _ in range(ranks)]
    before = draw(st.integers(0, count))
    return held, count, slots_needed(count, ranks, before)


@given(case=layers())
def test_every_expert_has_a_slot_and_no_rank_two_copies(case: tuple[list[tuple[int, ...]], int, int]) -> None:
    held, count, width = case
    row = taken_over(held, count, width)
    assert set(row) == set(range(count))
    ranks = [row[first : first + width] for first in range(0, len(row), width)]
    assert len(ranks) == len(held)
    assert all(len(set(each)) == width for each in ranks)


@given(case=layers())
def test_what_is_held_stays_unless_there_is_no_room_for_it(case: tuple[list[tuple[int, ...]], int, int]) -> None:
    held, count, width = case
    row = taken_over(held, count, width)
    ranks = [row[first : first + width] for first in range(0, len(row), width)]
    copies = Counter(expert for each in held for expert in each)
    homeless = count - len(copies)
    moved = sum(len(set(before) - set(after)) for before, after in zip(held, ranks, strict=True))
    too_many = sum(max(len(each) - width, 0) for each in held)
    free = sum(max(width - len(each), 0) for each in held)
    assert moved <= too_many + max(homeless + too_many - free, 0)


@given(case=layers())
def test_where_all_fits_nothing_moves(case: tuple[list[tuple[int, ...]], int, int]) -> None:
    held, count, width = case
    row = taken_over(held, count, width)
    again = [row[first : first + width] for first in range(0, len(row), width)]
    assert taken_over(again, count, width) == row
