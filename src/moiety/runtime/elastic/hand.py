"""Hand: one process of a crew, as the launcher knows it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from moiety.runtime.elastic.health import Sign

if TYPE_CHECKING:
    from moiety.runtime.elastic.beacon import Beat
    from moiety.runtime.elastic.replan import Held
    from moiety.runtime.rank_process import RankProcess


@dataclass(slots=True)
class Hand:
    """A process of the crew, as the launcher knows it."""

    number: int
    home: int
    process: RankProcess
    started_s: float
    held: Held
    """The experts that it holds, as far as is known."""
    is_in: bool
    """Whether it may be declared: it is one of the first, or has got ready."""
    heard_s: float | None = None
    beat: Beat | None = None
    moved_s: float = 0.0
    """When its beat's count was seen to grow last."""
    ready: int = 0
    """The last generation that it was ready in."""
    switched: int = 0
    """The last batch of moves of this generation that it has switched to."""
    is_slow: bool = False
    is_gone: bool = False

    def take(self, beat: Beat, now_s: float) -> None:
        """Take note of a beat."""
        if self.beat is None or beat.count != self.beat.count:
            self.moved_s = now_s
        self.beat = beat

    def sign(self, generation: int, now_s: float) -> Sign:
        """Return what is known of it now, as a rank of a generation."""
        beat = self.beat if self.beat is not None and self.beat.generation == generation else None
        return Sign(
            silent_s=now_s - (self.heard_s or now_s),
            stuck_s=now_s - self.moved_s,
            loads=self.beat is None or not self.beat.step,
            waits=beat is not None and beat.waits,
            waits_for=None if beat is None else beat.waits_for,
            step=0 if beat is None else beat.step,
            busy_s=0.0 if beat is None else beat.busy_s,
        )
