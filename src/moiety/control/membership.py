"""Rules about who takes part: stand back, fence, abort, admit."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from moiety.control.commands import AbortStep, Admit, Fence, StandBack
from moiety.control.health import cut_off, has_quorum, hung, is_deadlocked, is_parted, silent, slowness
from moiety.control.state import Status

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from moiety.control.commands import Command
    from moiety.control.state import State

_SHOWN = 4


def stand_back(state: State, now: float) -> tuple[Command, ...] | None:
    """Without a majority, or under someone else's epoch, decide nothing: None ends the chain."""
    if not state.superseded and has_quorum(state, now):
        return ()
    if state.standing_back:
        return None
    if state.superseded:
        return (StandBack(f"ranks work under a later epoch than {state.epoch}"),)
    unheard, members = int(silent(state, now).sum()), int(state.ranks.members.sum())
    if not members:
        return (StandBack("no rank is left"),)
    return (StandBack(f"{unheard} of {members} ranks are not heard, and may go on elsewhere"),)


def fence_failed(state: State, now: float) -> tuple[Command, ...]:
    """Fence who has ended, is silent, keeps the others waiting, cannot be reached, or is far slower than they are."""
    members = state.ranks.members
    kinds = {
        "ended": members & state.ranks.exited,
        "silent": silent(state, now),
        "hung": hung(state, now),
        "cut off": cut_off(state, now),
        "slow": _far_slower(state),
    }
    failed = np.logical_or.reduce(list(kinds.values()))
    if not failed.any():
        return ()
    whole = _with_partners(failed, state.deployment.group_ranks) & members
    reason = "; ".join(f"{name}: {_some(found)}" for name, found in kinds.items() if found.any())
    return (Fence(state.epoch + 1, _numbers(whole), reason, _numbers(failed)),)


def _far_slower(state: State) -> NDArray[np.bool_]:
    """Return the members, [ranks], that are far slower than the others, as long as these can hold every expert."""
    deployment, members = state.deployment, state.ranks.members
    found = members & (slowness(state) > state.policy.far_slower)
    left = int((members & ~_with_partners(found, deployment.group_ranks)).sum())
    return found & (not deployment.num_layers or left * deployment.most_slots >= deployment.num_experts)


def abort_stuck_step(state: State, now: float) -> tuple[Command, ...]:
    """Give up a collective in which all wait for each other, or in which one has lost another that lives.

    Moves that do not fit what ranks hold end the epoch too: when all meet anew, all hold what is decided then.
    """
    if state.unfit is not None:
        return (AbortStep(state.epoch + 1, f"moves do not fit what ranks hold: {state.unfit}"),)
    if is_parted(state, now):
        return (AbortStep(state.epoch + 1, "ranks have lost each other, and both live"),)
    if is_deadlocked(state, now):
        return (AbortStep(state.epoch + 1, "all ranks wait and none gets anywhere"),)
    return ()


def admit_repaired(state: State, now: float) -> tuple[Command, ...]:
    """Take repaired ranks back, whole groups of them, when they have been away for long enough.

    Nodes that were asked for come as a whole, unless some of their ranks do not for too long. Not while experts move,
    unless experts are missing and so nothing is served.
    """
    if state.pending and not state.refused:
        return ()
    ranks, bounds = state.ranks, state.policy
    ready = (ranks.status == Status.JOINING) & (now - ranks.fenced_s >= ranks.wait_s)
    ready &= now - ranks.beat_s <= bounds.patience.silent_s
    if state.asked and now - state.asked_s <= bounds.start_timeout_s:
        ready &= ~_with_partners(_are_asked(state), state.deployment.ranks_per_node)
    width = state.deployment.group_ranks
    there = (ready | ranks.working).reshape(-1, width).all(axis=1).repeat(width)
    admitted = ready & there
    return (Admit(state.epoch + 1, _numbers(admitted)),) if admitted.any() else ()


def _are_asked(state: State) -> NDArray[np.bool_]:
    found = np.zeros_like(state.ranks.members)
    found[list(state.asked)] = True
    return found


def _with_partners(found: NDArray[np.bool_], width: int) -> NDArray[np.bool_]:
    """Return the ranks of all groups that have one of those found."""
    return found.reshape(-1, width).any(axis=1).repeat(width)


def _numbers(found: NDArray[np.bool_]) -> tuple[int, ...]:
    return tuple(np.flatnonzero(found).tolist())


def _some(found: NDArray[np.bool_]) -> str:
    numbers = _numbers(found)
    return "rank " + ", ".join(map(str, numbers[:_SHOWN])) + (", ..." if len(numbers) > _SHOWN else "")
