"""Migration: never worse, never above the moves allowed, every expert covered, and only moves that pay."""

from __future__ import annotations

from itertools import groupby
from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moiety.errors import InputError
from moiety.placement.migration.cost import CopyLinks
from moiety.placement.migration.migration import Migration, Payback, migrate
from moiety.placement.problem import PlacementProblem

if TYPE_CHECKING:
    from numpy.typing import NDArray

LINKS = CopyLinks(expert_bytes=1e6, node_bytes_per_s=1e9, network_bytes_per_s=1e8)


def random_map(random: np.random.Generator, experts: int, slots: int) -> NDArray[np.int64]:
    """Return slots that hold every expert, some perhaps twice on a GPU."""
    spare = random.integers(0, experts, slots - experts)
    return random.permutation(np.concatenate([np.arange(experts), spare]))


def lightest_first(load: NDArray[np.float64], slots: int, gpus: int) -> NDArray[np.int64]:
    """Return a map of one layer by greedy copies and longest processing time first, no expert twice on a GPU."""
    copies = np.ones(len(load), dtype=np.int64)
    for _ in range(slots - len(load)):
        copies[(load / copies).argmax()] += 1
    items = sorted((-load[e] / copies[e], e) for e in range(len(load)) for _ in range(copies[e]))
    held: list[list[int]] = [[] for _ in range(gpus)]
    filled = np.zeros(gpus)
    for weight, expert in items:
        open_gpus = [g for g in range(gpus) if len(held[g]) < slots // gpus]
        apart = [g for g in open_gpus if expert not in held[g]]
        gpu = min(apart or open_gpus, key=lambda g: filled[g])
        held[gpu].append(expert)
        filled[gpu] -= weight
    return np.array([expert for experts in held for expert in experts])


@st.composite
def cases(draw: st.DrawFn) -> tuple[PlacementProblem, NDArray[np.int64]]:
    nodes = draw(st.integers(1, 3))
    gpus = nodes * draw(st.integers(1, 3))
    per_gpu = draw(st.integers(1, 5))
    slots = gpus * per_gpu
    experts = draw(st.integers(per_gpu, slots))
    layers = draw(st.integers(1, 3))
    random = np.random.default_rng(draw(st.integers(0, 2**32)))
    counts = np.floor(random.lognormal(3, 1.2, (draw(st.integers(1, 3)), layers, experts)))
    if draw(st.booleans()):
        counts[random.random(counts.shape) < 0.5] = 0
    speed = random.uniform(0.5, 2, gpus) if draw(st.booleans()) else None
    previous = np.stack([random_map(random, experts, slots) for _ in range(layers)])
    return PlacementProblem(counts, gpus, nodes, slots, gpu_speed=speed), previous


def peaks(problem: PlacementProblem, slot_map: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return each layer's peak load over speed, relative to the mean, in its worst window, slot by slot."""
    result = np.zeros(problem.num_layers)
    for layer, row in enumerate(slot_map):
        for shares in problem.shares()[:, layer]:
            load = np.zeros(problem.num_gpus)
            for slot, expert in enumerate(row):
                load[slot // problem.slots_per_gpu] += shares[expert] / (row == expert).sum()
            result[layer] = max(result[layer], (load / problem.speed()).max() * problem.num_gpus)
    return result


def holding(problem: PlacementProblem, slot_map: NDArray[np.int64], cost: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return each layer's sum of the costs of every expert that a node holds."""
    slots_per_node = problem.slots_per_node
    pairs = [{(e, slot // slots_per_node) for slot, e in enumerate(row)} for row in slot_map.tolist()]
    return np.array([sum(cost[layer, e, n] for e, n in held) for layer, held in enumerate(pairs)])


def twins(problem: PlacementProblem, row: NDArray[np.int64]) -> int:
    """Return how many slots of a layer repeat an expert of their GPU."""
    return sum(len(part) - len(set(part)) for part in row.reshape(problem.num_gpus, -1).tolist())


def drifted(layers: int = 4, seed: int = 1) -> tuple[PlacementProblem, NDArray[np.int64]]:
    """Return a problem of 64 experts on 8 GPUs, and a good map for loads that have drifted since."""
    random = np.random.default_rng(seed)
    before, noise = random.normal(size=(2, layers, 64))
    after = 0.6 * before + 0.8 * noise
    previous = np.stack([lightest_first(np.exp(0.75 * row), 72, 8) for row in before])
    return PlacementProblem(1000 * np.exp(0.75 * after)[None], 8, 2, 72), previous


@settings(max_examples=30, deadline=None)
@given(cases(), st.integers(0, 8))
def test_a_migration_is_sound(case: tuple[PlacementProblem, NDArray[np.int64]], most: int) -> None:
    problem, previous = case
    found = migrate(problem, previous, max_moves=most)
    assert (found.num_moves <= most).all()
    before, after = peaks(problem, previous), peaks(problem, found.slot_map)
    assert (after <= before * (1 + 1e-9)).all()
    np.testing.assert_allclose(found.balance_before, 1 / before)
    np.testing.assert_allclose(found.balance_after, 1 / after)
    for old, new in zip(previous, found.slot_map, strict=True):
        assert set(new.tolist()) == set(range(problem.num_experts))
        assert twins(problem, new) <= twins(problem, old)
    again = migrate(problem, previous, max_moves=most)
    np.testing.assert_array_equal(again.slot_map, found.slot_map)
    assert again.moves == found.moves


@settings(max_examples=10, deadline=None)
@given(cases(), st.booleans())
def test_more_moves_are_never_worse(case: tuple[PlacementProblem, NDArray[np.int64]], held: bool) -> None:
    problem, previous = case
    shape = (problem.num_layers, problem.num_experts, problem.num_nodes)
    cost = np.random.default_rng(0).normal(0, 0.2, shape) if held else None

    def judged(slot_map: NDArray[np.int64]) -> NDArray[np.float64]:
        return peaks(problem, slot_map) + (0 if cost is None else holding(problem, slot_map, cost))

    last = judged(previous)
    for most in (0, 1, 2, 4, None):
        now = judged(migrate(problem, previous, max_moves=most, holding_cost=cost).slot_map)
        assert (now <= last + 1e-9).all()
        last = now


def check_moves(problem: PlacementProblem, found: Migration) -> None:
    """Carry out a migration's moves step by step, and assert that each step can be."""
    now = found.previous.copy()
    for _, grouped in groupby(found.moves, key=lambda move: move.step):
        step = list(grouped)
        assert len({move.layer for move in step}) == 1
        for move in step:
            assert now[move.layer, move.source_slot] == move.expert
        doubled = twins(problem, now[step[0].layer])
        for move in step:
            now[move.layer, move.slot] = move.expert
        assert set(now[step[0].layer].tolist()) == set(range(problem.num_experts))
        assert twins(problem, now[step[0].layer]) <= doubled
    np.testing.assert_array_equal(now, found.slot_map)
    assert len(found.moves) == found.num_moves.sum()


@settings(max_examples=30, deadline=None)
@given(cases(), st.sampled_from([2, 5, None]))
def test_moves_can_be_made_step_by_step(case: tuple[PlacementProblem, NDArray[np.int64]], most: int | None) -> None:
    problem, previous = case
    check_moves(problem, migrate(problem, previous, max_moves=most))


def test_no_moves_are_the_identity() -> None:
    problem, previous = drifted()
    found = migrate(problem, previous, max_moves=0)
    np.testing.assert_array_equal(found.slot_map, previous)
    assert found.moves == ()


def test_few_moves_restore_most_of_the_balance() -> None:
    problem, previous = drifted(layers=8)
    balance = {most: migrate(problem, previous, max_moves=most).balance_after.mean() for most in (0, 4, 8, 16)}
    assert balance[0] < 0.75
    assert balance[4] > 0.9
    assert balance[8] > 0.96
    assert balance[16] > 0.985


def test_the_first_steps_help_most() -> None:
    problem, previous = drifted()
    found = migrate(problem, previous, max_moves=12)
    now = previous.copy()
    half = len(found.moves) // 2
    for move in found.moves[:half]:
        now[move.layer, move.slot] = move.expert
    gained = (peaks(problem, previous) - peaks(problem, now)).sum()
    assert gained > 0.6 * (peaks(problem, previous) - peaks(problem, found.slot_map)).sum()


def test_without_spare_slots_experts_trade_places() -> None:
    problem = PlacementProblem(np.array([[[8.0, 8.0, 1.0, 1.0]]]), 2, 1, 4)
    found = migrate(problem, np.array([[0, 1, 2, 3]]), max_moves=2)
    assert found.balance_after == pytest.approx(1)
    assert [move.step for move in found.moves] == [0, 0]
    assert migrate(problem, np.array([[0, 1, 2, 3]]), max_moves=1).moves == ()


def test_an_overwrite_spares_a_cold_copy() -> None:
    problem = PlacementProblem(np.array([[[9.0, 3.0, 0.0]]]), 2, 1, 4)
    found = migrate(problem, np.array([[0, 2, 1, 2]]), max_moves=1)
    assert found.slot_map.tolist() == [[0, 2, 1, 0]]
    assert [tuple(move) for move in found.moves] == [(0, 3, 0, 0, 0)]


def test_moves_are_made_only_while_they_pay() -> None:
    problem, previous = drifted()
    free = migrate(problem, previous, max_moves=12)
    moves = []
    for horizon in (0, 1e2, 1e3, 1e4, 1e9):
        payback = Payback(LINKS, layer_step_s=1e-4, horizon_steps=horizon)
        moves.append(int(migrate(problem, previous, max_moves=12, payback=payback).num_moves.sum()))
    assert moves == sorted(moves)
    assert moves[0] == 0
    assert 0 < moves[2] < moves[-1] <= free.num_moves.sum()


def test_a_single_move_pays_exactly_beyond_its_price() -> None:
    problem, previous = PlacementProblem(np.array([[[9.0, 3.0, 0.0]]]), 2, 2, 4), np.array([[0, 2, 1, 2]])
    saved_s = (18 / 12 - 15 / 12) * 1e-3  # of each step; the copy takes 1e6 / 1e8 s
    for horizon, moves in ((0.01 / saved_s * 0.99, 0), (0.01 / saved_s * 1.01, 1)):
        payback = Payback(LINKS, layer_step_s=1e-3, horizon_steps=horizon)
        assert len(migrate(problem, previous, max_moves=1, payback=payback).moves) == moves


def test_a_holding_cost_draws_copies_to_a_node() -> None:
    problem = PlacementProblem(np.array([[[2.0, 2.0, 2.0, 2.0]]]), 2, 2, 4)
    cost = np.zeros((1, 4, 2))
    cost[0, 0, 0] = 1.0
    found = migrate(problem, np.array([[0, 1, 2, 3]]), holding_cost=cost)
    assert 0 not in found.slot_map[0, :2]


@pytest.mark.parametrize(
    ("previous", "rule"),
    [
        (np.array([[0, 1]]), "must have 1 layers of 4 slots"),
        (np.array([[0, 1, 2, 7]]), "outside 0 to 2"),
        (np.array([[0, 1, 1, -1]]), "outside 0 to 2"),
        (np.array([[0, 1, 1, 1]]), "no slot with expert 2 in row 0"),
    ],
)
def test_a_previous_map_that_does_not_fit_is_refused(previous: NDArray[np.int64], rule: str) -> None:
    problem = PlacementProblem(np.array([[[9.0, 3.0, 0.0]]]), 2, 1, 4)
    with pytest.raises(InputError, match=rule):
        migrate(problem, previous)


def test_limits_out_of_range_are_refused() -> None:
    problem, previous = drifted()
    with pytest.raises(InputError, match="max-moves = -1"):
        migrate(problem, previous, max_moves=-1)
    with pytest.raises(InputError, match="finite"):
        migrate(problem, previous, holding_cost=np.full((4, 64, 2), np.nan))
    with pytest.raises(InputError, match="horizon_steps"):
        Payback(LINKS, layer_step_s=1, horizon_steps=float("nan"))
    with pytest.raises(InputError, match="expert_bytes"):
        CopyLinks(0, 1, 1)
