"""A closed loop of requests through workers that compute prompts and others that decode, played event by event.

Coarser than `sim/serving.py`: it knows steps that compute prompts and whole answers, not steps that decode. All
requests begin together, as those of benchmarks do, and a run ends with its last answer. Where more are in flight than
are followed one by one, they go in bundles.
"""

from __future__ import annotations

import heapq
import math
import random
import statistics
from bisect import bisect_left
from collections import deque
from dataclasses import dataclass, field, replace
from functools import lru_cache, partial
from itertools import accumulate, cycle
from typing import TYPE_CHECKING

from moiety.sim.arrivals import drawn_tokens

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

_FOLLOWED = 256
"""Requests in flight that are followed one by one; more of them go in as many bundles, or down to a quarter fewer."""
_REPEATS = 16
"""Short runs scatter: they are played anew until as many requests went as in one long run, but no more often."""
_INSTANT_S = 1e-9
"""Requests that come within it come together, rounded as times are."""


@dataclass(frozen=True, slots=True)
class PromptSteps:
    """What the steps of a worker that computes prompts take, in seconds; its attention groups begin and end as one.

    A step takes as long as its fullest group, and longer by what the experts do with the prompts of all groups.
    """

    groups: int
    alone_s: float
    """A step with one prompt, in one group."""
    beside_s: float
    """With one in each group."""
    full_s: float
    """With `most` in each group."""
    most: float = 1.0
    """Prompts that a step takes in each group at the most: 1 or more, not a whole number where prompts are cut."""

    @property
    def capacity(self) -> int:
        """Prompts that a step takes in all groups."""
        return max(math.floor(self.most * self.groups + 1e-9), 1)

    def step_s(self, prompts: float) -> float:
        """Return what a step with so many prompts takes; less than one, of several workers, are one in some of them.

        More than a step takes are several steps.
        """
        if prompts >= self.capacity:
            return self.full_s * prompts / (self.most * self.groups)
        each_s = (self.beside_s - self.alone_s) / max(self.groups - 1, 1)
        step_s = self.alone_s + max(prompts - 1, 0) * each_s
        fullest = min(math.ceil(prompts / self.groups - 1e-9), self.most)
        if fullest > 1:
            step_s += (fullest - 1) * ((self.full_s - self.beside_s) / (self.most - 1) - each_s * self.groups)
        return step_s


@dataclass(frozen=True, slots=True)
class TwoStageRun:
    """A run: the requests in flight, what a prompt takes, and what the decoding workers hold. Times in seconds."""

    concurrency: int
    waves: int
    """Requests of the run, over those in flight."""
    prompts: PromptSteps
    prompt_workers: int
    """Workers that compute prompts."""
    handed_over_s: float
    """From the end of the prompt to the first token that the decoding worker gives out."""
    workers: int
    slots: float
    """Sequences that each decoding worker runs at a time; those that are handed over later wait."""
    token_s: tuple[tuple[float, float], ...]
    """(sequences in a worker, seconds a token), in rising order; linear in between."""
    output_tokens: int
    shortest_share: float
    """Answers are drawn uniformly between this share of the longest and all of it; 1: all are equally long."""
    frontends: int = 1
    """Routers, each of which sends its requests to one worker of a kind after the other, all of them from the first on.

    Dynamo's count from nought (ai-dynamo/dynamo, lib/runtime/src/pipeline/network/egress/push_router.rs).
    """


@dataclass(frozen=True, slots=True)
class PlayedRun:
    """What the requests of a run saw, in seconds."""

    ready_s: float
    """From the mean request's arrival until it could decode."""
    waits_s: tuple[float, ...]
    """What each waited for a slot then, in rising order."""
    summed_s: tuple[float, ...]
    """Of those waits, the sums of the first ones: nought, one, two, ... all."""

    def first_token_s(self, overhead_s: float) -> float:
        """Return the mean time to first token where all requests took so much longer until they could decode.

        Who waits for a slot has it meanwhile: of the slots' time nothing is lost, and so nothing of the wait added.
        """
        shorter = bisect_left(self.waits_s, overhead_s)
        longer_s = self.summed_s[-1] - self.summed_s[shorter]
        return self.ready_s + (shorter * overhead_s + longer_s) / len(self.waits_s)


