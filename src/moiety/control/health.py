"""What the laws of `moiety.health` say of a state's members."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from moiety import health
from moiety.control.state import Status
from moiety.health import Signs

if TYPE_CHECKING:
    from moiety.control.state import State
    from moiety.health import Mask, Seconds


def signs(state: State, now: float) -> Signs:
    """Return the signs of life of all ranks, members or not."""
    ranks = state.ranks
    return Signs(now - ranks.beat_s, now - ranks.progress_s, ranks.waiting, ranks.loading)


def silent(state: State, now: float) -> Mask:
    """Return the members, [ranks], whose last heartbeat is too long ago."""
    return state.ranks.members & ~state.ranks.exited & health.silent(signs(state, now), state.policy.patience)


def has_quorum(state: State, now: float) -> bool:
    """Return whether those heard are most of the members that may still live, so that no other part can be.

    Of two halves the one with the lowest rank is the one. A process that is known to have ended is in neither; where
    all members have, nobody is elsewhere, and whoever is there to be fenced or taken in is all that there is.
    """
    if not state.policy.needs_majority:
        return True
    unheard = silent(state, now)
    alive = state.ranks.members & ~state.ranks.exited
    if not alive.any():
        return bool((state.ranks.status != Status.FENCED).any())
    heard = int((alive & ~unheard).sum())
    if 2 * heard != int(alive.sum()):
        return 2 * heard > int(alive.sum())
    return not unheard[int(alive.argmax())]


def hung(state: State, now: float) -> Mask:
    """Return the members, [ranks], that get nowhere while others wait."""
    members = state.ranks.members
    found = np.zeros_like(members)
    found[members] = health.hung(_of_members(state, now), state.policy.patience)
    return found


def is_deadlocked(state: State, now: float) -> bool:
    """Return whether all members wait for each other for too long, so that nobody can be blamed."""
    return health.is_deadlocked(_of_members(state, now), state.policy.patience)


def is_parted(state: State, now: float) -> bool:
    """Return whether a member has lost another in this epoch, and the cause has not come to light since."""
    settle_s = state.policy.patience.settle_s
    return any(each.epoch == state.epoch and now - each.time_s >= settle_s for each in state.blames)


def cut_off(state: State, now: float) -> Mask:
    """Return the members, [ranks], that others could not reach again and again: one at most."""
    members = state.ranks.members
    blames = [each for each in state.blames if members[each.blamer] and members[each.blamed]]
    number = health.cut_off(blames, state.policy.patience, now)
    found = np.zeros_like(members)
    if number is not None:
        found[number] = True
    return found


def slowness(state: State) -> Seconds:
    """Return each rank's own step time over what its work takes others, [ranks]; 1 where it is within what scatters.

    A rank's pace is the median of its last windows; where there are too few, it is taken to be like the others.
    """
    ranks, bounds, known, pace = state.ranks, state.policy, is_judged(state), _pace(state)
    many, few = known & ~ranks.few, known & ranks.few
    found = np.ones(len(known))
    if many.any():
        found[many] = health.slowness(pace[many], bounds.slower)
    if few.any():
        found[few] = health.slowness_beside_past(pace[few], ranks.past[:, few, 0], bounds.slower)
    return found


def is_judged(state: State) -> Mask:
    """Return the members, [ranks], of whose pace enough is known to say that it is slow."""
    ranks = state.ranks
    has_past = (~np.isnan(ranks.past[:, :, 0])).sum(axis=0) >= health.FEWEST_WINDOWS
    return ranks.members & ~np.isnan(_pace(state)) & (has_past | ~ranks.few)


def _pace(state: State) -> Seconds:
    """Return the median pace of each rank's last windows of steps, [ranks]; NaN where they are too few."""
    ranks, bounds = state.ranks, state.policy
    many, few = (
        np.median(ranks.paces[:, -count:], axis=1) for count in (bounds.slow_windows, bounds.slow_windows_of_few)
    )
    return np.where(ranks.few, few, many)


def _of_members(state: State, now: float) -> Signs:
    every, members = signs(state, now), state.ranks.members
    return Signs(*(getattr(every, name)[members] for name in ("silent_s", "still_s", "waits", "loads")))


def speeds(state: State) -> Seconds:
    """Return the relative speed that experts are placed by, [ranks]: what slowness and heat leave; 0 without any."""
    found: Seconds = state.ranks.relief / slowness(state)
    return np.where(state.ranks.working, found, 0.0)
