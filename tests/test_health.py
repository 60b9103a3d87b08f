"""Laws of slowness: whatever the work that each rank has, none is said to be slower than it is."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moiety.health import FEWEST_WINDOWS, paces_beside_past, relative_times, slowness

KINDS = 3
WORK = st.lists(st.tuples(*[st.integers(0, 1000)] * KINDS), min_size=3, max_size=9).map(np.array)
LAWS = st.tuples(st.floats(1e-3, 1), *[st.floats(0, 1)] * KINDS).map(np.array)
"""Of a step's seconds: those that it takes in any case, and those of a unit of each kind of work."""


def seconds(work: np.ndarray, law: np.ndarray) -> np.ndarray:
    return law[0] + work @ law[1:]


@given(WORK, LAWS)
def test_uneven_work_makes_nobody_slow(work: np.ndarray, law: np.ndarray) -> None:
    relative = relative_times(seconds(work, law), work)
    assert (relative <= 1 + 1e-9).all()
    assert (slowness(relative, 1.25) == 1).all()


@given(WORK, LAWS, st.floats(1, 10), st.integers(0, 8))
def test_a_slow_rank_is_never_said_to_be_slower_than_it_is(
    work: np.ndarray, law: np.ndarray, factor: float, number: int
) -> None:
    own_s, slow = seconds(work, law), number % len(work)
    own_s[slow] *= factor
    relative = relative_times(own_s, work)
    assert relative[slow] <= factor * (1 + 1e-9)
    assert (np.delete(relative, slow) <= 1 + 1e-9).all()


@pytest.mark.parametrize("num_ranks", [3, 4, 8])
def test_a_slow_rank_with_no_more_work_than_the_others_is_found(num_ranks: int) -> None:
    work = np.arange(num_ranks, 0, -1)[:, None] * np.ones((1, KINDS))
    own_s = seconds(work, np.array([1.0, 0.1, 0.1, 0.1]))
    own_s[-1] *= 4.0
    relative = relative_times(own_s, work)
    assert relative.argmax() == num_ranks - 1
    assert relative[-1] > 1.5


RANKS, WINDOWS = 2, 16
TABLES = st.lists(
    st.tuples(*[st.integers(0, 1000)] * KINDS), min_size=RANKS * (WINDOWS + 1), max_size=RANKS * (WINDOWS + 1)
).map(lambda rows: np.array(rows, dtype=np.float64).reshape(RANKS, WINDOWS + 1, KINDS))


@settings(max_examples=50)
@given(TABLES, st.lists(LAWS, min_size=RANKS, max_size=RANKS), st.floats(1, 10), st.floats(1, 10))
def test_no_work_makes_a_rank_slower_beside_its_past_than_it_has_become_itself(
    work: np.ndarray, laws: list[np.ndarray], factor: float, machine: float
) -> None:
    took = np.array([seconds(each, law) for each, law in zip(work, laws, strict=True)])
    own_s = took[:, 0] * machine * np.array([factor, 1.0])
    found = paces_beside_past(own_s, work[:, 0], took[:, 1:].T, work[:, 1:].swapaxes(0, 1))
    assert found[0] <= factor * (1 + 1e-9)
    assert found[1] <= 1 + 1e-9
    found = paces_beside_past(
        own_s, work[:, 0], np.tile(took[:, 0], (WINDOWS, 1)), np.tile(work[:, 0], (WINDOWS, 1, 1))
    )
    assert found[0] == pytest.approx(factor), "work that was done before says all of it"


def test_a_past_that_is_too_short_and_that_of_one_rank_say_nothing() -> None:
    now, own_s, past = np.ones((RANKS, KINDS)), np.array([9.0, 1.0]), np.ones((WINDOWS, RANKS, KINDS))
    assert not np.isnan(paces_beside_past(own_s, now, past[:, :, 0], past)).any()
    short = past[1:FEWEST_WINDOWS]
    assert np.isnan(paces_beside_past(own_s, now, short[:, :, 0], short)).all()
    assert np.isnan(paces_beside_past(own_s[:1], now[:1], past[:, :1, 0], past[:, :1])).all()


def test_two_ranks_say_nothing_about_each_other_and_none_nothing() -> None:
    assert not len(slowness(relative_times(np.array([])), 1.25))
    assert (slowness(relative_times(np.array([1.0, 9.0])), 1.25) == 1).all()
