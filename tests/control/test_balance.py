"""Laws of balance: noise moves nothing, drift is followed, copies follow the load, a hot GPU's load goes to all."""

from __future__ import annotations

import numpy as np
import pytest

from moiety.control.apply import apply
from moiety.control.commands import MoveExperts
from moiety.control.decide import decide
from moiety.control.events import DeviceReading, ExpertCounts
from moiety.control.policy import Deployment, Policy
from moiety.control.state import State, initial_state
from moiety.control.working import is_covered, relative_loads, working_map, working_problem
from moiety.placement.methods.balance import balance
from moiety.placement.problem import PlacementProblem
from tests.control.deployments import at_rest, beats, deployment, moves_of, started

RANKS, EXPERTS, SLOTS = 16, 64, 80


def machine() -> Deployment:
    return deployment(RANKS, EXPERTS, most_slots=8)


def popularity(rng: np.random.Generator) -> np.ndarray:
    shares = np.exp(rng.normal(0.0, 0.8, (2, EXPERTS)))
    return shares / shares.sum(axis=1, keepdims=True)


def placed_for(shares: np.ndarray) -> State:
    of = machine()
    problem = PlacementProblem(shares[None], RANKS, of.num_nodes, SLOTS)
    return initial_state(of, Policy(), balance(problem))


def window(shares: np.ndarray, rng: np.random.Generator, scatter: float) -> np.ndarray:
    noisy = shares * np.exp(rng.normal(0.0, scatter, shares.shape))
    return rng.poisson(100_000 * noisy).astype(np.float64)


def mean_balance(state: State, shares: np.ndarray) -> float:
    loads = relative_loads(working_problem(state, shares[None]), working_map(state))
    return float((1 / loads.max(axis=2)).mean())


@pytest.mark.parametrize("scatter", [0.0, 0.1, 0.3])
def test_a_day_of_stationary_noise_moves_nothing(scatter: float) -> None:
    rng = np.random.default_rng(3)
    shares = popularity(rng)
    state, given = placed_for(shares), []
    for at in range(1440):
        state = apply(ExpertCounts(60.0 * at, window(shares, rng, scatter)), state)
        state, commands = at_rest(state, 60.0 * at)
        given += commands
    assert moves_of(given) == 0
    assert state.epoch == 1


@pytest.mark.parametrize("alike", [8, 12])
def test_after_windows_that_are_all_alike_one_that_differs_by_chance_is_no_drift(alike: int) -> None:
    """Few requests that come in turns: windows hold as many of each kind, until one holds one more."""
    state, given = started(deployment(2, 8)), []
    requests = [(6, 6)] * alike + [(6, 5), (5, 6), (6, 5), (5, 6), (6, 5)]
    for at, kinds in enumerate(requests):
        counts = np.tile(18.0 * np.repeat(kinds, 4), (2, 1))  # each kind has the experts of one rank
        state, commands = at_rest(apply(ExpertCounts(60.0 * at, counts), state), 60.0 * at)
        given += commands
    assert moves_of(given) == 0


def test_a_jump_is_followed_within_two_windows() -> None:
    rng = np.random.default_rng(4)
    before, after = popularity(rng), popularity(rng)
    state = placed_for(before)
    for at in range(12):
        state, _ = at_rest(apply(ExpertCounts(60.0 * at, window(before, rng, 0.05)), state), 60.0 * at)
    stale = mean_balance(state, after)
    first = None
    for at in range(12, 40):
        state, commands = at_rest(apply(ExpertCounts(60.0 * at, window(after, rng, 0.05)), state), 60.0 * at)
        if first is None and moves_of(commands, "balance"):
            first = at - 12
    assert first is not None
    assert first <= 1  # at the end of the first or the second window after it
    assert mean_balance(state, after) > (1 + stale) / 2
    assert is_covered(state)


def test_a_copy_too_dear_for_the_horizon_is_not_made() -> None:
    rng = np.random.default_rng(4)
    before, after = popularity(rng), popularity(rng)
    of = machine()
    patient = placed_for(before)
    hasty = initial_state(of, Policy(horizon_windows=1e-6), working_map(patient))
    for state, pays in ((patient, True), (hasty, False)):
        now = state
        for at in range(24):
            shares = before if at < 12 else after
            local = np.random.default_rng(at)
            now, _ = at_rest(apply(ExpertCounts(60.0 * at, window(shares, local, 0.05)), now), 60.0 * at)
        assert (now.moves > 0) == pays