@lru_cache(maxsize=4096)
def played(run: TwoStageRun) -> PlayedRun:
    """Return what the requests of a run see."""
    if run.concurrency > _FOLLOWED:
        plays = [_bundled(run)]
    else:
        plays = [_Play(run, seed) for seed in range(min(max(_FOLLOWED // run.concurrency, 1), _REPEATS))]
    for each in plays:
        each.run_to_its_end()
    waits_s = sorted(wait_s for each in plays for wait_s in each.waits_s)
    ready_s = statistics.fmean(each.ready_s for each in plays)
    return PlayedRun(ready_s, tuple(waits_s), (0.0, *accumulate(waits_s)))


def _bundled(run: TwoStageRun) -> _Play:
    """Return a run of bundles of requests, each of which is computed and decodes as one.

    Of so many, all workers of a kind are as one: what one of them has more than another is little beside what it holds.
    As many bundles as make the slots nearest to a whole number of them.
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
        prompt_workers=1,
        slots=round(held) if math.isfinite(held) else held,
        token_s=tuple((sequences * run.workers / size, seconds) for sequences, seconds in run.token_s),
        frontends=1,
    )
    return _Play(merged, 0, size / run.prompt_workers)


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
    """How often one came or ended: an end that was foreseen before the last of them is none."""


@dataclass(slots=True)
class _PromptWorker:
    """A worker that computes prompts, step by step: who comes while a step runs waits for the next."""

    waiting: deque[tuple[float, int]] = field(default_factory=deque[tuple[float, int]])
    """When requests came, and the routers that sent them; the first come first."""
    busy: bool = False


def _at_every_count(known: Sequence[tuple[float, float]], most: int) -> list[float]:
    """Return the seconds a token with 0, 1, ... `most` sequences: linear between the known ones, level beyond them."""
    found = list[float]()
    ahead = 0
    for count in range(most + 1):
        while ahead < len(known) and known[ahead][0] < count:
            ahead += 1
        if ahead in {0, len(known)}:
            found.append(known[min(ahead, len(known) - 1)][1])
            continue
        (below, low_s), (above, high_s) = known[ahead - 1 : ahead + 1]
        found.append(low_s + (count - below) / (above - below) * (high_s - low_s))
    return found


class _Play:
    """The state of a run whose requests each stand for `prompts` in each worker that computes them.

    Events are (time, order, what happens then).
    """

    def __init__(self, run: TwoStageRun, seed: int, prompts: float = 1.0) -> None:
        self._run, self._prompts = run, prompts
        self._draws = random.Random(seed)  # noqa: S311 - a simulation, no secret
        self._left = self._requests = run.concurrency * run.waves
        prompt_workers = [_PromptWorker() for _ in range(run.prompt_workers)]
        workers = [_Worker() for _ in range(run.workers)]
        self._prompt_turns = [cycle(prompt_workers) for _ in range(run.frontends)]
        self._turns = [cycle(workers) for _ in range(run.frontends)]
        self._events: list[tuple[float, int, Callable[[float], None]]] = []
        self._order = 0
        self._ready_s = 0.0
        self._waits_s = list[float]()
        self._token_s = _at_every_count(run.token_s, run.concurrency)

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
            now, _, happens = heapq.heappop(self._events)
            happens(now)

    def _arrive(self, now: float) -> None:
        """Send the next request to the worker whose turn it is to compute its prompt."""
        if not self._left:
            return
        self._left -= 1
        frontend = self._draws.randrange(self._run.frontends)
        worker = next(self._prompt_turns[frontend])
        worker.waiting.append((now, frontend))
        if not worker.busy:
            worker.busy = True
            self._at(now + _INSTANT_S, partial(self._compute, worker))

    def _compute(self, worker: _PromptWorker, now: float) -> None:
        """Begin a step with the prompts that came first, and send them on when it ends."""
        worker.busy = bool(worker.waiting)
        if not worker.busy:
            return
        steps, each = self._run.prompts, self._prompts
        count = min(max(int(steps.capacity / each), 1), len(worker.waiting))
        step_s = steps.step_s(count * each)
        # of a bundle that takes several steps, the mean request is computed in the middle of them
        earlier_s = max(1 - steps.capacity / (count * each), 0.0) / 2 * step_s
        ready_s = now + step_s - earlier_s + self._run.handed_over_s
        for _ in range(count):
            came_s, frontend = worker.waiting.popleft()
            self._ready_s += ready_s - came_s
            self._at(ready_s, partial(self._come, next(self._turns[frontend])))
        self._at(now + step_s, partial(self._compute, worker))

    def _come(self, worker: _Worker, now: float) -> None:
        """Have a request whose prompt was computed decode, or wait for a slot."""
        if len(worker.ends) < max(self._run.slots, 1):
            self._advance(worker, now)
            self._start(worker, 0.0)
            self._await_end(worker, now)
        else:
            worker.waiting.append(now)

    def _start(self, worker: _Worker, waited_s: float) -> None:
        self._waits_s.append(waited_s)
        answer = drawn_tokens(self._run.output_tokens, self._run.shortest_share, self._draws)
        heapq.heappush(worker.ends, worker.tokens + answer)

    def _end(self, worker: _Worker, foreseen: int, now: float) -> None:
        """End the sequence whose end was `foreseen` after so many changes, unless there were more since."""
        if foreseen != worker.changes:
            return
        self._advance(worker, now)
        heapq.heappop(worker.ends)
        if worker.waiting:
            self._start(worker, now - worker.waiting.popleft())
        self._arrive(now)
        self._await_end(worker, now)

    def _advance(self, worker: _Worker, now: float) -> None:
        """Count the tokens that the worker's sequences were given until now."""
        if worker.ends:
            worker.tokens += (now - worker.counted_s) / self._token_s[len(worker.ends)]
        worker.counted_s = now

    def _await_end(self, worker: _Worker, now: float) -> None:
        worker.changes += 1
        if worker.ends:
            left = max(worker.ends[0] - worker.tokens, 0.0)
            self._at(now + left * self._token_s[len(worker.ends)], partial(self._end, worker, worker.changes))

    def _at(self, at_s: float, happens: Callable[[float], None]) -> None:
        self._order += 1
        heapq.heappush(self._events, (at_s, self._order, happens))
