"""Health: who is lost, by the signs of life."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from moiety.runtime.elastic.health import Sign, frozen, hung, is_deadlocked, most_blamed, slow
from moiety.runtime.elastic.limits import Limits

LIMITS = Limits()
WELL = Sign(silent_s=0.1, stuck_s=0.1, loads=False, waits=False, waits_for=None, step=100, busy_s=1.0)
SIGNS = st.builds(
    Sign,
    silent_s=st.floats(0, 20),
    stuck_s=st.floats(0, 20),
    loads=st.booleans(),
    waits=st.booleans(),
    waits_for=st.none() | st.integers(0, 3),
    step=st.integers(0, 100),
    busy_s=st.floats(0, 100),
)


@given(signs=st.dictionaries(st.integers(0, 7), SIGNS))
def test_nobody_is_hung_who_waits_and_nobody_alone(signs: dict[int, Sign]) -> None:
    found = hung(signs, LIMITS)
    assert not any(signs[rank].waits for rank in found)
    assert not found or any(sign.waits for sign in signs.values())
    assert not hung({rank: replace(sign, waits=False) for rank, sign in signs.items()}, LIMITS)
    assert not (found and is_deadlocked(signs, LIMITS))


def test_what_is_heard_is_not_frozen_and_what_moves_not_hung() -> None:
    waiting = replace(WELL, waits=True, waits_for=1, stuck_s=LIMITS.stuck_s + 1)
    signs = {0: waiting, 1: WELL, 2: waiting}
    assert frozen(signs, LIMITS) == hung(signs, LIMITS) == []
    stuck = {**signs, 1: replace(WELL, stuck_s=LIMITS.stuck_s + 1)}
    assert hung(stuck, LIMITS) == [1]
    assert hung({**stuck, 1: replace(stuck[1], loads=True)}, LIMITS) == []
    assert frozen({**signs, 1: replace(WELL, silent_s=LIMITS.silent_s + 0.1)}, LIMITS) == [1]
    assert is_deadlocked({0: waiting, 2: waiting}, LIMITS)
    assert not is_deadlocked(signs, LIMITS)
    assert not is_deadlocked({}, LIMITS)


def test_most_blamed_is_whom_most_could_not_reach() -> None:
    assert most_blamed([]) is None
    assert most_blamed([(0, 2), (1, 2), (2, 0), (2, 0), (2, 0)]) == 2, "blame that is repeated counts once"
    assert most_blamed([(0, 1), (1, 0)]) == 1


def test_slow_is_twice_the_median() -> None:
    signs = {0: WELL, 1: WELL, 2: replace(WELL, busy_s=3.0)}
    assert slow(signs, LIMITS).keys() == {2}
    assert slow({**signs, 3: replace(WELL, step=2)}, LIMITS) == {}, "one is new yet"
    assert slow({0: WELL, 1: WELL, 2: replace(WELL, busy_s=1.9)}, LIMITS) == {}
