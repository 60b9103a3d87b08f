"""How often processes are started in place of lost ones before the trouble is taken for one that does not pass."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field


@dataclass(slots=True)
class RestartBudget:
    """At most `most` restarts within any `window_s` seconds."""

    most: int
    window_s: float = 600.0
    _taken_s: deque[float] = field(default_factory=deque[float])

    def takes(self, now_s: float) -> bool:
        """Count a restart at this time; return False, and count nothing, where it is one too many."""
        while self._taken_s and self._taken_s[0] <= now_s - self.window_s:
            self._taken_s.popleft()
        if len(self._taken_s) >= self.most:
            return False
        self._taken_s.append(now_s)
        return True

    @property
    def sentence(self) -> str:
        """What the user is told when it is spent."""
        if self.most == 0:
            return "ranks are not started anew (--max-restarts 0)"
        return f"the ranks have been started anew {self.most} times within {self.window_s:.0f} s (--max-restarts)"
