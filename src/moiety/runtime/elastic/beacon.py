"""Beacon: how far a rank is, for whoever watches whether it gets anywhere."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from moiety.records import Record

if TYPE_CHECKING:
    from moiety.runtime.comm.priority import Priority
    from moiety.runtime.comm.watch import Watch


class Beat(Record):
    """A sign of life, with what the rank has come to."""

    generation: int
    """That it is in; 0 before the first."""
    count: int
    """Of all that it has got done: it grows while the rank gets anywhere."""
    step: int
    """Of the generation."""
    layer: int
    """Of the op that has ended last; -1 outside the layers."""
    op: str
    waits: bool
    """Whether it waits for a peer, and ..."""
    waits_for: int | None
    """... for which rank, where that is known."""
    busy_s: float
    """Of the generation's steps: without waits for peers."""


class Beacon:
    """Takes note of every op that ends (`Recorder`) and of every wait (`Observer`); costs an addition or two."""

    def __init__(self) -> None:
        self.count = 0
        self.generation = 0
        self.watch: Watch | None = None
        """Of the network that the rank is in."""
        self._step, self._layer, self._op = 0, -1, "start"
        self._is_stepping = False
        self._begin_s = self._waited_s = self._busy_s = 0.0

    def enter(self, generation: int, watch: Watch) -> None:
        """Begin a generation."""
        self.generation, self.watch = generation, watch
        self._step, self._is_stepping, self._busy_s = 0, False, 0.0
        self.mark("begin")

    def step(self) -> None:
        """Say that a step begins, and the one before has ended."""
        self.pause()
        self._step += 1
        self._begin_s, self._waited_s, self._is_stepping = time.perf_counter(), 0.0, True
        self.mark("step")

    def pause(self) -> None:
        """Say that the step has ended: what passes until the next one is nobody's work."""
        if self._is_stepping:
            self._busy_s += max(time.perf_counter() - self._begin_s - self._waited_s, 0.0)
        self._is_stepping = False

    def mark(self, name: str, layer: int = -1) -> None:
        """Take note of an op that has ended."""
        self.count += 1
        self._layer, self._op = layer, name

    def transferred(
        self, name: str, priority: Priority, start_s: float, end_s: float, tier_bytes: tuple[int, ...]
    ) -> None:
        """Take note of a transfer that has ended."""
        del name, priority, start_s, end_s, tier_bytes
        self.count += 1

    def waited(self, start_s: float, end_s: float) -> None:
        """Take note of a wait."""
        self._waited_s += end_s - start_s

    def beat(self) -> Beat:
        """Return where the rank is now."""
        waits = self.watch.waits_for if self.watch is not None else None
        return Beat(
            generation=self.generation,
            count=self.count,
            step=self._step,
            layer=self._layer,
            op=self._op,
            waits=waits is not None,
            waits_for=waits[0] if waits is not None else None,
            busy_s=self._busy_s,
        )
