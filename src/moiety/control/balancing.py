"""The rule about balance: few moves, where drift or heat make them pay."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from moiety.control.commands import Move, MoveExperts
from moiety.control.health import speeds
from moiety.control.working import is_covered, relative_loads, working_links, working_map, working_problem
from moiety.placement.migration.candidates import MoveProblem
from moiety.placement.migration.cost import copies_between, port_bytes, port_time_s, settled
from moiety.placement.migration.migration import Payback, migrate
from moiety.placement.migration.order import ordered_moves
from moiety.placement.migration.replicas import replicas_that_follow

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from moiety.control.commands import Command, Occasion
    from moiety.control.state import State
    from moiety.placement.problem import Loads, PlacementProblem, SlotMap

_WIDTH = 4
"""Of the search: windows come often, and what one misses the next may find."""
_FEWEST_MOVES = 2
"""A swap."""
_LEAST_EXCESS = 0.005
"""Of the mean load: nearer than that no layer is brought."""
_OTHER_SPEED = 0.05
"""Change of a rank's speed that experts are placed anew for."""


def balance_experts(state: State, now: float) -> tuple[Command, ...]:  # noqa: ARG001 - every rule takes the time
    """Move the few experts whose gain pays for their copy, where layers drift, a GPU is hot, or ranks have changed."""
    if not state.policy.balance or state.pending or not is_covered(state):
        return ()
    reason = _occasion(state)
    if reason is None:
        return ()
    problem = working_problem(state, state.forecast.shares[None])
    before = working_map(state)
    after = _better(state, problem, before, reason)
    return (MoveExperts(state.epoch, state.slot_map.shape[2], _moves(state, problem, before, after), reason),)


def _occasion(state: State) -> Occasion | None:
    """Return why experts are to be placed anew, if they are."""
    now, then = speeds(state), state.speed_placed
    if not state.deployment.num_layers:
        return None
    if ((now > 0) != (then > 0)).any():
        return "members"
    if (np.abs(now - then) > _OTHER_SPEED).any():
        return "heat"
    return "balance" if state.drift.following and state.drift.due else None


def _better(state: State, problem: PlacementProblem, before: SlotMap, reason: Occasion) -> SlotMap:
    """Return the map after copies have followed the load and peaks were lowered, where that pays; [layers, slots]."""
    deployment, bounds = state.deployment, state.policy
    share = bounds.max_settling_share if reason == "members" else bounds.max_move_share
    most = max(_FEWEST_MOVES, math.ceil(problem.num_slots * share))
    followed = replicas_that_follow(before, problem.shares()[0], problem.num_gpus, most // 2)
    horizon_steps = bounds.horizon_windows * bounds.window_s / deployment.step_s
    payback = Payback(working_links(state), deployment.layer_step_s, horizon_steps)
    level = np.full(problem.num_layers, 1 + _LEAST_EXCESS)
    moved = migrate(problem, followed, max_moves=most, payback=payback, enough=level, width=_WIDTH).slot_map
    after = settled(problem, before, moved)
    gain_s = _net_gain_s(problem, before, after, payback)
    pays = gain_s > 0
    if reason == "balance":
        pays &= _affordable(gain_s, (after != before).sum(axis=1), state.drift.allowance)
    return np.where(pays[:, None], after, before)


def _affordable(gain_s: Loads, num_moves: SlotMap, allowance: float) -> NDArray[np.bool_]:
    """Return the layers whose moves gain most each, as many as all moves that are allowed; [layers]."""
    order = np.argsort(-gain_s / np.maximum(num_moves, 1), kind="stable")
    found = np.zeros(len(order), dtype=np.bool_)
    found[order] = np.cumsum(num_moves[order]) <= allowance
    return found


def _net_gain_s(problem: PlacementProblem, before: SlotMap, after: SlotMap, payback: Payback) -> Loads:
    """Return the seconds that the lower peak saves over the horizon less those that the copies take, [layers]."""
    peaks = [relative_loads(problem, each)[0].max(axis=1) for each in (before, after)]
    sent = port_bytes(problem, copies_between(problem, before, after), payback.links.expert_bytes)
    saved: Loads = (peaks[0] - peaks[1]) * payback.layer_step_s * payback.horizon_steps
    return saved - port_time_s(sent, payback.links)


def _moves(state: State, problem: PlacementProblem, before: SlotMap, after: SlotMap) -> tuple[Move, ...]:
    """Return the moves in an order in which every expert keeps a copy."""
    work = MoveProblem(problem.shares() * problem.num_gpus, 1 / problem.speed(), problem.num_nodes)
    rank = np.flatnonzero(state.ranks.working).tolist()
    width = problem.slots_per_gpu
    return tuple(
        Move(
            move.layer,
            rank[move.slot // width],
            move.slot % width,
            move.expert,
            rank[move.source_slot // width],
            move.step,
        )
        for move in ordered_moves(problem, work, before, after)
    )
