"""Backoff: how long a fenced rank waits until it is taken back, and how good service makes that shorter again."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from moiety.control.health import hung

if TYPE_CHECKING:
    from moiety.control.policy import Policy
    from moiety.control.state import State
    from moiety.placement.problem import Loads


def next_wait_s(wait_s: Loads, served_s: Loads, policy: Policy) -> Loads:
    """Return the seconds that ranks wait when they are fenced now, of any shape.

    `wait_s` they have waited the last time, 0 where they were never fenced; `served_s` they have served well since.
    The wait doubles with each fence, as in any exponential backoff, and halves with each half-life of good service, as
    the figure of merit of a route that flaps does (RFC 2439, "BGP Route Flap Damping", 1998); within `backoff_s` and
    `most_backoff_s`. So a rank that is fenced more often than once in a half-life waits longer each time, and one that
    has served for as many half-lives as it was fenced waits as long as at first.
    """
    return np.clip(2.0 * remembered_wait_s(wait_s, served_s, policy), policy.backoff_s, policy.most_backoff_s)


def remembered_wait_s(wait_s: Loads, served_s: Loads, policy: Policy) -> Loads:
    """Return what is left of a wait after good service, both in seconds and of any shape."""
    return wait_s * 0.5 ** (served_s / (policy.backoff_half_life * policy.backoff_s))


def served_s(state: State, now: float) -> Loads:
    """Return for how many seconds each rank has served well since it was taken in, [ranks].

    Until its last sign of life, or where it hangs, until it last got anywhere: reading weights may take it long.
    """
    ranks = state.ranks
    until_s = np.where(hung(state, now), ranks.progress_s, ranks.beat_s)
    return np.maximum(until_s - ranks.admitted_s, 0.0)
