"""Health: who is silent, hung, stuck or slow, from heartbeats and what they carry."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from moiety.control.state import State
    from moiety.placement.problem import Loads

    Mask = NDArray[np.bool_]

_MAD_TO_SIGMA = 1.4826
"""Of a normal law (Rousseeuw and Croux, "Alternatives to the median absolute deviation", 1993)."""
_SIGMAS = 6.0
_FEWEST_PEERS = 3
"""Ranks that a median says anything about."""


def silent(state: State, now: float) -> Mask:
    """Return the members, [ranks], whose last heartbeat is too long ago: a frozen process beats nothing."""
    ranks = state.ranks
    return ranks.members & ~ranks.exited & (now - ranks.beat_s > state.policy.beat_timeout_s)


def has_quorum(state: State, now: float) -> bool:
    """Return whether those heard are most of the members that may still live, so that no other part can be.

    Of two halves the one with the lowest rank is the one. A process that is known to have ended is in neither.
    """
    unheard = silent(state, now)
    alive = state.ranks.members & ~state.ranks.exited
    heard = int((alive & ~unheard).sum())
    if 2 * heard != int(alive.sum()):
        return 2 * heard > int(alive.sum())
    return heard > 0 and not unheard[int(alive.argmax())]


def hung(state: State, now: float) -> Mask:
    """Return the members that the others have waited for too long: alive, and behind in entering a collective."""
    ranks = state.ranks
    members = ranks.members
    if not members.any():
        return members
    front = ranks.progress == ranks.progress[members].max()
    waited = now - ranks.progress_s > state.policy.progress_timeout_s
    expected = members & front & ranks.waiting & waited
    return members & ~front & waited if expected.any() else np.zeros_like(members)


def is_stuck(state: State, now: float) -> bool:
    """Return whether all members wait in the same collective for too long, so that nobody can be blamed."""
    ranks = state.ranks
    members = ranks.members
    if not members.any():
        return False
    together = np.unique(ranks.progress[members]).size == 1
    waited = now - ranks.progress_s[members] > state.policy.progress_timeout_s
    return together and bool(ranks.waiting[members].all() and waited.all())


def slowness(state: State) -> Loads:
    """Return each rank's own step time over the median of all, [ranks]; 1 where it is within what scatters.

    A rank's time is the median of its last beats; where too few have been heard, it is taken to be like the others.
    """
    ranks, bounds = state.ranks, state.policy
    recent = ranks.steps_s[:, -bounds.slow_beats :]
    known = ranks.members & ~np.isnan(recent).any(axis=1)
    found = np.ones(len(known))
    if known.sum() < _FEWEST_PEERS:
        return found
    own = np.median(recent[known], axis=1)
    middle = float(np.median(own))
    scatter = _MAD_TO_SIGMA * float(np.median(np.abs(own - middle)))
    ratio = own / middle
    outlying = (ratio > bounds.slower) & (own > middle + _SIGMAS * scatter)
    found[known] = np.where(outlying, ratio, 1.0)
    return found


def speeds(state: State) -> Loads:
    """Return the relative speed that experts are placed by, [ranks]: what slowness and heat leave; 0 without any."""
    found: Loads = state.ranks.relief / slowness(state)
    return np.where(state.ranks.working, found, 0.0)
