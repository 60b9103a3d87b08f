"""Limits: how long what may take, before a rank counts as lost."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Limits:
    """Seconds of patience. Whoever has less of it recovers sooner and fences more that would have come back."""

    silent_s: float = 1.5
    """Without a beat a rank is frozen. Beats come every 0.2 s, from a thread of their own."""
    stuck_s: float = 10.0
    """A rank that lives and gets nowhere, not waiting for anybody, while others wait for it, is hung."""
    deadlocked_s: float = 5.0
    """Where all ranks wait and nothing moves, they regroup, and then whoever is waited for is cut off."""
    connect_s: float = 2.0
    """To reach another rank, once it has said where."""
    settle_s: float = 0.3
    """What a rank that lost a peer leaves the launcher to find the cause, before all meet again as they are."""
    start_s: float = 120.0
    """From the start of a process to its first beat: libraries are loaded."""
    load_s: float = 120.0
    """From one tensor to the next while weights are read; the model is built before the first."""
    slow_ratio: float = 2.0
    """Over the median of the ranks' time a step, without waits, a rank is slow."""


BEAT_S = 0.2
"""How often a rank says how far it is."""
