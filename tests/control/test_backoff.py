"""Laws of the wait before a fenced rank is taken back: it doubles while it flaps, and good service makes it short."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moiety.control.apply import apply
from moiety.control.backoff import next_wait_s
from moiety.control.commands import Admit, Fence, Park
from moiety.control.decide import settle
from moiety.control.events import Heartbeat, Issued, Joined, Timer
from moiety.control.policy import Policy, members_alone
from moiety.control.state import Status, initial_state
from moiety.errors import InputError
from tests.control.deployments import at_rest, beats, deployment, lose
from tests.control.test_day import STEADY, day_of

if TYPE_CHECKING:
    from moiety.control.state import State

LONG_S = 1e6
POLICIES = st.builds(
    lambda least, doublings, half_life: Policy(
        backoff_s=least, most_backoff_s=least * 2**doublings, backoff_half_life=half_life
    ),
    st.floats(0.1, 1e3),
    st.floats(0.0, 12.0),
    st.floats(0.1, 100.0),
)


def waits(policy: Policy, served: list[float]) -> list[float]:
    """Return the waits of a rank that is fenced after each of these times of good service."""
    found = [np.float64(0.0)]
    for each in served:
        found.append(next_wait_s(found[-1], np.float64(each), policy))
    return [float(each) for each in found[1:]]


@given(POLICIES)
def test_a_rank_that_never_serves_waits_twice_as_long_each_time_up_to_the_most(policy: Policy) -> None:
    expected = [min(policy.backoff_s * 2**index, policy.most_backoff_s) for index in range(16)]
    assert waits(policy, [0.0] * 16) == pytest.approx(expected)


@given(POLICIES, st.lists(st.floats(0.0, LONG_S), min_size=1, max_size=12), st.floats(0.0, LONG_S))
def test_more_good_service_never_means_a_longer_wait(policy: Policy, served: list[float], more: float) -> None:
    found = waits(policy, served)
    assert all(policy.backoff_s <= each <= policy.most_backoff_s for each in found)
    assert found[0] == policy.backoff_s, "whatever came before the first time"
    for index in range(len(served)):
        longer = [each + more * (at == index) for at, each in enumerate(served)]
        assert all(one >= other for one, other in zip(found, waits(policy, longer), strict=True))


@given(POLICIES, st.integers(1, 16), st.floats(0.0, 100.0))
def test_after_a_half_life_for_each_fence_it_is_taken_back_as_quickly_as_at_first(
    policy: Policy, fences: int, more: float
) -> None:
    enough = (fences + more + 1e-6) * policy.backoff_half_life * policy.backoff_s
    assert waits(policy, [0.0] * fences + [enough])[-1] == policy.backoff_s


@given(POLICIES, st.floats(0.0, 0.9), st.floats(1.1, 20.0))
def test_who_is_fenced_more_often_than_once_in_a_half_life_waits_longest_in_the_end(
    policy: Policy, often: float, seldom: float
) -> None:
    half_life_s = policy.backoff_half_life * policy.backoff_s
    assert waits(policy, [often * half_life_s] * 128)[-1] == pytest.approx(policy.most_backoff_s)
    flapped = [0.0] * 16
    assert waits(policy, flapped + [seldom * half_life_s] * 128)[-1] == policy.backoff_s


def eight(policy: Policy) -> State:
    """Return the state of eight ranks of which nothing is decided but who works."""
    return initial_state(members_alone(8), policy, np.zeros((0, 8), dtype=np.int64))


def returned(state: State, now: float, rank: int = 2) -> tuple[State, float]:
    """Return the state in which a fenced rank works again, and when; it is there from the first second on."""
    while not state.ranks.working[rank]:
        now += 1.0
        if state.ranks.status[rank] == Status.FENCED:
            state = apply(Joined(now, rank), state)
        state = apply(Heartbeat(now, rank, state.epoch, 0, waiting=False), state)
        state, _ = at_rest(state, now)
    return state, now


@settings(max_examples=15, deadline=None)
@given(st.lists(st.floats(0.0, 200.0), min_size=1, max_size=5))
def test_a_rank_is_taken_back_when_its_wait_is_over(served: list[float]) -> None:
    policy = Policy(backoff_s=4.0, most_backoff_s=25.0)
    state, now = eight(policy), 0.0
    for each, wait_s in zip(served, waits(policy, served), strict=True):
        now += each
        state, commands = lose(state, [2], now)
        assert any(isinstance(command, Fence) for command in commands)
        fenced_s = now
        state, now = returned(state, now)
        assert wait_s <= now - fenced_s < wait_s + 1.0 + 1e-6


def test_a_rank_that_hangs_while_it_reads_weights_has_not_served_meanwhile() -> None:
    policy = Policy(needs_majority=False, backoff_s=1.0)
    state, now = lose(eight(policy), [2], 1.0)[0], 1.0
    assert state.ranks.wait_s[2] == policy.backoff_s
    state, now = returned(state, now)
    while state.ranks.members[2]:
        now += 1.0
        for rank in range(8):
            beat = Heartbeat(now, rank, state.epoch, 40, waiting=rank != 2, loading=rank == 2)
            state = apply(beat, state)
        state, _ = settle(state, now)
    assert now > policy.patience.load_s > policy.backoff_half_life * policy.backoff_s
    assert state.ranks.wait_s[2] == pytest.approx(2 * policy.backoff_s, rel=0.1)


def test_what_a_rank_has_served_before_it_was_parked_counts() -> None:
    policy = Policy()
    state = lose(eight(policy), [2], 0.0)[0]
    for _ in range(2):
        state, now = returned(state, state.time_s)
        state, _ = lose(state, [2], now)
    assert state.ranks.wait_s[2] == pytest.approx(4 * policy.backoff_s)
    state, now = returned(state, state.time_s)
    now += 2 * policy.backoff_half_life * policy.backoff_s
    state = apply(Issued(now, Park(state.epoch + 1, (2,))), beats(apply(Timer(now), state), now))
    state = apply(Joined(now + 1.0, 2), state)
    state, commands = at_rest(state, now + 1.0)
    assert any(isinstance(each, Admit) for each in commands), "it was not fenced since"
    state, _ = lose(state, [2], now + 1.0)
    assert state.ranks.wait_s[2] == pytest.approx(2 * policy.backoff_s, rel=0.01)


def test_a_simulated_day_forgives_too() -> None:
    faults = ("gpu:3@0.1", "gpu:3@0.15", "gpu:3@0.2", "gpu:3@2.5")
    day = day_of(deployment(), *faults, conditions=replace(STEADY, repair_s=10.0), hours=3.0, slots=32)
    first, second, third, last = [each.back_after_s for each in day.recoveries]
    assert None not in {first, second, third, last}
    assert first < second < third  # type: ignore[operator]
    assert last == pytest.approx(first, abs=Policy().window_s)


@pytest.mark.parametrize("field", ["backoff_s", "backoff_half_life"])
def test_a_policy_that_would_never_or_always_forgive_is_refused(field: str) -> None:
    with pytest.raises(InputError, match=f"{field}.*must be above 0"):
        Policy(**{field: 0.0})
