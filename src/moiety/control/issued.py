"""What a command changes in the state once it has been given out."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from moiety.control.backoff import next_wait_s, remembered_wait_s, served_s
from moiety.control.commands import (
    AbortStep,
    Admit,
    CapPower,
    Drain,
    Fence,
    LockClock,
    MoveExperts,
    Park,
    Refuse,
    Resume,
    ScaleUp,
    StandBack,
)
from moiety.control.health import is_deadlocked, speeds
from moiety.control.state import NOBODY, Status
from moiety.health import Blame
from moiety.placement.recovery import EMPTY

if TYPE_CHECKING:
    from collections.abc import Callable

    from moiety.control.commands import Command
    from moiety.control.state import State


def issued(command: Command, state: State, time_s: float) -> State:
    """Return the state after a command was given out."""
    return _HANDLERS[type(command)](command, state, time_s)


def _new_epoch(state: State, epoch: int, time_s: float) -> State:
    """Return the state under a new epoch: collectives count from 0, and of moves nobody knows how far they came."""
    ranks, slot_map = state.ranks, state.slot_map
    if state.pending:
        slot_map = slot_map.copy()
        for move in state.pending:
            slot_map[move.layer, move.rank, move.slot] = EMPTY
    count = len(ranks.status)
    fresh = replace(
        ranks,
        progress=np.zeros(count, dtype=np.int64),
        progress_s=np.full(count, time_s),
        waiting=np.zeros(count, dtype=np.bool_),
        waits_for=np.full(count, NOBODY),
        loading=np.ones(count, dtype=np.bool_),  # until they say that they have what they need
        paces=np.where(ranks.few[:, None], np.nan, ranks.paces),
        past=np.full_like(ranks.past, np.nan),
    )
    return replace(state, epoch=epoch, ranks=fresh, slot_map=slot_map, pending=(), unfit=None)


def _without(state: State, numbers: tuple[int, ...], status: Status) -> State:
    """Return the state in which these ranks hold nothing, and nothing is known of their pace."""
    chosen = list(numbers)
    ranks, slot_map = state.ranks, state.slot_map.copy()
    slot_map[:, chosen] = EMPTY
    known = ranks.status.copy()
    known[chosen] = status
    exited, own_s, paces = ranks.exited.copy(), ranks.own_s.copy(), ranks.paces.copy()
    exited[chosen], own_s[chosen], paces[chosen] = False, np.nan, np.nan
    fresh = replace(ranks, status=known, exited=exited, own_s=own_s, paces=paces)
    return replace(state, slot_map=slot_map, ranks=fresh)


def _fence(command: Fence, state: State, time_s: float) -> State:
    after = _without(_new_epoch(state, command.epoch, time_s), command.ranks, Status.FENCED)
    ranks, chosen = after.ranks, list(command.ranks)
    known_why = (each.epoch == state.epoch or {each.blamer, each.blamed} & {*command.ranks} for each in state.blames)
    blames = tuple(each for each, known in zip(state.blames, known_why, strict=True) if not known)
    wait_s, fenced_s = ranks.wait_s.copy(), ranks.fenced_s.copy()
    wait_s[chosen] = next_wait_s(wait_s, served_s(state, time_s), state.policy)[chosen]
    fenced_s[chosen] = time_s
    known = replace(ranks, wait_s=wait_s, fenced_s=fenced_s)
    return replace(after, ranks=known, blames=blames, recoveries=state.recoveries + 1)


def _abort_step(command: AbortStep, state: State, time_s: float) -> State:
    """Begin a new epoch; where all waited, each for one that is known, that is who could not be reached."""
    ranks, blames = state.ranks, state.blames
    if is_deadlocked(state, time_s):
        waiting = np.flatnonzero(ranks.members & (ranks.waits_for != NOBODY)).tolist()
        blames += tuple(Blame(time_s, state.epoch, rank, int(ranks.waits_for[rank])) for rank in waiting)
    return replace(_new_epoch(state, command.epoch, time_s), blames=blames)


def _admit(command: Admit, state: State, time_s: float) -> State:
    after = _without(_new_epoch(state, command.epoch, time_s), command.ranks, Status.WORKING)
    ranks, chosen = after.ranks, list(command.ranks)
    beat_s, admitted_s, relief, cool = (
        each.copy() for each in (ranks.beat_s, ranks.admitted_s, ranks.relief, ranks.cool)
    )
    beat_s[chosen], admitted_s[chosen], relief[chosen], cool[chosen] = time_s, time_s, 1.0, 0
    return replace(after, ranks=replace(ranks, beat_s=beat_s, admitted_s=admitted_s, relief=relief, cool=cool))


def _park(command: Park, state: State, time_s: float) -> State:
    """Let ranks go; what they have served well for counts, though they are taken in anew when they come back."""
    after = _without(_new_epoch(state, command.epoch, time_s), command.ranks, Status.PARKED)
    ranks, chosen = after.ranks, list(command.ranks)
    wait_s = ranks.wait_s.copy()
    wait_s[chosen] = remembered_wait_s(wait_s, served_s(state, time_s), state.policy)[chosen]
    return replace(after, ranks=replace(ranks, wait_s=wait_s))


def _move_experts(command: MoveExperts, state: State, time_s: float) -> State:
    slot_map = state.slot_map
    layers, ranks, size = slot_map.shape
    if command.num_slots > size:
        grown = np.full((layers, ranks, command.num_slots - size), EMPTY, dtype=np.int64)
        slot_map = np.concatenate([slot_map, grown], axis=2)
    spent = len(command.moves) if command.reason == "balance" else 0
    return replace(
        state,
        slot_map=slot_map if command.moves else slot_map[:, :, : command.num_slots],
        num_slots=command.num_slots,
        pending=command.moves,
        pending_s=time_s,
        pending_reason=command.reason,
        drift=replace(state.drift, due=False, allowance=state.drift.allowance - spent),
        speed_placed=speeds(state) if command.reason in {"members", "heat"} else state.speed_placed,
    )


def _refuse(command: Refuse, state: State, time_s: float) -> State:  # noqa: ARG001 - every handler takes the time
    return replace(state, refused=command.experts)


def _resume(command: Resume, state: State, time_s: float) -> State:  # noqa: ARG001 - as above
    return replace(state, refused=())


def _stand_back(command: StandBack, state: State, time_s: float) -> State:  # noqa: ARG001 - as above
    return replace(state, standing_back=True)


def _scale_up(command: ScaleUp, state: State, time_s: float) -> State:
    return replace(state, asked=command.ranks, asked_s=time_s)


def _drain(command: Drain, state: State, time_s: float) -> State:
    after = _new_epoch(state, command.epoch, time_s)
    known = after.ranks.status.copy()
    known[list(command.ranks)] = Status.LEAVING
    return replace(after, ranks=replace(after.ranks, status=known))


def _lock_clock(command: LockClock, state: State, time_s: float) -> State:  # noqa: ARG001 - as above
    return replace(state, limit=command.clock_hz)


def _cap_power(command: CapPower, state: State, time_s: float) -> State:  # noqa: ARG001 - as above
    return replace(state, limit=command.power_w)


_HANDLERS: dict[type, Callable[[Any, State, float], State]] = {
    AbortStep: _abort_step,
    Admit: _admit,
    CapPower: _cap_power,
    Drain: _drain,
    Fence: _fence,
    LockClock: _lock_clock,
    MoveExperts: _move_experts,
    Park: _park,
    Refuse: _refuse,
    Resume: _resume,
    ScaleUp: _scale_up,
    StandBack: _stand_back,
}
