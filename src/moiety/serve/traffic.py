"""Traffic: what was served and what waits for room, as the control plane hears of it at the end of each window."""

from __future__ import annotations

from typing import TYPE_CHECKING

from moiety.control.events import RequestMetrics
from moiety.serve.api_error import RETRY_AFTER_S

if TYPE_CHECKING:
    from collections.abc import Iterable

    from moiety.serve.journal import Entry

_KEPT = 1 - 1 / 256
"""Of what is known of answers, with each one that ends: the last few hundred count."""


class Users:
    """What users see: how fast tokens come, who waits, who is refused. The event loop tells it, any thread reads it."""

    def __init__(self) -> None:
        self.waiting_tokens = 0.0
        """Of those that wait now."""
        self.refused_tokens = 0.0
        """Of those that were refused since the server began."""
        self.served_tokens = 0
        """Tokens that sequences got since the server began: each once, whatever ranks compute anew or cannot give."""
        self.gaps: tuple[float, int] = (0.0, 0)
        """Seconds from one token of a sequence to the next while ranks take steps, and how many such gaps, since the
        server began."""
        self._ready_s = 0.0
        """Since when ranks take steps."""
        self._took, self._might_have = 0.0, 0.0
        """Tokens of answers that have ended, and those that were asked for at most."""

    def ready(self, now_s: float) -> None:
        """Hear that ranks take steps again."""
        self._ready_s = now_s

    def waits(self, entries: Iterable[Entry]) -> None:
        """Hear which sequences wait for room now."""
        self.waiting_tokens = self._expected(entries)

    def refused(self, entries: Iterable[Entry]) -> None:
        """Hear of sequences that may not even wait."""
        self.refused_tokens += self._expected(entries)

    def got(self, entry: Entry, now_s: float) -> None:
        """Hear of a sequence that has just got a token; learn from it where that was its last."""
        self.served_tokens += 1
        if len(entry.accepted) > 1:
            seconds, number = self.gaps
            self.gaps = seconds + min(entry.gap_s, now_s - self._ready_s), number + 1
        if entry.finish_reason is not None:
            self._took = self._took * _KEPT + len(entry.accepted)
            self._might_have = self._might_have * _KEPT + entry.max_tokens

    def _expected(self, entries: Iterable[Entry]) -> float:
        """Return the tokens that sequences still ask for: of what they may get at most the share that others took."""
        share = self._took / self._might_have if self._might_have else 1.0
        return share * sum(each.max_tokens - len(each.accepted) for each in entries)


class Traffic:
    """Counts what is served from one window to the next; in the crew's thread."""

    def __init__(self, users: Users) -> None:
        self._users = users
        self._since_s: float | None = None
        """When the window began; None while no steps are taken."""
        self._served_before = 0
        self._refused_before = 0.0
        self._gaps_before: tuple[float, int] = (0.0, 0)

    def begin(self, now_s: float) -> None:
        """Begin a window: ranks take steps."""
        self._since_s, self._served_before = now_s, self._users.served_tokens
        self._refused_before, self._gaps_before = self._users.refused_tokens, self._users.gaps

    def pause(self) -> None:
        """Give the window up: ranks meet, and take no steps."""
        self._since_s = None

    def metrics(self, window_s: float, now_s: float) -> RequestMetrics | None:
        """Return what users saw in a window, if one is over; the next one begins then.

        Who is refused comes again after `RETRY_AFTER_S`, as it is told: by Little's law so many wait outside as are
        refused in that time.
        """
        if self._since_s is None or now_s - self._since_s < window_s:
            return None
        elapsed_s = now_s - self._since_s
        outside = (self._users.refused_tokens - self._refused_before) / elapsed_s * RETRY_AFTER_S
        backlog = self._users.waiting_tokens + outside
        served = self._users.served_tokens - self._served_before
        found = RequestMetrics(now_s, served / elapsed_s, self._tpot_s(served + backlog), backlog)
        self.begin(now_s)
        return found

    def _tpot_s(self, asked_for: float) -> float | None:
        """Return the mean time per token; 0 where nobody asked for any, so that nobody was kept waiting."""
        seconds, number = (now - before for now, before in zip(self._users.gaps, self._gaps_before, strict=True))
        if number:
            return seconds / number
        return None if asked_for else 0.0
