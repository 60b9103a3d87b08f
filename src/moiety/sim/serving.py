"""A serving engine request by request: continuous batching, chunked prefill, a cache that fills up.

Knows no language model: what a step takes is a function of its prompt tokens, its sequences and their mean context.
Steps without an event between them (an arrival, a chunk, a finished or preempted sequence) are taken in one, so time
grows with requests and their chunks, not with tokens; memory with the requests in flight.
"""

from __future__ import annotations

import heapq
import math
from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from moiety.sim.histogram import Histogram

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from moiety.sim.arrivals import Arrival


class StepTime(Protocol):
    """Seconds of a step that computes prompt tokens and one token for each of some sequences."""

    def __call__(self, prefill_tokens: int, sequences: int, context_tokens: int) -> float: ...  # noqa: D102


@dataclass(frozen=True, slots=True)
class PrefillStage:
    """Workers that compute prompts for others to decode, the first token too (disaggregated serving)."""

    num_workers: int
    step_s: StepTime
    step_tokens: int
    """Prompt tokens that a step takes at most; what waits for the same worker fills it."""
    transfer_s_per_token: float
    """Handing a prompt's cache over."""


@dataclass(frozen=True, slots=True)
class ServingEngine:
    """How one attention group serves."""

    step_s: StepTime
    chunk_tokens: int
    """Prompt tokens that a step takes at most."""
    mixes_prefill: bool
    """Chunks run beside decoding; otherwise decoding waits for them."""
    cache_tokens: float = math.inf
    """Tokens that the cache holds; the youngest sequence is preempted and computed again where they run out."""
    max_sequences: int = 2**30
    request_overhead_s: float = 0.0
    """Added to every time to first token: tokenizer, transport, first sample."""
    concurrency_overhead_s: float = 0.0
    """Added to that for each request of the group in flight."""
    prefix_hit_rate: float = 0.0
    """Share of the prompts' tokens that are in the cache already."""
    prefill: PrefillStage | None = None


@dataclass(frozen=True, slots=True)
class Objective:
    """Latencies that a good answer keeps to; None: no limit."""

    ttft_s: float | None = None
    tpot_s: float | None = None


@dataclass(slots=True)
class ServingOutcome:
    """What the requests saw, in seconds."""

    ttft: Histogram = field(default_factory=Histogram)
    tpot: Histogram = field(default_factory=Histogram)
    """Of answers with two tokens or more; others have no time per output token."""
    itl: Histogram = field(default_factory=Histogram)
    """Gaps between tokens: the steps, as often as a sequence was in one."""
    e2e: Histogram = field(default_factory=Histogram)
    finished: int = 0
    good: int = 0
    """Finished within the objective."""
    preemptions: int = 0
    output_tokens: int = 0
    elapsed_s: float = 0.0

    @property
    def throughput_tokens_per_s(self) -> float:
        """Output tokens a second."""
        return self.output_tokens / self.elapsed_s if self.elapsed_s else 0.0

    @property
    def goodput_per_s(self) -> float:
        """Requests a second that kept to the objective."""
        return self.good / self.elapsed_s if self.elapsed_s else 0.0


@dataclass(slots=True)
class _Request:
    arrival_s: float
    input_tokens: int
    output_tokens: int
    left: int
    """Prompt tokens still to be computed."""
    emitted: int = 0
    first_s: float = -1.0
    started: int = 0
    """The step after whose token it began to decode, less what it had emitted."""
    finish: int = 0
    running: bool = False
    overhead_s: float = 0.0
    """What its first token takes longer by than its steps."""


@dataclass(slots=True)
class _PromptWorker:
    """A worker that computes prompts, a step after the other."""

    free_s: float = 0.0
    """When its step ends."""
    waiting: deque[_Request] = field(default_factory=deque[_Request])
    """All of them came before that."""


def simulate_serving(
    engine: ServingEngine,
    arrivals: Iterable[Arrival],
    *,
    concurrency: int | None = None,
    objective: Objective | None = None,
) -> ServingOutcome:
    """Return what `arrivals`, in order of time, see.

    `concurrency` closes the loop: a request arrives no sooner than there are fewer than that many in flight, that is
    when an answer has been heard: what its first token took longer by than its steps, so did all of it.
    """
    run = _Run(engine, iter(arrivals), concurrency, objective or Objective())
    while run.advance():
        pass
    run.outcome.elapsed_s = max(run.now, run.heard_s)
    return run.outcome


