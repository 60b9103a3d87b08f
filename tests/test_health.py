"""Health: who is lost, by the signs of life."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from moiety.health import Blame, Patience, Signs, cut_off, hung, is_deadlocked, silent, slowness

PATIENCE = Patience()
LONG_S = PATIENCE.stuck_s + 1
ROW = st.tuples(st.floats(0, 20), st.floats(0, 200), st.booleans(), st.booleans())


def signs_of(*rows: tuple[float, float, bool, bool]) -> Signs:
    """Return the signs of ranks, each as (silent, still, waits, loads)."""
    silent_s, still_s, waits, loads = zip(*rows, strict=True) if rows else ((),) * 4
    seconds = (np.array(each, dtype=np.float64) for each in (silent_s, still_s))
    return Signs(*seconds, *(np.array(each, dtype=np.bool_) for each in (waits, loads)))


WELL = (0.1, 0.1, False, False)
WAITING = (0.1, LONG_S, True, False)
STUCK = (0.1, LONG_S, False, False)


@given(rows=st.lists(ROW, max_size=8))
def test_nobody_is_hung_who_waits_and_nobody_alone(rows: list[tuple[float, float, bool, bool]]) -> None:
    signs = signs_of(*rows)
    found = hung(signs, PATIENCE)
    assert not (found & signs.waits).any()
    assert not found.any() or signs.waits.any()
    assert not hung(signs_of(*((*row[:2], False, row[3]) for row in rows)), PATIENCE).any()
    assert not (found.any() and is_deadlocked(signs, PATIENCE))


def test_what_is_heard_is_not_frozen_and_what_moves_not_hung() -> None:
    assert not silent(signs_of(WAITING, WELL, WAITING), PATIENCE).any()
    assert not hung(signs_of(WAITING, WELL, WAITING), PATIENCE).any()
    assert hung(signs_of(WAITING, STUCK, WAITING), PATIENCE).tolist() == [False, True, False]
    assert not hung(signs_of(WAITING, (0.1, LONG_S, False, True), WAITING), PATIENCE).any(), "it reads weights"
    assert silent(signs_of(WAITING, (PATIENCE.silent_s + 0.1, 0.1, False, False)), PATIENCE).tolist() == [False, True]


def test_a_rank_that_was_idle_is_not_hung_because_another_has_begun() -> None:
    assert not hung(signs_of((0.1, 0.05, True, False), (0.1, 100.0, False, False)), PATIENCE).any()


def test_only_where_all_wait_is_a_deadlock() -> None:
    assert is_deadlocked(signs_of(WAITING, WAITING), PATIENCE)
    assert not is_deadlocked(signs_of(WAITING, WELL), PATIENCE)
    assert not is_deadlocked(signs_of(), PATIENCE)


def blames(*pairs: tuple[int, int], epochs: tuple[int, ...] = (1, 2)) -> list[Blame]:
    """Return the same blame in each of some memberships."""
    return [Blame(10.0 * epoch, epoch, *pair) for epoch in epochs for pair in pairs]


def test_who_is_cut_off_is_whom_most_could_not_reach() -> None:
    assert cut_off([], PATIENCE, 20.0) is None
    assert cut_off(blames((0, 2), (1, 2), (2, 0), (2, 0)), PATIENCE, 20.0) == 2, "blame that is repeated counts once"
    assert cut_off(blames((0, 1), (1, 0)), PATIENCE, 20.0) == 1
    assert cut_off(blames((0, 1), epochs=(2,)), PATIENCE, 20.0) is None, "once is not again"
    assert cut_off(blames((0, 1)), PATIENCE, 10.0 + PATIENCE.blame_s) is None, "it is long ago"


def test_slow_is_beyond_what_scatters() -> None:
    assert slowness(np.array([1.0, 1.0, 3.0]), 2.0).tolist() == [1.0, 1.0, 3.0]
    assert slowness(np.array([1.0, 1.0, 1.9]), 2.0).tolist() == [1.0, 1.0, 1.0]
    assert slowness(np.array([1.0, 3.0]), 2.0).tolist() == [1.0, 1.0], "of two nobody knows which"
    assert slowness(np.zeros(4), 2.0).tolist() == [1.0] * 4