def test_copies_follow_the_load() -> None:
    rng = np.random.default_rng(5)
    before = popularity(rng)
    state = placed_for(before)
    cold = np.argsort(before[0])[:4]
    after = before.copy()
    after[:, cold] = before.max(axis=1, keepdims=True) * 1.5
    after /= after.sum(axis=1, keepdims=True)
    for at in range(40):
        shares = before if at < 8 else after
        state, _ = at_rest(apply(ExpertCounts(60.0 * at, window(shares, rng, 0.05)), state), 60.0 * at)
    copies = np.bincount(working_map(state)[0], minlength=EXPERTS)
    assert (copies[cold] >= 2).all()
    assert copies.min() >= 1


def test_moves_leave_every_expert_somewhere_at_every_moment() -> None:
    rng = np.random.default_rng(6)
    before, after = popularity(rng), popularity(rng)
    state = placed_for(before)
    for at in range(16):
        shares = before if at < 8 else after
        state = apply(ExpertCounts(60.0 * at, window(shares, rng, 0.05)), state)
        state = beats(state, 60.0 * at)
        for command in decide(state, 60.0 * at):
            assert isinstance(command, MoveExperts)
            slots = state.slot_map.copy()
            for number in sorted({move.step for move in command.moves}):
                step = [move for move in command.moves if move.step == number]
                for move in step:  # all sources are read before anything is written
                    assert move.expert in slots[move.layer, move.source]
                for move in step:
                    slots[move.layer, move.rank, move.slot] = move.expert
                for layer in slots:
                    assert set(layer.ravel().tolist()) == set(range(EXPERTS))
        state, _ = at_rest(state, 60.0 * at)


@pytest.mark.parametrize("throttled", [False, True])
def test_a_hot_gpu_loses_load_within_two_readings_and_no_neighbour_gets_it_all(throttled: bool) -> None:
    rng = np.random.default_rng(7)
    shares = popularity(rng)
    state = placed_for(shares)
    for at in range(8):
        state, _ = at_rest(apply(ExpertCounts(60.0 * at, window(shares, rng, 0.05)), state), 60.0 * at)
    hot = 5

    def loads(of: State) -> np.ndarray:
        problem = working_problem(of, shares[None])
        return (relative_loads(problem, working_map(of)) * problem.speed())[0].mean(axis=0)

    before = loads(state)
    for reading in range(2):
        now = 480.0 + 10 * reading
        temperature = 70.0 if throttled else 90.0
        state = apply(DeviceReading(now, hot, temperature, throttled=throttled), state)
        state, commands = at_rest(state, now)
        assert moves_of(commands, "heat") > 0 or reading == 1
    after = loads(state)
    lost = before[hot] - after[hot]
    assert lost > 0.1
    assert (after - before).max() < lost / 2  # nobody takes over half of it
    # cool again, it gets its load back, slowly
    for reading in range(300):
        state, _ = at_rest(apply(DeviceReading(600.0 + 10 * reading, hot, 60.0), state), 600.0 + 10 * reading)
    assert state.ranks.relief[hot] == 1.0
    assert loads(state)[hot] > after[hot]


def test_a_reading_that_says_nothing_changes_nothing() -> None:
    state = placed_for(popularity(np.random.default_rng(8)))
    for reading in (
        DeviceReading(1.0, 3),
        DeviceReading(1.0, 3, float("nan"), power_w=float("nan")),
        ExpertCounts(1.0, np.full((2, EXPERTS), np.nan)),
    ):
        after, commands = at_rest(apply(reading, state), 1.0)
        assert not moves_of(commands)
        assert (after.ranks.relief == 1.0).all()
        assert np.isfinite(after.forecast.shares).all()


def test_experts_follow_a_jump_within_the_allowance_and_then_stay() -> None:
    rng = np.random.default_rng(9)
    before, after = popularity(rng), popularity(rng)
    state, made = placed_for(before), []
    for at in range(160):
        counts = window(before if at < 12 else after, rng, 0.1)
        state, commands = at_rest(apply(ExpertCounts(60.0 * at, counts), state), 60.0 * at)
        made.append(moves_of(commands, "balance"))
    bounds, slots = state.policy, 2 * SLOTS
    assert sum(made[:60]) > 0
    for at in range(160):
        assert sum(made[: at + 1]) <= bounds.mean_move_share * slots * (at + 1)
    assert sum(made[80:]) == 0
