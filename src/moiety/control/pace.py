"""Paces: by how much ranks are slower than their work explains, window of steps by window.

Where three ranks or more compute the same layers, a rank is held against the others. Where they are fewer, against its
own past; and what all ranks have become slower by, whatever their layers, is the machine's, and nobody's own.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from moiety.health import FEWEST_PEERS, paces_beside_past, relative_times

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from moiety.control.events import StepTimes
    from moiety.control.state import Ranks
    from moiety.placement.problem import Loads


def observed_paces(ranks: Ranks, event: StepTimes, slower: float) -> Ranks:
    """Return the ranks after a window of steps; of those that took no part in it what was known is kept.

    A window in which one that has few others was `slower` is no part of the past: nobody gets used to that.
    """
    told = ranks.members & (event.own_s > 0) & (event.alike_s > 0)
    if not told.any():
        return ranks
    few, pace = _few(event, told), _paces(event, told)
    past = ranks.past
    if few.any():
        past = _past(ranks, event.work.shape[1])
        found = paces_beside_past(event.alike_s[told], event.work[told], past[:, told, 1], past[:, told, 2:])
        pace[few] = found[few[told]]
        if not (pace[few] > slower).any():
            now = np.column_stack([pace, event.alike_s, event.work])
            now[~told] = np.nan
            past = np.concatenate([past[1:], now[None]])
    paces = ranks.paces.copy()
    paces[told, :-1] = paces[told, 1:]
    paces[told, -1] = pace[told]
    return replace(ranks, own_s=np.where(told, event.own_s, ranks.own_s), paces=paces, few=few, past=past)


def _past(ranks: Ranks, kinds: int) -> Loads:
    """Return the past of ranks whose work is of so many kinds."""
    shape = (*ranks.past.shape[:2], kinds + 2)
    return ranks.past if ranks.past.shape == shape else np.full(shape, np.nan)


def _stages(event: StepTimes, told: NDArray[np.bool_]) -> list[NDArray[np.bool_]]:
    """Return those told of by stage, each [ranks]."""
    if event.stage is None:
        return [told]
    return [told & (event.stage == number) for number in np.unique(event.stage[told])]


def _few(event: StepTimes, told: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Return who has too few others in its stage to be held against them, [ranks]."""
    few = [each for each in _stages(event, told) if each.sum() < FEWEST_PEERS]
    return np.logical_or.reduce([np.zeros_like(told), *few])


def _paces(event: StepTimes, told: NDArray[np.bool_]) -> Loads:
    """Return the relative times of those told of among the ranks of their stage, [ranks]; NaN of others."""
    found = np.full(len(told), np.nan)
    for each in _stages(event, told):
        found[each] = relative_times(event.alike_s[each], event.work[each])
    return found
