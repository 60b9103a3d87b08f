"""Health: who of some ranks is silent, hung, cut off or slow, by the signs of life that they give.

The run time and the control plane judge by these laws; neither has others.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterable

    from numpy.typing import NDArray

    Mask = NDArray[np.bool_]
    Seconds = NDArray[np.float64]
    Work = NDArray[np.float64]

_MAD_TO_SIGMA = 1.4826
"""Of a normal law (Rousseeuw and Croux, "Alternatives to the median absolute deviation", 1993)."""
_SIGMAS = 6.0
FEWEST_PEERS = 3
"""Ranks that a median says anything about."""
FEWEST_WINDOWS = 16
"""That say anything of a rank's past."""
_NEAREST = 5
"""Windows of the past, those nearest in work, that a rank's time is held against."""


@dataclass(frozen=True, slots=True)
class Patience:
    """Seconds. Whoever has less of it recovers sooner and fences more that would have come back.

    Together they keep every fault that a rank survives below 5 s: a frozen process `silent_s`, a hung one `stuck_s`,
    a link that is cut `deadlocked_s`, then `connect_s` (`runtime/elastic/limits.py`) until nobody is reached, and
    `settle_s`.
    """

    silent_s: float = 1.5
    """Without a sign of life a rank is frozen."""
    stuck_s: float = 4.0
    """A rank that lives and gets nowhere, not waiting for anybody, while others wait, is hung."""
    deadlocked_s: float = 1.5
    """Where all ranks wait and none gets anywhere, the step is given up and taken again: that costs a step, and
    nobody is lost for it, so it may come soon."""
    load_s: float = 120.0
    """From one tensor to the next while weights are read, in place of `stuck_s`."""
    settle_s: float = 0.3
    """From a word that a peer was lost until the step is given up: its cause may come meanwhile."""
    blame_s: float = 30.0
    """For how long it is remembered who could not reach whom."""
    most_blamed: int = 2
    """Memberships of that time in which somebody could not be reached, until he is cut off."""


@dataclass(frozen=True, slots=True, eq=False)
class Signs:
    """What is known of the ranks of one membership, each [ranks]."""

    silent_s: Seconds
    """Since it was heard of last."""
    still_s: Seconds
    """Since it got anywhere, as far as is known."""
    waits: Mask
    """Whether it waits for others."""
    loads: Mask
    """Whether it still reads weights, which may take long from one sign to the next."""


def silent(signs: Signs, patience: Patience) -> Mask:
    """Return the ranks that show no sign of life: their processes are stopped, or starved."""
    return signs.silent_s > patience.silent_s


def hung(signs: Signs, patience: Patience) -> Mask:
    """Return the ranks that get nowhere though nobody keeps them waiting, while another waits just as long."""
    still = signs.still_s > np.where(signs.loads, patience.load_s, patience.stuck_s)
    kept_waiting = signs.waits & (signs.still_s > patience.stuck_s)
    return still & ~signs.waits & kept_waiting.any()


def is_deadlocked(signs: Signs, patience: Patience) -> bool:
    """Return whether all ranks wait and none has got anywhere for too long: a link is cut, or a message lost."""
    return bool(signs.waits.size) and bool((signs.waits & (signs.still_s > patience.deadlocked_s)).all())


class Blame(NamedTuple):
    """One could not reach another."""

    time_s: float
    epoch: int
    blamer: int
    blamed: int


def cut_off(blames: Iterable[Blame], patience: Patience, now_s: float) -> int | None:
    """Return whom most others could not reach, where that was so in several memberships of late; else None.

    Of two that blame each other, the one of the higher number.
    """
    recent = [each for each in blames if now_s - each.time_s < patience.blame_s]
    if len({each.epoch for each in recent}) < patience.most_blamed:
        return None
    pairs = {(each.blamer, each.blamed) for each in recent}
    counts = Counter(blamed for _, blamed in pairs)
    return max(counts, key=lambda each: (counts[each], each))


