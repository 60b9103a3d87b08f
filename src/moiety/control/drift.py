"""Drift: whether the load has changed since experts were placed, and whether it pays to follow it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from moiety.control.change import has_changed

if TYPE_CHECKING:
    from collections.abc import Callable

    from moiety.placement.problem import Loads, SlotMap

    LoadsOf = Callable[[Loads, SlotMap], Loads]
    """GPUs' loads relative to the mean, [windows, layers, GPUs], under shares [windows, layers, experts] and a map."""

_TRIAL = 16
"""Windows after which moves are judged by what they have saved."""
_SETTLED = 8
"""Windows whose mean is the usual load from then on, where they have saved nothing."""


@dataclass(frozen=True, slots=True, eq=False)
class Drift:
    """What is known of it."""

    following: bool
    """Whether experts move after the load."""
    due: bool
    """Whether a window has come since they were last looked at."""
    windows: int
    """Since the load was last taken to be usual; while it is followed, since the trial began."""
    usual: Loads
    """Shares that the experts stay where they are for, [windows, layers, experts]; none: those of an even load."""
    before: SlotMap
    """The map when the trial began, [layers, slots]."""
    saved: float
    """Peak load that moves since then have saved, in mean GPU loads, mean over layers, summed over windows."""
    allowance: float
    """Moves that may be made."""


def no_drift(slot_map: SlotMap, num_experts: int) -> Drift:
    """Return what is known before the first window, of a map [layers, slots]."""
    return Drift(
        following=False,
        due=False,
        windows=0,
        usual=np.zeros((0, len(slot_map), num_experts)),
        before=slot_map,
        saved=0.0,
        allowance=0.0,
    )


def observed_drift(before: Drift, history: Loads, slot_map: SlotMap, loads_of: LoadsOf, rows: Loads) -> Drift:
    """Return the drift after a window.

    `history` [windows, layers, experts] are the shares of the last ones, `slot_map` [layers, slots] is the map in use,
    and `rows` [layers] are those that the last window counted.
    """
    now = replace(before, windows=before.windows + 1)
    if now.following:
        return replace(_judged(now, history, slot_map, loads_of), due=True)
    loads = loads_of(history[-now.windows :], slot_map)
    usual = loads_of(now.usual, slot_map).mean(axis=0) if len(now.usual) else np.ones(loads.shape[1:])
    if not has_changed(loads, usual, len(now.usual) or np.inf, rows, now.windows):
        return now
    return replace(_trial(now, slot_map), following=True, due=True)


def _judged(now: Drift, history: Loads, slot_map: SlotMap, loads_of: LoadsOf) -> Drift:
    """Return the drift when the last window has told what the moves of this trial are worth."""
    if now.before.shape != slot_map.shape:
        return _trial(now, slot_map)  # ranks have gone or come
    peaks = [loads_of(history[-1:], each)[0].max(axis=1) for each in (now.before, slot_map)]
    now = replace(now, saved=now.saved + float((peaks[0] - peaks[1]).mean()))
    if now.windows < _TRIAL:
        return now
    if now.saved > 0:
        return _trial(now, slot_map)
    return replace(now, following=False, windows=0, usual=history[-_SETTLED:])


def _trial(now: Drift, slot_map: SlotMap) -> Drift:
    return replace(now, windows=0, before=slot_map, saved=0.0)
