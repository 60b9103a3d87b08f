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


_BY_OTHERS = frozenset({"dispatch", "combine", "token_all_gather", "token_reduce_scatter"})
"""Ops whose work depends on the tokens that other ranks send, as that of experts does."""


class Beacon:
    """Takes note of every op that ends (`Recorder`) and of every wait (`Observer`); costs an addition or two."""

    recording = False

    def __init__(self) -> None:
        self.count = 0
        self.generation = 0
        self.watch: Watch | None = None
        """Of the network that the rank is in."""
        self._step, self._layer, self._op = 0, -1, "start"
        self._is_stepping = False
        self._begin_s = self._waited_s = self._busy_s = 0.0
        self._marked_s = self._waited_before_s = self._late_s = self._exposed_s = 0.0
        self.own_s = 0.0
        """Of the last step that has ended: without waits for peers."""
        self.exposed_s = 0.0
        """Of the last step that has ended: in which it did nothing but wait for transfers, and go on after them."""
        self.alike_s = 0.0
        """Of this step so far: of its own time, that in ops whose work does not depend on other ranks' tokens, and that
        by which it was late to go on after waits."""

    def enter(self, generation: int, watch: Watch) -> None:
        """Begin a generation."""
        self.generation, self.watch = generation, watch
        self._step, self._is_stepping, self._busy_s = 0, False, 0.0
        self.mark("begin")

    def step(self) -> None:
        """Say that a step begins, and the one before has ended."""
        self.pause()
        self._step += 1
        self._begin_s = self._marked_s = time.perf_counter()
        self._waited_s = self._waited_before_s = self._late_s = self._exposed_s = self.alike_s = 0.0
        self._is_stepping = True
        self.mark("step")

    def pause(self) -> None:
        """Say that the step has ended: what passes until the next one is nobody's work."""
        if self._is_stepping:
            self.own_s = max(time.perf_counter() - self._begin_s - self._waited_s, 0.0)
            self._busy_s += self.own_s
            self.exposed_s = self._exposed_s
        self._is_stepping = False

    def mark(self, name: str, layer: int = -1) -> None:
        """Take note of an op that has ended."""
        self.count += 1
        self._layer, self._op = layer, name
        now_s, waited_s = time.perf_counter(), self._waited_s
        if name in _BY_OTHERS or name.startswith("expert_"):
            self.alike_s += self._late_s
        else:
            self.alike_s += max(now_s - self._marked_s - (waited_s - self._waited_before_s), 0.0)
        self._marked_s, self._waited_before_s, self._late_s = now_s, waited_s, 0.0

    def transferred(
        self, name: str, priority: Priority, start_s: float, end_s: float, tier_bytes: tuple[int, ...]
    ) -> None:
        """Take note of a transfer that has ended."""
        del name, priority, start_s, end_s, tier_bytes
        self.count += 1

    def waited(self, start_s: float, end_s: float, came_s: float) -> None:
        """Take note of a wait: for others until what it was for had come; from there on the rank itself was late."""
        self._waited_s += came_s - start_s
        self._late_s += end_s - came_s
        self._exposed_s += end_s - start_s

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