def relative_times(own_s: Seconds, work: Work | None = None) -> Seconds:
    """Return each rank's own time for the same steps over what its work takes by the word of the median rank, [ranks].

    `work` [ranks, kinds] is how much of each kind each had to do; None: all had the same. A step that takes a fixed
    time and a time in proportion to each kind of work takes at most k times as long where no kind of work is more than
    k times as much, whatever these times are. So a rank is never said to be slower than it is, however uneven the work;
    where a rank has work of which most others have none, nothing is said of it: 0.
    """
    if not len(own_s):
        return own_s
    longer = np.ones((len(own_s), len(own_s))) if work is None else _longer(work[:, None, :], work[None, :, :])
    expected = np.median(own_s[None, :] * longer, axis=1)
    found: Seconds = np.divide(own_s, expected, out=np.ones(len(own_s)), where=expected > 0)
    return found


def _longer(of: Work, by: Work) -> NDArray[np.float64]:
    """Return how many times as long one work may take as another at most, 1 at least; [..., kinds] -> [...]."""
    times = np.divide(of, by, out=np.where(of > 0, np.inf, 1.0) + 0.0 * by, where=by > 0)
    return np.maximum(times.max(axis=-1, initial=1.0), 1.0)


def paces_beside_past(own_s: Seconds, work: Work, past_s: Seconds, past_work: Work) -> Seconds:
    """Return by how much each rank has become slower than the others have meanwhile, [ranks].

    `work` [ranks, kinds] is how much of each kind each had to do; `past_s` [windows, ranks] and `past_work` [windows,
    ranks, kinds] are those of earlier windows, NaN where there were none. By the law of `relative_times` the time of
    one window holds that of another between two bounds, and no work breaks these: a rank is taken to have become slower
    by the least that its time can mean, and the machine by the most that the others' can. Both since the same window;
    of all windows those nearest in work are asked, and their median counts. NaN where there are too few, or no other
    rank; 0 where nothing is said, as there was no work like it.
    """
    known = ~np.isnan(past_s).any(axis=1)
    if len(own_s) < FEWEST_PEERS - 1 or known.sum() < FEWEST_WINDOWS:
        return np.full(len(own_s), np.nan)
    longer, shorter = _longer(work, past_work[known]), _longer(past_work[known], work)
    nearest = np.argsort((np.log(longer) + np.log(shorter)).sum(axis=1), kind="stable")[:_NEAREST]
    over = (own_s / past_s[known])[nearest]
    least, most = over / longer[nearest], over * shorter[nearest]
    others = np.column_stack([np.median(np.delete(most, rank, 1), axis=1) for rank in range(len(own_s))])
    found: Seconds = np.median(least / np.maximum(others, 1.0), axis=0)
    return found


def slowness(relative: Seconds, slower: float) -> Seconds:
    """Return the relative times of the ranks that are slow, [ranks]; 1 for those below `slower`, or as far as others.

    Fewer than three ranks say nothing about each other.
    """
    if len(relative) < FEWEST_PEERS:
        return np.ones(len(relative))
    middle = float(np.median(relative))
    scatter = _MAD_TO_SIGMA * float(np.median(np.abs(relative - middle)))
    outlying = (relative > slower) & (relative > middle + _SIGMAS * scatter)
    return np.where(outlying, relative, 1.0)


def slowness_beside_past(relative: Seconds, past: Seconds, slower: float) -> Seconds:
    """Return the relative times of the ranks that are slow, [ranks]; 1 for those below `slower`, or as far as before.

    `past` [windows, ranks] are their relative times when nothing was wrong, NaN where there were none; where these are
    too few, nothing is said.
    """
    before = past[~np.isnan(past).any(axis=1)]
    if len(before) < FEWEST_WINDOWS:
        return np.ones(len(relative))
    middle = np.median(before, axis=0)
    scatter = _MAD_TO_SIGMA * np.median(np.abs(before - middle), axis=0)
    outlying = relative > np.maximum(slower, middle + _SIGMAS * scatter)
    return np.where(outlying, relative, 1.0)
