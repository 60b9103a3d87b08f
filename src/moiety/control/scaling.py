"""Rules about nodes: as many as the demand needs within the SLO, and the fewest that hold it."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from moiety.control.commands import Drain, Park, ScaleUp
from moiety.control.state import Status
from moiety.control.working import is_covered

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from moiety.control.commands import Command
    from moiety.control.state import State


def scale_nodes(state: State, now: float) -> tuple[Command, ...]:
    """Ask for nodes at once when demand nears what there is, or experts fit on none; give some up when it is low."""
    rate = state.deployment.tokens_per_s_per_node
    if rate is None or (state.asked and now - state.asked_s <= state.policy.start_timeout_s):
        return ()
    if state.refused:
        return _up(state, state.deployment.num_nodes)
    if not state.demands or state.pending or _in_between(state):
        return ()
    nodes = state.ranks.working.reshape(-1, state.deployment.ranks_per_node)
    have = float(nodes.sum()) / state.deployment.ranks_per_node
    bounds = state.policy
    needed = state.demands[-1] / (rate * bounds.scale_up_at)
    if needed > have:
        return _up(state, math.ceil(needed))
    patient = state.demands[-bounds.scale_patience :]
    if len(patient) < bounds.scale_patience or _is_late(state):
        return ()
    wanted = max(math.ceil(max(patient) / (rate * bounds.scale_down_to)), bounds.least_nodes, 1)
    return _down(state, wanted)


def park_drained(state: State, now: float) -> tuple[Command, ...]:  # noqa: ARG001 - every rule takes the time
    """Let drained ranks go when those that stay hold every expert."""
    leaving = np.flatnonzero(state.ranks.status == Status.LEAVING)
    if state.pending or not len(leaving) or not is_covered(state):
        return ()
    return (Park(state.epoch + 1, tuple(leaving.tolist())),)


def _in_between(state: State) -> bool:
    status = state.ranks.status
    return bool(((status == Status.LEAVING) | (status == Status.JOINING)).any())


def _is_late(state: State) -> bool:
    """Return whether tokens come slower than the objective lets them, as measured."""
    limit_s = state.deployment.tpot_limit_s
    return state.tpot_s is not None and limit_s is not None and state.tpot_s > limit_s


def _up(state: State, wanted: int) -> tuple[Command, ...]:
    """Return the call for the first nodes that are parked as a whole, as many as are wanted and there are."""
    width = state.deployment.ranks_per_node
    parked = np.flatnonzero((state.ranks.status == Status.PARKED).reshape(-1, width).all(axis=1))
    used = int(state.ranks.working.reshape(-1, width).any(axis=1).sum())
    started = parked[: max(wanted - used, 0)]
    return (ScaleUp(used + len(started), _ranks_of(started, width)),) if len(started) else ()


def _down(state: State, wanted: int) -> tuple[Command, ...]:
    """Return the draining of nodes beyond those wanted: broken ones first, then hot ones, then the last."""
    deployment = state.deployment
    width = deployment.ranks_per_node
    working = state.ranks.working.reshape(-1, width).sum(axis=1)
    cool = state.ranks.relief.reshape(-1, width).mean(axis=1)
    order = [node for node in np.lexsort((-np.arange(len(working)), cool, working)).tolist() if working[node]]
    keep, leave = len(order), list[int]()
    for node in order:
        left = int(working.sum()) - int(working[[*leave, node]].sum())
        if keep <= wanted or left * deployment.most_slots < deployment.num_experts:
            break
        leave.append(node)
        keep -= 1
    members = np.zeros(len(working), dtype=np.bool_)
    members[leave] = True
    ranks = np.flatnonzero(state.ranks.working & members.repeat(width))
    return (Drain(state.epoch + 1, keep, tuple(ranks.tolist())),) if leave else ()


def _ranks_of(nodes: NDArray[np.intp], width: int) -> tuple[int, ...]:
    return tuple((nodes[:, None] * width + np.arange(width)).ravel().tolist())
