"""The rule about balance: few moves, where drift or heat make them pay."""

from __future__ import annotations

import math
from dataclasses import dataclass
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
    from moiety.control.policy import Deployment, Policy
    from moiety.control.state import State
    from moiety.placement.migration.cost import CopyLinks
    from moiety.placement.problem import Loads, PlacementProblem, SlotMap

_WIDTH = 4
"""Of the search: windows come often, and what one misses the next may find."""
_FEWEST_MOVES = 2
"""A swap."""
_LEAST_EXCESS = 0.005
"""Of the mean load: nearer than that no layer is brought."""
_OTHER_SPEED = 0.05
"""Change of a rank's speed that experts are placed anew for."""


@dataclass(frozen=True, slots=True, eq=False)
class Search:
    """All that a search for moves rests on: what is found follows from it alone, wherever and whenever it is made."""

    epoch: int
    reason: Occasion
    deployment: Deployment
    policy: Policy
    ranks: tuple[int, ...]
    """Those that keep experts."""
    speeds: Loads
    """Of all ranks, as the search takes them; 0 for those that keep none."""
    problem: PlacementProblem
    """The forecast loads on these ranks, at their speeds."""
    before: SlotMap
    """[layers, slots]"""
    links: CopyLinks
    allowance: float
    """Moves that may be made because loads drift."""


def balance_experts(state: State, now: float) -> tuple[Command, ...]:  # noqa: ARG001 - every rule takes the time
    """Move the few experts whose gain pays for their copy, where layers drift, a GPU is hot, or ranks have changed."""
    search = search_of(state)
    return () if search is None else (found(search),)


def leave_search(state: State, now: float) -> tuple[Command, ...] | None:  # noqa: ARG001 - as above
    """Let nothing that comes later in the chain be decided while a search is due, which is made elsewhere."""
    return None if _reason(state) else ()


def search_of(state: State) -> Search | None:
    """Return the search that is due; None where experts stay where they are."""
    reason = _reason(state)
    if reason is None:
        return None
    return Search(
        epoch=state.epoch,
        reason=reason,
        deployment=state.deployment,
        policy=state.policy,
        ranks=tuple(np.flatnonzero(state.ranks.working).tolist()),
        speeds=speeds(state),
        problem=working_problem(state, state.forecast.shares[None]),
        before=working_map(state),
        links=working_links(state),
        allowance=state.drift.allowance,
    )


def stands(search: Search, state: State) -> bool:
    """Return whether what a search finds may still be done: in its epoch, to its map, for its reason.

    Loads may have gone on meanwhile, as they do after every decision, and speeds by as little as none is made for.
    """
    if search.epoch != state.epoch or search.reason != _reason(state):
        return False
    if not np.array_equal(search.before, working_map(state)):
        return False
    return not (np.abs(speeds(state) - search.speeds) > _OTHER_SPEED).any()


def found(search: Search) -> MoveExperts:
    """Return the moves that a search finds, none where none pays; of 58 layers it takes a second or two."""
    after = _better(search)
    num_slots = search.problem.num_slots // search.problem.num_gpus
    return MoveExperts(search.epoch, num_slots, _moves(search, after), search.reason)


def _reason(state: State) -> Occasion | None:
    """Return why a search is due now, if it is."""
    if not state.policy.balance or state.pending or not is_covered(state):
        return None
    return _occasion(state)


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


def _better(search: Search) -> SlotMap:
    """Return the map after copies have followed the load and peaks were lowered, where that pays; [layers, slots]."""
    deployment, bounds, problem, before = search.deployment, search.policy, search.problem, search.before
    share = bounds.max_settling_share if search.reason == "members" else bounds.max_move_share
    most = max(_FEWEST_MOVES, math.ceil(problem.num_slots * share))
    followed = replicas_that_follow(before, problem.shares()[0], problem.num_gpus, most // 2)
    horizon_steps = bounds.horizon_windows * bounds.window_s / deployment.step_s
    payback = Payback(search.links, deployment.layer_step_s, horizon_steps)
    level = np.full(problem.num_layers, 1 + _LEAST_EXCESS)
    moved = migrate(problem, followed, max_moves=most, payback=payback, enough=level, width=_WIDTH).slot_map
    after = settled(problem, before, moved)
    gain_s = _net_gain_s(problem, before, after, payback)
    pays = gain_s > 0
    if search.reason == "balance":
        pays &= _affordable(gain_s, (after != before).sum(axis=1), search.allowance)
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


def _moves(search: Search, after: SlotMap) -> tuple[Move, ...]:
    """Return the moves in an order in which every expert keeps a copy."""
    problem, rank = search.problem, search.ranks
    work = MoveProblem(problem.shares() * problem.num_gpus, 1 / problem.speed(), problem.num_nodes)
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
        for move in ordered_moves(problem, work, search.before, after)
    )
