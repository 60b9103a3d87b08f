"""What a pool achieves in each phase: prefill, decode, mixed, training."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from moiety.cost.memory import plan_memory
from moiety.graph.graph import build_step_graph
from moiety.projection.admission import CHUNK_TOKENS
from moiety.projection.engine_step import engine_step_s, kernels_period_s
from moiety.projection.serving import aggregated_latency
from moiety.projection.serving_pool import plan_pool
from moiety.projection.step import time_graph

if TYPE_CHECKING:
    from collections.abc import Callable

    from moiety.graph.graph import Graph
    from moiety.placement.placement import Placement
    from moiety.plan import MemoryPlan, Options, Phase, Schedule
    from moiety.projection.scenario import Scenario
    from moiety.projection.serving import ServingLatency
    from moiety.projection.serving_pool import ServingPool
    from moiety.projection.step import StepOutcome, Timing
    from moiety.strategy.strategy import Strategy


@dataclass(frozen=True, slots=True)
class PoolCase:
    """A pool whose schedule is decided, ready to be judged."""

    scenario: Scenario
    strategy: Strategy
    options: Options
    placement: Placement | None
    first_rank: int = 0
    in_flight: int | None = None
    """Requests in flight over all groups; None: as many as the schedule has room for."""

    @property
    def num_groups(self) -> int:
        """Attention groups of all instances: each has requests of its own."""
        return self.strategy.num_groups

    def served(self, schedule: Schedule) -> int:
        """Return the sequences in flight over all groups; not divided evenly, some groups have one less."""
        room = schedule.decode_sequences * schedule.num_microbatches * self.num_groups
        return room if self.in_flight is None else min(room, self.in_flight)

    def graph(self, schedule: Schedule, *, training: bool) -> Graph:
        """Return what one micro-batch of a step under `schedule` must do."""
        return build_step_graph(self.scenario.model, self.strategy, schedule, self.options, training=training)

    def timed(self, graph: Graph, timing: Timing, checkpointed: frozenset[int] = frozenset()) -> StepOutcome:
        """Return the step that does this."""
        return time_graph(
            self.scenario,
            graph,
            self.placement,
            first_rank=self.first_rank,
            timing=timing,
            checkpointed=checkpointed,
        )

    def request_s(self, in_flight: int) -> float:
        """Return what the engine adds to the time to first token where so many requests are in flight."""
        engine = self.scenario.overheads
        return engine.request_overhead_s + in_flight * engine.concurrency_overhead_s

    def request_time_s(self, latency: ServingLatency) -> float:
        """Return the seconds from a request to the end of its answer."""
        return latency.ttft_s + (self.scenario.workload.output_tokens - 1) * latency.tpot_s

    def workers(self, timing: Timing) -> ServingPool:
        """Return its workers; what the schedule has in flight is held to fit when its memory is planned."""
        return plan_pool(self.scenario, self.strategy, self.options, self.placement, self.first_rank, timing=timing)

    def memory(
        self, graph: Graph, cached_tokens: int = 0, cached_sequences: int = 0, *, packed: bool = False
    ) -> MemoryPlan:
        """Return the memory plan when one group caches that much, of activations that are `packed` into an arena."""
        return plan_memory(
            graph,
            cached_tokens=cached_tokens,
            cached_sequences=cached_sequences,
            device=self.scenario.cluster.device,
            engine=self.scenario.overheads,
            engine_name=self.scenario.engine,
            packed=packed,
        )


@dataclass(frozen=True, slots=True)
class PhaseWork:
    """What a pool must do and hold in a phase, which no time has to be known for."""

    graph: Graph
    """One micro-batch of a step, of the mean one where steps differ."""
    busiest: Graph
    """One micro-batch of the step that does most."""
    memory: MemoryPlan

    @property
    def schedule(self) -> Schedule:
        """What a step does, the mean one where steps differ."""
        return self.graph.layout.schedule


@dataclass(frozen=True, slots=True)
class PhaseOutcome:
    """What a pool achieves."""

    schedule: Schedule
    outcome: StepOutcome
    memory: MemoryPlan
    throughput_tokens_per_s: float
    """Prompt, output or trained tokens, as the phase counts them, over the pool."""
    step_s: float
    ttft_s: float | None
    tpot_s: float | None
    """None too where answers have one token, which comes after the prompt."""
    computed_tokens_per_s: float
    """Tokens that run through the layers, prompt and output together."""


def phase_outcome(case: PoolCase, phase: Phase, schedule: Schedule, *, timing: Timing) -> PhaseOutcome:
    """Return what a pool achieves in a phase under `schedule`, whether or not that fits the memory."""
    return _TIMED[phase](case, phase_work(case, phase, schedule, timing=timing), timing)


def outcome_if_it_fits(
    case: PoolCase, phase: Phase, schedule: Schedule, *, timing: Timing
) -> tuple[PhaseOutcome | None, MemoryPlan]:
    """Return what a pool achieves in a phase, and its memory; None in place of the first where that is too small.

    What does not fit is not timed: it is the most of what a search looks at where memory is scarce.
    """
    work = phase_work(case, phase, schedule, timing=timing)
    return _TIMED[phase](case, work, timing) if work.memory.fits else None, work.memory


def phase_work(case: PoolCase, phase: Phase, schedule: Schedule, *, timing: Timing) -> PhaseWork:
    """Return the work and the memory of a phase; activations are packed where every layer is to be simulated.

    Prefill caches its prompts, serving every sequence at its full length, training nothing.
    """
    training = phase == "training"
    graph = busiest = case.graph(schedule, training=training)
    if training:
        return PhaseWork(graph, busiest, case.memory(graph))
    workload = case.scenario.workload
    if phase == "prefill":
        tokens, sequences = schedule.tokens_per_step, _prompts(schedule)
    else:
        sequences = schedule.decode_sequences * schedule.num_microbatches
        tokens = sequences * (workload.input_tokens + workload.output_tokens)
    if phase == "mixed":
        busiest = case.graph(_burst(workload.input_tokens, schedule), training=False)
    return PhaseWork(graph, busiest, case.memory(busiest, tokens, sequences, packed=timing == "simulated"))


def _prompts(schedule: Schedule) -> int:
    """Return the prompts that a step computes."""
    return max(math.ceil(schedule.tokens_per_step / schedule.prompt_tokens), 1)


def _prefill(case: PoolCase, work: PhaseWork, timing: Timing) -> PhaseOutcome:
    """Return a batch of prompts computed in one step; the first token comes at its end."""
    engine, schedule = case.scenario.overheads, work.schedule
    outcome = case.timed(work.graph, timing)
    step_s = engine_step_s(engine, outcome.graph, outcome.step_s, 0)
    rate = schedule.tokens_per_step * case.num_groups / step_s
    return PhaseOutcome(
        schedule=schedule,
        outcome=outcome,
        memory=work.memory,
        throughput_tokens_per_s=rate,
        step_s=step_s,
        ttft_s=engine.prefill_slowdown * step_s + case.request_s(_prompts(schedule) * case.num_groups),
        tpot_s=None,
        computed_tokens_per_s=rate,
    )


def _decode(case: PoolCase, work: PhaseWork, timing: Timing) -> PhaseOutcome:
    """Return one output token for every sequence in flight; steps follow each other without a gap."""
    schedule = work.schedule
    outcome = case.timed(work.graph, timing)
    tpot_s = _period_s(case, outcome)
    rate = case.served(schedule) / tpot_s
    return PhaseOutcome(
        schedule=schedule,
        outcome=outcome,
        memory=work.memory,
        throughput_tokens_per_s=rate,
        step_s=tpot_s,
        ttft_s=None,
        tpot_s=tpot_s,
        computed_tokens_per_s=rate,
    )


def _period_s(case: PoolCase, outcome: StepOutcome) -> float:
    """Return the time until a sequence's next token, with what the engine adds to it."""
    schedule = outcome.graph.layout.schedule
    sequences = schedule.decode_sequences * schedule.num_microbatches
    return engine_step_s(case.scenario.overheads, outcome.graph, kernels_period_s(outcome), sequences)


