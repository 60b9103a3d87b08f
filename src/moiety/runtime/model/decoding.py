"""Decoding in one arena: a step is noted when its shape comes a second time in a row, and played from then on."""

from __future__ import annotations

from typing import TYPE_CHECKING

from moiety.runtime.arena.arena import Arena
from moiety.runtime.arena.tape import Tape
from moiety.runtime.arena.trace import Trace
from moiety.runtime.model.kv_cache import CachedStep

if TYPE_CHECKING:
    from collections.abc import Callable

    import torch

    from moiety.runtime.model.batch import Batch
    from moiety.runtime.model.kv_cache import KvCache

    Compute = Callable[[CachedStep, torch.Tensor | None], torch.Tensor]

_MOST_KEPT = 16
"""Steps of different shapes whose tapes are kept."""

Shape = tuple[int, ...]


class _NotedStep:
    """A step of one shape: its inputs, and the tape that computes it."""

    def __init__(self, batch: Batch, cache: KvCache, received: torch.Tensor | None) -> None:
        self.step = CachedStep(batch, cache)
        self.received = None if received is None else received.clone()
        self.trace: Trace | None = Trace(batch.most_tokens)
        """What is noted, until a tape is made of it."""
        self.obstacle: str | None = None
        """Why no tape can be made."""
        self.tape: Tape | None = None
        self._tensors = batch.tensors

    def finish(self) -> None:
        """Make the tape of what has been noted, if that can be, and let go of the memory that it was noted in."""
        if self.trace is not None:
            self.obstacle = self.trace.obstacle
            self.tape = Tape(self.trace) if self.obstacle is None else None
            self.trace = None

    def take(self, batch: Batch, cache: KvCache, received: torch.Tensor | None) -> None:
        """Have the tape compute another batch."""
        batch.lie_in(self._tensors)
        self.step.batch, self.step.cache = batch, cache
        if self.received is not None and received is not None:
            self.received.copy_(received)


class Decoding:
    """The decoding steps of a rank."""

    def __init__(self, device: torch.device) -> None:
        self.arena = Arena(device)
        """What the noted steps are computed in."""
        self._noted: dict[Shape, _NotedStep] = {}
        """The one that was taken last comes last."""
        self._under_way: dict[int, _NotedStep | None] = {}
        """By the batches' place in their step."""
        self._last: dict[int, Shape] = {}
        self._num_steps = self._num_played = 0

    def forget(self) -> None:
        """Note every step anew: what they are computed with has changed."""
        self._noted.clear()
        self._under_way.clear()
        self._last.clear()

    def document(self) -> dict[str, object]:
        """Return how many micro-batches were computed, of them in the arena, what kept others out, and its bytes.

        Bytes are those of the arena, and of the step that needs most: packed, and at a time, which is the least.
        """
        tapes = [each.tape for each in self._noted.values() if each.tape is not None]
        most = max(tapes, key=lambda each: each.size_bytes, default=None)
        packed, live = (0, 0) if most is None else (most.size_bytes, most.live_bytes)
        return {
            "decode_steps": self._num_steps,
            "decode_steps_in_arena": self._num_played,
            "obstacle": next((each.obstacle for each in self._noted.values() if each.obstacle is not None), None),
            "size_bytes": self.arena.size_bytes,
            "packed_bytes": packed,
            "live_bytes": live,
            "fragmentation": 1 - live / packed if packed else 0.0,
        }

    def hidden(self, batch: Batch, cache: KvCache, received: torch.Tensor | None, compute: Compute) -> torch.Tensor:
        """Return what `compute` returns for a step of this batch; it lies in the arena until the next step."""
        shape = (batch.part, len(batch.segments), batch.num_emitting, cache.capacity, batch.most_tokens)
        self._let_go(batch.part)
        self._num_steps += 1
        noted = self._noted.get(shape)
        if noted is None and self._last.get(batch.part) == shape:
            return self._note(shape, batch, cache, received, compute)
        self._last[batch.part] = shape
        if noted is not None:
            noted.finish()
        if noted is None or noted.tape is None:
            self._under_way[batch.part] = None
            return compute(CachedStep(batch, cache), received)
        self._noted[shape] = self._noted.pop(shape)
        self._under_way[batch.part] = noted
        self._num_played += 1
        noted.take(batch, cache, received)
        noted.tape.bind(self.arena.region(batch.part, noted.tape.size_bytes))
        return noted.tape.play(0)

    def logits(self, batch: Batch, compute: Callable[[], torch.Tensor]) -> torch.Tensor:
        """Return what `compute` returns for the states that `hidden` has returned for this batch."""
        noted = self._under_way.get(batch.part)
        if noted is None:
            return compute()
        if noted.trace is not None:
            return noted.trace.noted(compute)
        assert noted.tape is not None, "its states were computed in the arena"
        return noted.tape.play(1)

    def _note(
        self, shape: Shape, batch: Batch, cache: KvCache, received: torch.Tensor | None, compute: Compute
    ) -> torch.Tensor:
        noted = _NotedStep(batch, cache, received)
        assert noted.trace is not None, "nothing is noted yet"
        states = noted.trace.noted(lambda: compute(noted.step, noted.received))
        while len(self._noted) >= _MOST_KEPT:
            self._noted.pop(next(iter(self._noted)))
        self._noted[shape] = self._under_way[batch.part] = noted
        return states

    def _let_go(self, part: int) -> None:
        """At the begin of a step, free memory that the arena has grown out of."""
        if part == 0:
            for each in self._noted.values():
                if each.tape is not None and not self.arena.has(each.tape.arena):
                    each.tape.bind(None)