class _Run:
    """The state of a simulation. `step` counts tokens that every running sequence has been given."""

    def __init__(
        self, engine: ServingEngine, arrivals: Iterator[Arrival], concurrency: int | None, objective: Objective
    ) -> None:
        self._engine, self._arrivals, self._objective = engine, arrivals, objective
        self._closed = concurrency is not None
        self._room = concurrency if concurrency is not None else 2**62
        self._next = next(arrivals, None)
        self._waiting: deque[_Request] = deque()
        self._prefilled: list[tuple[float, int, _Request]] = []
        self._workers = [_PromptWorker() for _ in range(engine.prefill.num_workers if engine.prefill else 0)]
        self._running: list[tuple[int, int, _Request]] = []
        self._youngest: list[_Request] = []
        self._unheard: list[_Request] = []
        """Started with no token yet: the step that ends next gives them their first."""
        self._heard: list[float] = []
        """When answers are heard whose places in a closed loop are still to be taken."""
        self._in_flight = 0
        self._count = 0
        self._cached = 0
        """Tokens in the cache, less a step for each running sequence: what it holds is this + running x step."""
        self._order = 0
        self._step = 0
        self._paused_s = 0.0
        self.now = 0.0
        self.heard_s = 0.0
        """When the last answer is heard."""
        self.outcome = ServingOutcome()

    def advance(self) -> bool:
        """Go on to the next event; return False when nothing is left to do."""
        self._admit()
        if self._waiting:
            self._chunk()
        elif self._count:
            self._decode()
        else:
            upcoming = min(self._handed_over_s(), self._arrival_s())
            if upcoming == math.inf:
                return False
            self.now = max(self.now, upcoming)
        return True

    def _admit(self) -> None:
        """Take in what has arrived by now, and what the prefill stage has handed over."""
        while self._next is not None and (arrival_s := self._arrival_s()) <= self.now:
            came, self._next = self._next, next(self._arrivals, None)
            if self._room:
                self._room -= 1
                self._in_flight += 1
            else:
                heapq.heappop(self._heard)
            fresh = max(round(came.input_tokens * (1 - self._engine.prefix_hit_rate)), 1)
            request = _Request(arrival_s, came.input_tokens, came.output_tokens, fresh)
            if self._engine.prefill is None:
                self._waiting.append(request)
            else:
                self._compute_prompts(arrival_s, after_all=False)
                worker = min(self._workers, key=lambda each: (len(each.waiting), each.free_s))
                worker.free_s = max(worker.free_s, arrival_s)
                worker.waiting.append(request)
        self._compute_prompts(self.now, after_all=True)
        while self._prefilled and self._prefilled[0][0] <= self.now and self._fits(self._prefilled[0][2]):
            request = heapq.heappop(self._prefilled)[2]
            self._start(request)
            self._unheard.append(request)

    def _arrival_s(self) -> float:
        """Return when the next request comes: where the loop is closed, once there is a place for it."""
        if self._next is None:
            return math.inf
        if self._room:
            return self._next.at_s
        return max(self._next.at_s, self._heard[0]) if self._heard else math.inf

    def _compute_prompts(self, until_s: float, *, after_all: bool) -> None:
        """Begin all steps of the prefill stage that can begin until then, each filled with what waits for its worker.

        A prompt that has more tokens than a step takes several. `after_all` that has come then, which fills a step
        that begins at that moment.
        """
        stage = self._engine.prefill
        for worker in self._workers:
            while stage and worker.waiting and (worker.free_s < until_s or (after_all and worker.free_s == until_s)):
                taken, done = 0, list[_Request]()
                while worker.waiting and taken < stage.step_tokens:
                    part = min(worker.waiting[0].left, stage.step_tokens - taken)
                    worker.waiting[0].left -= part
                    taken += part
                    if not worker.waiting[0].left:
                        done.append(worker.waiting.popleft())
                worker.free_s += stage.step_s(taken, 0, 0)
                for request in done:
                    self._order += 1
                    ready_s = worker.free_s + stage.transfer_s_per_token * request.input_tokens
                    heapq.heappush(self._prefilled, (ready_s, self._order, request))

    def _handed_over_s(self) -> float:
        """Return when the prefill stage next hands a prompt over, or ends a step with others that wait for it."""
        ready_s = self._prefilled[0][0] if self._prefilled else math.inf
        return min([ready_s, *(worker.free_s for worker in self._workers if worker.waiting)])

    def _fits(self, request: _Request, taken: Sequence[_Request] = ()) -> bool:
        """Return whether there is room for a request beside those that run and those that a step has taken up."""
        count = self._count + len(taken)
        held = self._cached + self._count * self._step + count + 1
        held += sum(each.input_tokens + each.emitted for each in (*taken, request))
        return count == 0 or (held <= self._engine.cache_tokens and count < self._engine.max_sequences)

    def _chunk(self) -> None:
        """Run a step with as many waiting prompt tokens as fit, beside the decoding sequences or before them."""
        budget, taken, done = self._engine.chunk_tokens, 0, list[_Request]()
        for request in self._waiting:
            if budget == taken or not self._fits(request, done):
                break
            part = min(request.left, budget - taken)
            request.left -= part
            taken += part
            if request.left:
                break
            done.append(request)
        if not taken:
            self._decode()
            return
        beside = self._count if self._engine.mixes_prefill else 0
        seconds = self._engine.step_s(taken, beside, self._context())
        self.now += seconds
        if beside:
            self._tokens(1, seconds)
        elif self._count:
            self._paused_s += seconds
        for request in done:
            self._waiting.popleft()
            if request.first_s < 0:
                request.emitted = 1
                self._emit_first(request, self.now)
            self._start(request)
        self._retire()

    def _decode(self) -> None:
        """Run steps until a sequence ends, the cache is full or a request arrives."""
        steps = self._running[0][0] - self._step
        if self._engine.cache_tokens != math.inf:
            free = self._engine.cache_tokens - self._cached - self._count * self._step
            if free < self._count and self._count > 1:
                self._preempt()
                return
            steps = min(steps, max(int(free // self._count), 1))
        seconds = self._pace_s(steps)
        arrival = self._arrival_s()
        if not self._prefilled or self._fits(self._prefilled[0][2]):
            arrival = min(arrival, self._handed_over_s())
        if arrival < self.now + steps * seconds:
            steps = max(math.ceil((arrival - self.now) / seconds), 1)
            seconds = self._pace_s(steps)
        self.now += steps * seconds
        self._tokens(steps, seconds)
        self._retire()

    def _pace_s(self, steps: int) -> float:
        """Return the seconds of each of the next so many steps: those of the middle one, since contexts grow."""
        return self._engine.step_s(0, self._count, self._context() + (steps - 1) // 2)

    def _context(self) -> int:
        return (self._cached + self._count * self._step) // self._count if self._count else 0

    def _tokens(self, steps: int, seconds: float) -> None:
        """Give every running sequence so many tokens; the first of them also waited for the chunks in between."""
        for request in self._unheard:
            if request.running and request.first_s < 0:
                self._emit_first(request, self.now - (steps - 1) * seconds)
        self._unheard.clear()
        self._step += steps
        self.outcome.itl.add(seconds + self._paused_s, self._count)
        self._paused_s = 0.0
        if steps > 1:
            self.outcome.itl.add(seconds, (steps - 1) * self._count)

    def _emit_first(self, request: _Request, at_s: float) -> None:
        request.first_s = at_s
        request.overhead_s = self._engine.request_overhead_s + self._in_flight * self._engine.concurrency_overhead_s
        self.outcome.ttft.add(at_s - request.arrival_s + request.overhead_s)

    def _start(self, request: _Request) -> None:
        request.started = self._step - request.emitted
        request.finish = self._step + request.output_tokens - request.emitted
        request.running = True
        self._count += 1
        self._cached += request.input_tokens - request.started
        self._order += 1
        heapq.heappush(self._running, (request.finish, self._order, request))
        self._youngest.append(request)

    def _retire(self) -> None:
        """Take out the sequences that have all their tokens."""
        while self._running:
            finish, _, request = self._running[0]
            # one that was thrown out ends later than it would have, if it runs at all
            stale = not request.running or finish != request.finish
            if not stale and finish > self._step:
                break
            heapq.heappop(self._running)
            if not stale:
                self._remove(request)
                self._finish(request)
        while self._youngest and not self._youngest[-1].running:
            self._youngest.pop()
        if len(self._youngest) > 2 * self._count + 64:
            self._youngest = [each for each in self._youngest if each.running]

    def _remove(self, request: _Request) -> None:
        request.running = False
        self._count -= 1
        self._cached -= request.input_tokens - request.started

    def _finish(self, request: _Request) -> None:
        outcome, wanted = self.outcome, self._objective
        ttft, e2e = (at_s - request.arrival_s + request.overhead_s for at_s in (request.first_s, self.now))
        tpot = (self.now - request.first_s) / max(request.output_tokens - 1, 1)
        if request.output_tokens > 1:
            outcome.tpot.add(tpot)
        outcome.e2e.add(e2e)
        outcome.finished += 1
        outcome.output_tokens += request.output_tokens
        if (wanted.ttft_s is None or ttft <= wanted.ttft_s) and (wanted.tpot_s is None or tpot <= wanted.tpot_s):
            outcome.good += 1
        heard_s = self.now + request.overhead_s
        self.heard_s = max(self.heard_s, heard_s)
        if self._closed:
            heapq.heappush(self._heard, heard_s)
        else:
            self._in_flight -= 1

    def _preempt(self) -> None:
        """Send the youngest sequence back to the front of the queue; its tokens so far become prompt again."""
        request = next(each for each in reversed(self._youngest) if each.running)
        request.emitted = self._step - request.started
        self._remove(request)
        request.left = request.input_tokens + request.emitted
        self.outcome.preemptions += 1
        self._waiting.appendleft(request)
        self._retire()
