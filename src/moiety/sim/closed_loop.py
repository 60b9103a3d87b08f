"""A closed loop of requests through workers that compute prompts and others that decode, played event by event.

Coarser than `sim/serving.py`: it knows prompts and whole answers, not steps. All requests begin together, as those of
benchmarks do, and a run ends with its last answer. Where more are in flight than are followed one by one, they go in
bundles.
"""

from __future__ import annotations

import heapq
import math
import random
import statistics
from collections import deque
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

_FOLLOWED = 256
"""Requests in flight that are followed one by one; more of them go in as many bundles, or down to a quarter fewer."""
_REPEATS = 16
"""Short runs scatter: they are played anew until as many requests went as in one long run, but no more often."""


@dataclass(frozen=True, slots=True)
class TwoStageRun:
    """A run: the requests in flight, what a prompt takes, and what the decoding workers hold. Times in seconds."""

    concurrency: int
    waves: int
    """Requests of the run, over those in flight."""
    prompt_groups: int
    """Prompts that are computed at a time, in all workers that compute them; they have one queue."""
    alone_s: float
    """A prompt while the other groups have none."""
    beside_s: float
    """A prompt while each of the other groups has one; in between by their share."""
    share_s: float
    """What a prompt takes of its group's time: less than its own where prompts fill steps together."""
    handed_over_s: float
    """From the end of the prompt to the first token that the decoding worker gives out."""
    workers: int
    slots: float
    """Sequences that each decoding worker runs at a time; those that are handed over later wait."""
    token_s: tuple[tuple[float, float], ...]
    """(sequences in a worker, seconds a token), in rising order; linear in between."""
    output_tokens: int
    least_share: float
    """Answers are drawn uniformly between this share of the longest and all of it; 1: all are equally long."""
    frontends: int = 1
    """Routers, each of which sends its requests to one decoding worker after the other."""


@dataclass(frozen=True, slots=True)
class PlayedRun:
    """What the requests of a run saw, in seconds."""

    ready_s: float
    """From the mean request's arrival until it could decode."""
    waits_s: NDArray[np.float64]
    """What each waited for a slot then."""

    def first_token_s(self, overhead_s: float) -> float:
        """Return the mean time to first token where all requests took so much longer until they could decode.

        Who waits for a slot has it meanwhile: of the slots' time nothing is lost, and so nothing of the wait added.
        """
        return self.ready_s + float(np.maximum(self.waits_s, overhead_s).mean())


