"""Limits: how long what may take, before a rank counts as lost."""

from __future__ import annotations

from dataclasses import dataclass

from moiety.health import Patience


@dataclass(frozen=True, slots=True)
class Limits(Patience):
    """Seconds, of a crew's own beside those that all judge by."""

    connect_s: float = 2.0
    """To reach another rank, once it has said where."""
    start_s: float = 120.0
    """From the start of a process to its first beat: libraries are loaded."""
    orphan_s: float = 15.0
    """Without a word of the launcher a rank ends itself: it may have been given up, and nobody can tell it."""
    leave_s: float = 5.0
    """For a process that is dismissed, until it is killed."""
    slow_ratio: float = 2.0
    """Over the median of the ranks' time a step, without waits, a rank is slow."""


WORD_S = 1.0
"""How often the launcher says that it is there, at least."""
BEAT_S = 0.2
"""How often a rank says how far it is."""
