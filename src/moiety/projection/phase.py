"""What a pool achieves in each phase: prefill, decode, mixed, training."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from moiety.cost.memory import plan_memory
from moiety.graph.graph import build_step_graph
from moiety.projection.engine_step import engine_step_s
from moiety.projection.queue import closed_loop_load, queue_wait_s
from moiety.projection.step import time_graph

if TYPE_CHECKING:
    from moiety.graph.graph import Graph
    from moiety.placement.placement import Placement
    from moiety.plan import MemoryPlan, Options, Schedule
    from moiety.projection.scenario import Scenario
    from moiety.projection.step import StepOutcome, Timing
    from moiety.strategy.strategy import Strategy

CHUNK_TOKENS = 8192
"""Prompt tokens that a serving step takes at most (the common default of chunked prefill)."""


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

    def step(self, schedule: Schedule, *, timing: Timing) -> StepOutcome:
        """Return one step of inference under `schedule`."""
        return self.timed(self.graph(schedule, training=False), timing)

    def request_s(self, in_flight: int) -> float:
        """Return what the engine adds to the time to first token where so many requests are in flight."""
        engine = self.scenario.overheads
        return engine.request_overhead_s + in_flight * engine.concurrency_overhead_s

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
            expands=self.scenario.engine == "moiety",
            packed=packed,
        )


@dataclass(frozen=True, slots=True)
class PhaseOutcome:
    """What a pool achieves."""

    schedule: Schedule
    outcome: StepOutcome
    memory: MemoryPlan
    tokens_per_s: float
    """Prompt, output or trained tokens, as the phase counts them, over the pool."""
    step_s: float
    ttft_s: float | None
    tpot_s: float | None
    computed_tokens_per_s: float
    """Tokens that run through the layers, prompt and output together."""


def prefill_phase(case: PoolCase, schedule: Schedule, *, timing: Timing) -> PhaseOutcome:
    """Return a batch of prompts computed in one step; the first token comes at its end."""
    engine = case.scenario.overheads
    outcome = case.step(schedule, timing=timing)
    tokens = schedule.tokens_per_step
    sequences = max(math.ceil(tokens / schedule.prompt_tokens), 1)
    step_s = engine_step_s(engine, outcome.graph, outcome.step_s, 0)
    rate = tokens * case.num_groups / step_s
    return PhaseOutcome(
        schedule=schedule,
        outcome=outcome,
        memory=case.memory(outcome.graph, tokens, sequences, packed=outcome.timeline is not None),
        tokens_per_s=rate,
        step_s=step_s,
        ttft_s=engine.prefill_slowdown * step_s + case.request_s(sequences * case.num_groups),
        tpot_s=None,
        computed_tokens_per_s=rate,
    )


def decode_phase(case: PoolCase, schedule: Schedule, *, timing: Timing) -> PhaseOutcome:
    """Return one output token for every sequence in flight; steps follow each other without a gap."""
    engine = case.scenario.overheads
    workload = case.scenario.workload
    outcome = case.step(schedule, timing=timing)
    sequences = schedule.decode_sequences * schedule.num_microbatches
    tpot_s = engine_step_s(engine, outcome.graph, _token_period_s(outcome, schedule.num_microbatches), sequences)
    rate = case.served(schedule) / tpot_s
    full = sequences * (workload.input_tokens + workload.output_tokens)
    return PhaseOutcome(
        schedule=schedule,
        outcome=outcome,
        memory=case.memory(outcome.graph, full, sequences, packed=outcome.timeline is not None),
        tokens_per_s=rate,
        step_s=tpot_s,
        ttft_s=None,
        tpot_s=tpot_s,
        computed_tokens_per_s=rate,
    )


def _token_period_s(outcome: StepOutcome, microbatches: int) -> float:
    """Return the time until a sequence's next token: its way through all stages, or the wait for its turn."""
    through = outcome.step_s - outcome.steady_s * (microbatches - 1) / microbatches
    return max(outcome.steady_s, through)