@lru_cache(maxsize=4096)
def played(run: TwoStageRun) -> PlayedRun:
    """Return what the requests of a run see."""
    if run.concurrency > _FOLLOWED:
        plays = [_bundled(run)]
    else:
        plays = [_Play(run, seed) for seed in range(min(max(_FOLLOWED // run.concurrency, 1), _REPEATS))]
    for each in plays:
        each.run_to_its_end()
    return PlayedRun(statistics.fmean(each.ready_s for each in plays), np.concatenate([each.waits_s for each in plays]))


def _bundled(run: TwoStageRun) -> _Play:
    """Return a run of bundles of requests, each of which is computed and decodes as one.

    Of so many, all groups compute prompts and all workers decode as if they were one: what one worker has more than
    another is little beside what it holds. As many bundles as make the slots nearest to a whole number of them.
    """
    slots = run.slots * run.workers

    def off_whole(bundles: int) -> float:
        share = slots * bundles / run.concurrency
        return abs(share - round(share)) if math.isfinite(share) else 0.0

    bundles = min(range(_FOLLOWED, _FOLLOWED * 3 // 4, -1), key=off_whole)
    size = run.concurrency / bundles
    held = slots / size
    merged = replace(
        run,
        concurrency=bundles,
        workers=1,
        slots=round(held) if math.isfinite(held) else held,
        token_s=tuple((sequences * run.workers / size, seconds) for sequences, seconds in run.token_s),
        frontends=1,
    )
    return _Play(merged, 0, size)


@dataclass(slots=True)
class _Worker:
    """A decoding worker. All its sequences advance at one pace, so that one count of tokens stands for all."""

    tokens: float = 0.0
    """Given to each sequence since the run began."""
    counted_s: float = 0.0
    """When they were last counted."""
    ends: list[float] = field(default_factory=list[float])
    """Counts at which sequences end: a heap."""
    waiting: deque[float] = field(default_factory=deque[float])
    """Since when requests wait for a slot, the first come first."""
    changes: int = 0


class _Play:
    """The state of a run of bundles of `size` requests.

    Events are (time, order, worker, its changes when its next end was foreseen or None where a request comes to it).
    """

    def __init__(self, run: TwoStageRun, seed: int, size: float = 1.0) -> None:
        self._run, self._size = run, size
        self._draws = draws = random.Random(seed)  # noqa: S311 - a simulation, no secret
        self._left = self._requests = run.concurrency * run.waves
        self._groups_as_one = 1 if size == 1 else run.prompt_groups
        self._free = [0.0] * (run.prompt_groups // self._groups_as_one)
        self._workers = [_Worker() for _ in range(run.workers)]
        self._turns = [draws.randrange(run.workers) for _ in range(run.frontends)]
        self._events: list[tuple[float, int, int, int | None]] = []
        self._order = 0
        self._ready_s = 0.0
        self._waits_s = list[float]()
        counts, seconds = zip(*run.token_s, strict=True)
        self._token_s = np.interp(np.arange(run.concurrency + 1), counts, seconds).tolist()
        self._longest = run.output_tokens * 2 / (1 + run.least_share)

    @property
    def ready_s(self) -> float:
        """From the mean request's arrival until it could decode."""
        return self._ready_s / self._requests

    @property
    def waits_s(self) -> list[float]:
        """What each request waited for a slot then."""
        return self._waits_s

    def run_to_its_end(self) -> None:
        """Send all requests, and let each have its whole answer."""
        for _ in range(self._run.concurrency):
            self._arrive(0.0)
        while self._events:
            now, _, number, changes = heapq.heappop(self._events)
            worker = self._workers[number]
            if changes is not None:
                if changes == worker.changes:
                    self._end(number, now)
            elif len(worker.ends) < max(self._run.slots, 1):
                self._advance(worker, now)
                self._start(worker, 0.0)
                self._await_end(number, now)
            else:
                worker.waiting.append(now)

    def _arrive(self, now: float) -> None:
        """Send the next request to the group that is free first, and to the worker whose turn it is."""
        if not self._left:
            return
        self._left -= 1
        run, free = self._run, heapq.heappop(self._free)
        begin = max(now, free)
        others = sum(each > begin for each in self._free) / len(self._free) if self._free else float(free > now)
        prompt_s = run.alone_s + others * (run.beside_s - run.alone_s)
        held_s = min(run.share_s, prompt_s) * self._size / self._groups_as_one
        heapq.heappush(self._free, begin + held_s)
        frontend = self._draws.randrange(run.frontends)
        worker = self._turns[frontend]
        self._turns[frontend] = (worker + 1) % run.workers
        others_s = held_s * (1 - 1 / self._size) / 2
        ready_s = begin + others_s + prompt_s + run.handed_over_s
        self._ready_s += ready_s - now
        self._push(ready_s, worker, None)

    def _start(self, worker: _Worker, waited_s: float) -> None:
        self._waits_s.append(waited_s)
        share = self._run.least_share + (1 - self._run.least_share) * self._draws.random()
        heapq.heappush(worker.ends, worker.tokens + self._longest * share)

    def _end(self, number: int, now: float) -> None:
        worker = self._workers[number]
        self._advance(worker, now)
        heapq.heappop(worker.ends)
        if worker.waiting:
            self._start(worker, now - worker.waiting.popleft())
        self._arrive(now)
        self._await_end(number, now)

    def _advance(self, worker: _Worker, now: float) -> None:
        """Count the tokens that the worker's sequences were given until now."""
        if worker.ends:
            worker.tokens += (now - worker.counted_s) / self._token_s[len(worker.ends)]
        worker.counted_s = now

    def _await_end(self, number: int, now: float) -> None:
        worker = self._workers[number]
        worker.changes += 1
        if worker.ends:
            left = max(worker.ends[0] - worker.tokens, 0.0)
            self._push(now + left * self._token_s[len(worker.ends)], number, worker.changes)

    def _push(self, at_s: float, worker: int, changes: int | None) -> None:
        self._order += 1
        heapq.heappush(self._events, (at_s, self._order, worker, changes))