def _mixed(case: PoolCase, work: PhaseWork, timing: Timing) -> PhaseOutcome:
    """Return what requests see of an engine that decodes and computes their prompts, by the law of published runs.

    In a closed loop, or at the workload's arrival rate. Of the steps of that law none is the mean one, which is what
    the pool computes and moves in the time in which all sequences advance by one token.
    """
    workload = case.scenario.workload
    outcome = case.timed(work.graph, timing)
    served = case.served(work.schedule)
    latency, requests_per_s = _answered(case, served, timing)
    rate = requests_per_s * workload.output_tokens
    return PhaseOutcome(
        schedule=work.schedule,
        outcome=outcome,
        memory=work.memory,
        throughput_tokens_per_s=rate,
        step_s=served / rate,
        ttft_s=latency.ttft_s,
        tpot_s=latency.tpot_s if workload.output_tokens > 1 else None,
        computed_tokens_per_s=rate * (1 + workload.input_tokens / workload.output_tokens),
    )


def _answered(case: PoolCase, served: int, timing: Timing) -> tuple[ServingLatency, float]:
    """Return what requests see where so many are in flight, and how many of them are answered in a second.

    Of those that arrive all, or as many as end in the time that each takes; no fewer than a closed loop of as many
    would answer, for what is more waits without end.
    """
    workload, latency = case.scenario.workload, serving_latency(case, served, timing=timing)
    answered, arriving = served / case.request_time_s(latency), workload.request_rate_per_s or math.inf
    if workload.request_rate_per_s is None or answered >= arriving:
        return latency, min(answered, arriving)
    closed = workload.model_copy(update={"request_rate_per_s": None, "concurrency": served})
    looped = replace(case, scenario=replace(case.scenario, workload=closed))
    crowded = serving_latency(looped, served, timing=timing)
    most = min(served / case.request_time_s(crowded), arriving)
    return (crowded, most) if most > answered else (latency, answered)