def mixed_phase(case: PoolCase, schedule: Schedule, *, timing: Timing) -> PhaseOutcome:
    """Return continuous batching with chunked prefill, in a closed loop or at the workload's arrival rate.

    Over the life of a request its group computes as many prompts as it finishes, so the mean step holds
    sequences x input / output prompt tokens; its time is the time per output token. A new request waits for the
    running step, for the prompts before it (M/D/1) and for its own chunks.
    """
    workload = case.scenario.workload
    engine = case.scenario.overheads
    outcome = case.step(schedule, timing=timing)
    sequences = schedule.decode_sequences * schedule.num_microbatches
    tpot_s = engine_step_s(engine, outcome.graph, _token_period_s(outcome, schedule.num_microbatches), sequences)
    burst = _burst(workload.input_tokens, schedule)
    busiest = case.step(burst, timing="folded" if timing == "simulated" else timing)
    burst_s = engine_step_s(engine, busiest.graph, _token_period_s(busiest, schedule.num_microbatches), sequences)
    steps = workload.input_tokens / (burst.prefill_tokens * burst.num_microbatches)
    own_s = case.request_s(case.served(schedule)) + tpot_s / 2 + engine.prefill_slowdown * math.ceil(steps) * burst_s
    decode_s = (workload.output_tokens - 1) * tpot_s
    load = closed_loop_load(sequences * steps * burst_s, own_s + decode_s, steps * burst_s)
    arriving = workload.request_rate_per_s or math.inf
    load = min(load, arriving / case.num_groups * steps * burst_s)
    ttft_s = own_s + queue_wait_s(load, steps * burst_s)
    rate = min(case.served(schedule) / (ttft_s + decode_s), arriving) * workload.output_tokens
    full = sequences * (workload.input_tokens + workload.output_tokens)
    return PhaseOutcome(
        schedule=schedule,
        outcome=outcome,
        memory=case.memory(busiest.graph, full, sequences, packed=outcome.timeline is not None),
        tokens_per_s=rate,
        step_s=tpot_s,
        ttft_s=ttft_s,
        tpot_s=tpot_s,
        computed_tokens_per_s=rate * (1 + workload.input_tokens / workload.output_tokens),
    )


def _burst(input_tokens: int, schedule: Schedule) -> Schedule:
    """Return the step that computes a prompt or a chunk of one, or the mean step's prompt tokens if those are more."""
    chunk = math.ceil(min(input_tokens, CHUNK_TOKENS) / schedule.num_microbatches)
    return schedule.model_copy(update={"prefill_tokens": max(chunk, schedule.prefill_tokens)})


def training_work(case: PoolCase, schedule: Schedule) -> tuple[Graph, MemoryPlan]:
    """Return what an optimizer step must do and what memory that takes, which no time has to be known for."""
    graph = case.graph(schedule, training=True)
    return graph, case.memory(graph)


def training_phase(
    case: PoolCase, schedule: Schedule, *, timing: Timing, work: tuple[Graph, MemoryPlan] | None = None
) -> PhaseOutcome:
    """Return one optimizer step: forward and backward of every micro-batch, gradients, update.

    `work` is what `training_work` says of it, where that is known.
    """
    graph, memory = work or training_work(case, schedule)
    again = memory.checkpointed_layers if memory.fits or timing != "estimated" else ()
    outcome = case.timed(graph, timing, frozenset(again))
    rate = schedule.tokens_per_step * case.num_groups / outcome.step_s
    return PhaseOutcome(
        schedule=schedule,
        outcome=outcome,
        memory=memory,
        tokens_per_s=rate,
        step_s=outcome.step_s,
        ttft_s=None,
        tpot_s=None,
        computed_tokens_per_s=rate,
    )


PHASES = {
    "prefill": prefill_phase,
    "decode": decode_phase,
    "mixed": mixed_phase,
    "training": training_phase,
}
