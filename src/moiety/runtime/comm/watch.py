"""Watch: for how long a rank waits for the others, and whether it has been told to stop."""

from __future__ import annotations

import time
from threading import Lock

from moiety.runtime.comm.peer_lost import PeerLost

SLICE_S = 0.1
"""No wait looks away from the clock and from the order to stop for longer."""
_STALE_S = 3 * SLICE_S
"""A wait that has not looked at the clock for so long has ended."""


class Watch:
    """The deadline of every wait of a rank, and the reason to stop, once there is one."""

    def __init__(self, timeout_s: float) -> None:
        self.timeout_s = timeout_s
        self._reason: str | None = None
        self._lock = Lock()
        self._last: tuple[float, int | None, float] = (0.0, None, 0.0)
        """Of the last look at the clock: when, for whom was waited, and since when that one had been silent."""

    @property
    def is_stopped(self) -> bool:
        """Whether the network was told to stop."""
        return self._reason is not None

    @property
    def waits_for(self) -> tuple[int | None, float] | None:
        """The rank that some thread waits for now, None where it is not known, and for how long it has been silent."""
        seen_s, rank, since_s = self._last
        now_s = time.perf_counter()
        return (rank, now_s - since_s) if now_s - seen_s < _STALE_S else None

    def stop(self, reason: str) -> None:
        """Let every wait end with PeerLost; the first reason stays."""
        with self._lock:
            if self._reason is None:
                self._reason = reason

    def check(self, label: str, rank: int | None, since_s: float, begin_s: float) -> None:
        """Raise PeerLost when told to stop, or when `rank` has been silent since `since_s` for too long."""
        now_s = time.perf_counter()
        self._last = (now_s, rank, since_s)
        if self._reason is not None:
            raise PeerLost(self._reason, label=label, waited_s=now_s - begin_s)
        if now_s - since_s > self.timeout_s:
            raise PeerLost("was silent past the deadline", label=label, rank=rank, waited_s=now_s - begin_s)
