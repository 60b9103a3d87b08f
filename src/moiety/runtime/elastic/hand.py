"""Hand: one process of a crew, as the launcher knows it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from moiety.runtime.elastic.beacon import Beat
    from moiety.runtime.elastic.replan import Held
    from moiety.runtime.rank_process import RankProcess


@dataclass(frozen=True, slots=True)
class Sign:
    """What a process has shown of itself, by the launcher's clock."""

    member: int
    home: int
    is_in: bool
    """Whether it may be declared."""
    generation: int
    """That it is in, as far as it has said."""
    heard_s: float
    """When it was heard last."""
    moved_s: float
    """When it was seen to get anywhere last."""
    count: int
    """Of all that it has got done."""
    waits: bool
    waits_for: int | None
    """The rank of its generation that it waits for, where that is known."""
    loads: bool
    """Whether it has not stepped yet in its generation: reading weights may take long."""


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
    kept_cache: bool = False
    """Whether it still had its KV cache then."""
    switched: int = 0
    """The last batch of moves of this generation that it has switched to."""
    is_slow: bool = False
    dismissed_s: float | None = None
    """When it was told to end."""
    is_gone: bool = False

    def __str__(self) -> str:
        return f"rank {self.home} (pid {self.process.pid})"

    def take(self, beat: Beat, now_s: float) -> None:
        """Take note of a beat."""
        if self.beat is None or beat.count != self.beat.count:
            self.moved_s = now_s
        self.beat = beat

    def sign(self, generation: int) -> Sign | None:
        """Return what it has shown, as one of a generation; None before it was heard."""
        if self.heard_s is None:
            return None
        beat = self.beat if self.beat is not None and self.beat.generation == generation else None
        return Sign(
            member=self.number,
            home=self.home,
            is_in=self.is_in,
            generation=0 if self.beat is None else self.beat.generation,
            heard_s=self.heard_s,
            moved_s=self.moved_s,
            count=0 if self.beat is None else self.beat.count,
            waits=beat is not None and beat.waits,
            waits_for=None if beat is None else beat.waits_for,
            loads=beat is None or not beat.step,
        )
