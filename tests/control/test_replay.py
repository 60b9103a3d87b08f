"""Laws of the core: decisions are silent once given out, epochs only grow, and a journal rebuilds the state."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from moiety.control.apply import apply
from moiety.control.commands import CapPower, LockClock
from moiety.control.decide import decide, settle
from moiety.control.events import (
    DeviceReading,
    Event,
    Exited,
    ExpertCounts,
    Heartbeat,
    Issued,
    Joined,
    Moved,
    RequestMetrics,
    StepTimes,
    Timer,
    Unfit,
)
from moiety.control.policy import ClockPoint
from moiety.control.state import Status
from tests.control.deployments import at_rest, beats, deployment, replayed, same, started

KINDS = ("beats", "steps", "exit", "join", "counts", "heat", "demand", "moved", "unfit", "time")
POINTS = (ClockPoint(2e9, 0.05, 600.0), ClockPoint(1.5e9, 0.051, 480.0), ClockPoint(1e9, 0.06, 400.0))


def happened(kind: str, number: int, now: float, state) -> list[Event]:  # noqa: ANN001 - a state
    """Return what a kind of happening means for this state."""
    rank, rng = number % 8, np.random.default_rng(number)
    if kind == "beats":
        members = np.flatnonzero(state.ranks.members).tolist()
        return [Heartbeat(now, each, state.epoch, number, waiting=bool(number % 2)) for each in members]
    if kind == "moved":
        return [Moved(now, state.epoch, *move[:4]) for move in state.pending[: number % 5]]
    one: dict[str, Event] = {
        "exit": Exited(now, rank),
        "join": Joined(now, rank),
        "counts": ExpertCounts(now, rng.pareto(1.0, (2, 16))),
        "heat": DeviceReading(now, rank, 60.0 + number % 40),
        "demand": RequestMetrics(now, 1000.0 * (number % 12), tpot_s=0.03),
        "steps": StepTimes(now, state.epoch, *(rng.pareto(1.0, (2, 8)) + 1e-3), rng.integers(0, 9, (8, 2)) * 1.0),
        "time": Timer(now),
        "unfit": Unfit(now, state.epoch - number % 2, "a rank has other slots"),
    }
    return [one[kind]]


@settings(max_examples=40)
@given(st.lists(st.tuples(st.sampled_from(KINDS), st.integers(0, 999), st.floats(0.1, 40.0)), max_size=25))
def test_whatever_happens(story: list[tuple[str, int, float]]) -> None:
    of = deployment(most_slots=6, tokens_per_s_per_node=5000.0, clock_points=POINTS)
    state = start = started(of, 24)
    journal: list[Event] = []
    now = 0.0
    for kind, number, wait in story:
        now += wait
        for event in happened(kind, number, now, state):
            epoch = state.epoch
            state = apply(event, state)
            state, commands = settle(state, now)
            journal += [event, *(Issued(now, command) for command in commands)]
            assert decide(state, now) == ()  # once given out, nothing more is said
            assert state.epoch >= epoch
            away = ~state.ranks.members
            assert (state.slot_map[:, away] == -1).all()
    # the controller is killed: its journal gives the same state, to the bit, and the same decisions
    assert same(replayed(start, journal), state)


def test_nodes_follow_the_demand_and_do_not_swing() -> None:
    of = deployment(num_ranks=8, most_slots=16, tokens_per_s_per_node=1000.0)
    state, seen = started(of), []
    for report in range(200):
        now = 60.0 * report
        demand = 300.0 if report < 100 else 1500.0
        state = apply(RequestMetrics(now, demand * (1 + 0.05 * (report % 3))), beats(state, now))
        for rank in state.asked:
            state = apply(Joined(now, rank), state)
        state, _ = at_rest(state, now)
        seen.append(int(state.ranks.working.reshape(-1, 4).any(axis=1).sum()))
    assert (seen[0], seen[99], seen[-1]) == (2, 1, 2)
    assert sum(a != b for a, b in pairwise(seen)) == 2
    assert not (state.ranks.status == Status.LEAVING).any()


def test_decode_locks_clocks_prefill_caps_power_and_the_objective_comes_first() -> None:
    for phase, kind in (("decode", LockClock), ("prefill", CapPower)):
        state, commands = at_rest(started(deployment(clock_points=POINTS, phase=phase)), 1.0)
        (limit,) = commands
        assert isinstance(limit, kind)
        assert state.limit == (1.5e9 if phase == "decode" else 480.0)
    state, commands = at_rest(started(deployment(clock_points=POINTS, tpot_limit_s=0.05)), 1.0)
    assert state.limit == 1.5e9
    state = apply(RequestMetrics(2.0, 1.0, tpot_s=0.0505), state)  # beyond the limit: back to the highest clock
    state, commands = at_rest(state, 2.0)
    assert commands == [LockClock(tuple(range(8)), 2e9)]
    state = apply(RequestMetrics(3.0, 1.0, tpot_s=0.0496), state)  # barely within: it stays there
    assert at_rest(state, 3.0)[1] == []