def serving_latency(case: PoolCase, served: int, *, timing: Timing) -> ServingLatency:
    """Return the latencies of a pool that answers whole requests, so many of them in flight."""
    return aggregated_latency(case.workers(timing), served)


def _burst(input_tokens: int, schedule: Schedule) -> Schedule:
    """Return the step that computes a prompt or a chunk of one, or the mean step's prompt tokens if those are more."""
    chunk = math.ceil(min(input_tokens, CHUNK_TOKENS) / schedule.num_microbatches)
    return schedule.model_copy(update={"prefill_tokens": max(chunk, schedule.prefill_tokens)})


def _training(case: PoolCase, work: PhaseWork, timing: Timing) -> PhaseOutcome:
    """Return one optimizer step: forward and backward of every micro-batch, gradients, update."""
    memory = work.memory
    again = memory.checkpointed_layers if memory.fits or timing != "estimated" else ()
    outcome = case.timed(work.graph, timing, frozenset(again))
    rate = work.schedule.tokens_per_step * case.num_groups / outcome.step_s
    return PhaseOutcome(
        schedule=work.schedule,
        outcome=outcome,
        memory=memory,
        throughput_tokens_per_s=rate,
        step_s=outcome.step_s,
        ttft_s=None,
        tpot_s=None,
        computed_tokens_per_s=rate,
    )


_TIMED: dict[Phase, Callable[[PoolCase, PhaseWork, Timing], PhaseOutcome]] = {
    "prefill": _prefill,
    "decode": _decode,
    "mixed": _mixed,
    "training": _training,
}
