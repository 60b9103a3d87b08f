"""Nodes: the fewest that hold the demand and the experts, more at once when demand comes, without flapping."""

from __future__ import annotations

import pytest

from moiety.control.apply import apply
from moiety.control.commands import Admit, Command, Drain, MoveExperts, Park, ScaleUp
from moiety.control.events import DeviceReading, Joined, RequestMetrics
from moiety.control.policy import Policy
from moiety.control.state import State, Status
from moiety.control.working import is_covered
from tests.control.deployments import at_rest, deployment, lose, started

RATE = 1000.0
"""Tokens a second that a node can do."""
NODES = 4


def four_nodes(most_slots: int = 16) -> State:
    return started(deployment(4 * NODES, tokens_per_s_per_node=RATE, most_slots=most_slots), slots=16)


def asked(state: State, demand: float, reports: int, now: float) -> tuple[State, list[Command], float]:
    """Return the state after so many reports of a demand, what was done about them, and the time."""
    given: list[Command] = []
    for _ in range(reports):
        now += 60.0
        state, commands = at_rest(apply(RequestMetrics(now, demand), state), now)
        given += commands
    return state, given, now


def working_nodes(state: State) -> int:
    return int(state.ranks.working.reshape(NODES, -1).all(axis=1).sum())


@pytest.mark.parametrize(("demand", "nodes"), [(0.0, 1), (600.0, 1), (1300.0, 2), (2000.0, 3), (3000.0, 4)])
def test_as_few_nodes_work_as_hold_the_demand_and_all_experts_with_them(demand: float, nodes: int) -> None:
    state, given, _ = asked(four_nodes(), demand, 3 * Policy().scale_patience, 0.0)
    assert working_nodes(state) == nodes
    assert demand <= Policy().scale_down_to * RATE * nodes or nodes == NODES
    assert is_covered(state)
    kinds = [type(command) for command in given if not isinstance(command, MoveExperts) or command.moves]
    assert kinds.count(Drain) == kinds.count(Park) == (nodes < NODES)
    if nodes < NODES:
        assert kinds.index(Drain) < kinds.index(MoveExperts) < kinds.index(Park), "experts move before their node goes"


def test_no_node_goes_whose_experts_the_others_have_no_memory_for() -> None:
    state, _, _ = asked(four_nodes(most_slots=2), 0.0, 30, 0.0)
    assert working_nodes(state) == 2


def test_demand_that_comes_is_met_at_once_and_does_not_go_back_and_forth() -> None:
    state, _, now = asked(four_nodes(), 600.0, 20, 0.0)
    assert working_nodes(state) == 1
    state, given, now = asked(state, 1000.0, 1, now)
    (call,) = (command for command in given if isinstance(command, ScaleUp))
    for rank in call.ranks:
        state = apply(Joined(now, rank), state)
    state, _ = at_rest(state, now)
    state, given, now = asked(state, 1000.0, 30, now)
    assert working_nodes(state) == 2
    assert not any(isinstance(command, (ScaleUp, Drain)) for command in given)


def test_no_node_goes_while_tokens_come_later_than_the_objective_lets_them_or_so_few_shall_not_be() -> None:
    of = deployment(4 * NODES, tokens_per_s_per_node=RATE, tpot_limit_s=0.05)
    for tpot_s, least, nodes in ((0.06, 1, NODES), (0.04, 1, 1), (0.04, 3, 3)):
        state, now = started(of, 16, Policy(least_nodes=least)), 0.0
        for _ in range(20):
            now += 60.0
            state, _ = at_rest(apply(RequestMetrics(now, 0.0, tpot_s), state), now)
        assert working_nodes(state) == nodes


@pytest.mark.parametrize(("tpot_s", "nodes"), [(0.01, 1), (0.02, 2), (0.08, 4), (float("nan"), 4), (-1.0, 4)])
def test_a_machine_faster_than_planned_needs_no_nodes_for_its_speed(tpot_s: float, nodes: int) -> None:
    of = deployment(4 * NODES, tokens_per_s_per_node=RATE, tpot_s=0.04)  # 40 sequences a node
    state, now = started(of, 16), 0.0
    for _ in range(20):
        now += 60.0
        state, given = at_rest(apply(RequestMetrics(now, 2500.0, tpot_s), state), now)
    assert working_nodes(state) == nodes
    assert not given, "and it stays at that"


def test_nodes_that_are_parked_come_back_as_a_whole_where_experts_have_no_room_without_them() -> None:
    state, _, now = asked(four_nodes(most_slots=4), 0.0, 20, 0.0)
    assert working_nodes(state) == 1
    state, given = lose(state, [0], now)
    assert state.refused
    (call,) = (command for command in given if isinstance(command, ScaleUp))
    assert call.ranks == tuple(range(4, 4 * NODES))
    for rank in call.ranks:
        state, given = at_rest(apply(Joined(now, rank), state), now)
        assert any(isinstance(command, Admit) for command in given) == (rank % 4 == 3)
    assert is_covered(state)
    assert not state.refused


def test_nodes_that_are_parked_are_called_where_no_rank_is_left() -> None:
    state, _, now = asked(four_nodes(), 0.0, 20, 0.0)
    assert working_nodes(state) == 1
    state, given = lose(state, range(4), now)
    (call,) = (command for command in given if isinstance(command, ScaleUp))
    assert call.ranks == tuple(range(4, 4 * NODES))
    for rank in call.ranks:
        state, _ = at_rest(apply(Joined(now, rank), state), now)
    assert is_covered(state)
    assert not state.refused


def test_of_equal_nodes_the_hottest_goes_first() -> None:
    state = four_nodes()
    for rank in range(4, 8):
        state = apply(DeviceReading(0.0, rank, 95.0), state)
    state = asked(state, 2000.0, 20, 0.0)[0]
    parked = state.ranks.status.reshape(NODES, -1) == Status.PARKED
    assert parked.all(axis=1).tolist() == [False, True, False, False]
