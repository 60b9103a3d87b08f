"""Events into states: one small function a kind of event."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from moiety.control.demand import at_planned_pace, demand_tokens_per_s
from moiety.control.drift import observed_drift
from moiety.control.events import (
    DeviceReading,
    Exited,
    ExpertCounts,
    Heartbeat,
    Issued,
    Joined,
    Moved,
    Parted,
    RequestMetrics,
    StepTimes,
    Timer,
    Unfit,
)
from moiety.control.forecast.backtest import cleaned, observe
from moiety.control.health import has_quorum
from moiety.control.issued import issued
from moiety.control.pace import observed_paces
from moiety.control.state import NOBODY, Status
from moiety.control.working import is_covered, relative_loads, working_map, working_problem
from moiety.errors import InputError
from moiety.health import Blame

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from moiety.control.events import Event
    from moiety.control.state import Ranks, State

_KEPT_DEMANDS = 64
_LEAST_ALLOWANCE = 4.0
"""Moves that can be saved for, in the smallest of deployments: a swap and copies that follow."""
_BACK = 0.05
"""Of its load that a GPU gets back when it has stayed cool."""


def apply(event: Event, state: State) -> State:
    """Return the state after an event; raise InputError for one about ranks or shapes that there are not."""
    rank = getattr(event, "rank", None)
    if rank is not None and not 0 <= rank < state.deployment.num_ranks:
        raise InputError(f"there are {state.deployment.num_ranks} ranks, from 0", field="rank", value=rank)
    after = _HANDLERS[type(event)](event, state)
    return replace(after, time_s=max(state.time_s, event.time_s))


def _heartbeat(event: Heartbeat, state: State) -> State:
    ranks, rank = state.ranks, event.rank
    if event.epoch > state.epoch:
        return replace(state, superseded=True)
    if ranks.status[rank] == Status.JOINING:
        return replace(state, ranks=replace(ranks, beat_s=put(ranks.beat_s, rank, event.time_s)))
    if not ranks.members[rank]:
        return replace(state, zombie_words=state.zombie_words + 1)
    known = replace(ranks, beat_s=put(ranks.beat_s, rank, event.time_s))
    if event.epoch == state.epoch:  # an older one has not heard of the new epoch yet: alive, and no more is said
        known = _progress(known, event)
    after = replace(state, ranks=known)
    still_back = state.superseded or not has_quorum(after, event.time_s)
    return replace(after, standing_back=state.standing_back and still_back)


def _progress(ranks: Ranks, event: Heartbeat) -> Ranks:
    rank = event.rank
    went_on = event.progress != ranks.progress[rank] or event.waiting != ranks.waiting[rank]
    return replace(
        ranks,
        progress=put(ranks.progress, rank, event.progress),
        progress_s=put(ranks.progress_s, rank, event.time_s) if went_on else ranks.progress_s,
        waiting=put(ranks.waiting, rank, event.waiting),
        waits_for=put(ranks.waits_for, rank, NOBODY if event.waits_for is None else event.waits_for),
        loading=put(ranks.loading, rank, event.loading),
    )


def _step_times(event: StepTimes, state: State) -> State:
    """Note by how much ranks were slower than their work explains; those that took no part keep what was known."""
    ranks = state.ranks
    if event.own_s.shape != ranks.own_s.shape:
        raise InputError(f"must be of {len(ranks.own_s)} ranks", field="own_s", value=list(event.own_s.shape))
    if event.epoch != state.epoch:
        return state
    return replace(state, ranks=observed_paces(ranks, event, state.policy.slower))


def _parted(event: Parted, state: State) -> State:
    ranks, peer = state.ranks, event.peer
    if event.epoch != state.epoch or not ranks.members[event.rank]:
        return replace(state, zombie_words=state.zombie_words + 1)
    if not (0 <= peer < len(ranks.status) and ranks.members[peer]):
        return state
    recent = tuple(each for each in state.blames if event.time_s - each.time_s < state.policy.patience.blame_s)
    return replace(state, blames=(*recent, Blame(event.time_s, event.epoch, event.rank, peer)))


def _exited(event: Exited, state: State) -> State:
    ranks = state.ranks
    if ranks.members[event.rank]:
        return replace(state, ranks=replace(ranks, exited=put(ranks.exited, event.rank, value=True)))
    if ranks.status[event.rank] == Status.JOINING:
        return replace(state, ranks=replace(ranks, status=put(ranks.status, event.rank, Status.FENCED)))
    return state


def _joined(event: Joined, state: State) -> State:
    """Note that a fenced or parked rank is there again; one that was believed to work has lost what it held."""
    ranks, rank = state.ranks, event.rank
    if ranks.members[rank]:
        return replace(state, ranks=replace(ranks, exited=put(ranks.exited, rank, value=True)))
    known = replace(ranks, status=put(ranks.status, rank, Status.JOINING), beat_s=put(ranks.beat_s, rank, event.time_s))
    return replace(state, ranks=known, asked=tuple(each for each in state.asked if each != rank))


def _expert_counts(event: ExpertCounts, state: State) -> State:
    shape = (state.deployment.num_layers, state.deployment.num_experts)
    if event.counts.shape != shape:
        raise InputError(f"must be {list(shape)}, [layers, experts]", field="counts", value=list(event.counts.shape))
    after = replace(state, forecast=observe(state.forecast, event.counts))
    rows = cleaned(event.counts).sum(axis=1)
    if not (is_covered(after) and rows.any()):
        return after
    slot_map = working_map(after)
    drift = observed_drift(
        replace(state.drift, allowance=_allowance(state, slot_map.size)),
        after.forecast.history,
        slot_map,
        lambda shares, held: relative_loads(working_problem(after, shares), held),
        rows,
    )
    return replace(after, drift=drift)


def _allowance(state: State, slots: int) -> float:
    """Return the moves that drift may cost after one more window."""
    share, windows = state.policy.mean_move_share, state.policy.saved_windows
    return min(state.drift.allowance + share * slots, max(windows * share * slots, _LEAST_ALLOWANCE))


def _device_reading(event: DeviceReading, state: State) -> State:
    ranks, rank, bounds = state.ranks, event.rank, state.policy
    known = ranks
    if event.power_w is not None and np.isfinite(event.power_w):
        known = replace(known, power_w=put(ranks.power_w, rank, event.power_w))
    warm = event.temperature_c if event.temperature_c is not None and np.isfinite(event.temperature_c) else None
    hot = event.throttled or (warm is not None and warm >= bounds.hot_c)
    cool = not event.throttled and warm is not None and warm <= bounds.cool_c
    relief, rest = float(ranks.relief[rank]), int(ranks.cool[rank]) + 1 if cool else 0
    if hot:
        relief = max(relief - bounds.relief, bounds.least_speed)
    elif rest >= bounds.cool_readings:
        relief, rest = min(relief + _BACK, 1.0), 0
    known = replace(known, relief=put(ranks.relief, rank, relief), cool=put(ranks.cool, rank, rest))
    return replace(state, ranks=known)


def _request_metrics(event: RequestMetrics, state: State) -> State:
    tpot_s = event.tpot_s if event.tpot_s is not None and _is_amount(event.tpot_s) else None
    after = state if tpot_s is None else replace(state, tpot_s=tpot_s)
    if not _is_amount(event.served_tokens_per_s):
        return after
    served, backlog = at_planned_pace(event.served_tokens_per_s, tpot_s, state.deployment.tpot_s), event.backlog_tokens
    if backlog is None or not _is_amount(backlog):
        return replace(after, demands=(*state.demands, served)[-_KEPT_DEMANDS:])
    since_s = 0.0 if state.backlog_s is None else event.time_s - state.backlog_s
    before, drain_s = state.backlog_tokens, state.policy.drain_s
    demand = demand_tokens_per_s(served, backlog, before=before, since_s=since_s, drain_s=drain_s)
    demands = (*state.demands, demand)[-_KEPT_DEMANDS:]
    return replace(after, demands=demands, backlog_tokens=backlog, backlog_s=event.time_s)


def _is_amount(value: float) -> bool:
    return bool(np.isfinite(value)) and value >= 0


def _moved(event: Moved, state: State) -> State:
    """Note a move that is done; a report that is not awaited, or of another epoch, changes nothing: it may be late."""
    if event.epoch != state.epoch:
        return replace(state, zombie_words=state.zombie_words + 1)
    place = (event.layer, event.rank, event.slot, event.expert)
    left = tuple(move for move in state.pending if move[:4] != place)
    if len(left) == len(state.pending):
        return state
    slot_map = put(state.slot_map, place[:3], event.expert)
    if not left:
        slot_map = slot_map[:, :, : state.num_slots]
    return replace(state, slot_map=slot_map, pending=left, moves=state.moves + 1)


def _unfit(event: Unfit, state: State) -> State:
    """Note that what was asked for cannot be done; of moves that are pending no more it means nothing."""
    if event.epoch != state.epoch:
        return replace(state, zombie_words=state.zombie_words + 1)
    return replace(state, unfit=event.reason) if state.pending else state


def _issued(event: Issued, state: State) -> State:
    return issued(event.command, state, event.time_s)


def _timer(event: Timer, state: State) -> State:  # noqa: ARG001 - the time itself is taken by `apply`
    return state


def put(array: NDArray[Any], where: int | tuple[int, ...], value: object) -> NDArray[Any]:
    """Return a copy of the array with one entry, or one row, changed."""
    copy = array.copy()
    copy[where] = value
    return copy


_HANDLERS: dict[type, Callable[[Any, State], State]] = {
    Heartbeat: _heartbeat,
    StepTimes: _step_times,
    Exited: _exited,
    Joined: _joined,
    ExpertCounts: _expert_counts,
    DeviceReading: _device_reading,
    RequestMetrics: _request_metrics,
    Moved: _moved,
    Unfit: _unfit,
    Parted: _parted,
    Issued: _issued,
    Timer: _timer,
}
