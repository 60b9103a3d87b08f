"""Judging one strategy: every schedule and option worth trying, the best of them kept, or the reason why none works."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from moiety.plan import Pool
from moiety.projection.phase import (
    PhaseOutcome,
    PoolCase,
    outcome_if_it_fits,
    phase_outcome,
    phase_work,
    serving_latency,
)
from moiety.projection.place import place
from moiety.projection.project import project_pool
from moiety.projection.schedule import schedules
from moiety.search.standing import standing

if TYPE_CHECKING:
    from collections.abc import Iterator

    from moiety.plan import MemoryPlan, Options, Phase, Projection
    from moiety.projection.scenario import Scenario
    from moiety.projection.step import Timing
    from moiety.strategy.strategy import Strategy
    from moiety.workload.workload import Workload

MAX_RATE_STEPS = 8
"""Times that the requests in flight are looked for that an arrival rate leads to."""
_MOST_IN_FLIGHT = 10**9
"""Requests in flight that no cluster has: a queue without end."""
ROOM = 1.02
"""Of the requests that a step of the search for those in flight finds; with none to spare it would never end."""
_PARTS_TRIED = 4, 3, 2


@dataclass(frozen=True, slots=True)
class Judged:
    """A strategy with the schedule and options that serve it best."""

    pools: tuple[Pool, ...]
    options: Options
    projection: Projection
    simulated: bool = False
    """Whether a few layers of each kind were simulated; otherwise it is timed in closed form."""

    @property
    def is_disaggregated(self) -> bool:
        """Whether prefill and decode have pools of their own."""
        return len(self.pools) > 1

    @property
    def name(self) -> str:
        """Name of the strategy, of both where prefill and decode differ."""
        if self.is_disaggregated:
            return " + ".join(f"{pool.role}:{pool.strategy.name}" for pool in self.pools)
        return self.pools[0].strategy.name


@dataclass(frozen=True, slots=True)
class Refused:
    """Why a legal strategy is not in the ranking: the rule, and the sentence."""

    rule: str
    reason: str
    missing_bytes: int = 0
    """Memory that lacks on each GPU."""


def variants(
    strategy: Strategy, options: Options, workload: Workload, num_layers: int, *, sharded: bool | None = None
) -> list[Options]:
    """Return the settings worth trying of options whose use depends on the strategy.

    With `sharded` only those that are fully sharded, or only the others.

    Two-batch overlap: a pipeline's other micro-batches already hide what a second batch would; one GPU has nothing to
    hide. Virtual stages: stages that train may work on equal parts of their layers in turns, on as many as four. Full
    sharding: instances that train without a pipeline may share out what each would hold a copy of, in one batch; more
    of them, and a pipeline's, gather it anew for each.
    """
    off = options.model_copy(update={"two_batch_overlap": False})
    trains = workload.kind == "training"
    tried = [off]
    if strategy.pp > 1 and trains and options.virtual_stages == 1:
        parts = next((each for each in _PARTS_TRIED if num_layers % (strategy.pp * each) == 0), 1)
        tried += [off.model_copy(update={"virtual_stages": parts})] if parts > 1 else []
    elif options.two_batch_overlap and strategy.pp == 1 and strategy.gpus_per_stage > 1:
        tried = [options, off]
    if trains and strategy.instances > 1 and strategy.pp == 1 and not options.fully_sharded:
        tried.append(off.model_copy(update={"fully_sharded": True}))
    return tried if sharded is None else [each for each in tried if each.fully_sharded == sharded]


def judge(
    scenario: Scenario,
    strategy: Strategy,
    options: Options,
    *,
    tune: bool = True,
    timing: Timing = "folded",
    sharded: bool | None = None,
) -> Judged | Refused:
    """Return the best variant of a strategy on the whole cluster that fits the memory, or the rule that none meets.

    `tune` tries the options that depend on the strategy (`sharded` as in `variants`); otherwise `options` stay as they
    are. What is timed in closed form has its experts placed by a quick method too.
    """
    workload = scenario.workload
    refused = (
        _shares_sequences(strategy, workload)
        or _takes_turns(scenario, strategy, options)
        or _shares_parameters(options, workload)
    )
    if refused is not None:
        return refused
    in_flight = workload.concurrency if workload.kind in {"decode", "mixed"} else None
    placement = place(scenario, strategy, options, effort="rank" if timing == "estimated" else "simulate")
    best: tuple[PoolCase, PhaseOutcome] | None = None
    refusal = Refused("every-group-has-work", _too_little_work(scenario, strategy))
    layers = scenario.model.num_layers
    for choice in variants(strategy, options, workload, layers, sharded=sharded) if tune else [options]:
        case = PoolCase(scenario, strategy, choice, placement, in_flight=in_flight)
        last: tuple[float, ...] | None = None
        for outcome in _outcomes(case, timing):
            if isinstance(outcome, Refused):
                refusal = outcome
                continue
            score = standing(scenario, outcome)
            if best is None or score > standing(scenario, best[1]):
                best = case, outcome
            if strategy.pp == 1 or (last is not None and score < last):
                break  # without a pipeline to fill, more micro-batches only get worse
            last = score
    if best is None:
        return refusal
    pool, projection = pool_of(*best, workload.kind)
    return Judged((pool,), best[0].options, projection, simulated=timing != "estimated")


def _shares_sequences(strategy: Strategy, workload: Workload) -> Refused | None:
    """Return why a workload's sequences cannot be divided over context-parallel groups; None where they can."""
    if strategy.cp == 1:
        return None
    if workload.kind != "training":
        return Refused("context-parallelism-trains", f"cp={strategy.cp} divides sequences in training only")
    if workload.input_tokens % (2 * strategy.cp):
        reason = f"each of cp={strategy.cp} takes two parts of a sequence, and {workload.input_tokens:,} tokens do not"
        return Refused("sequences-divide-over-cp", f"{reason} divide by {2 * strategy.cp}")
    return None


def _takes_turns(scenario: Scenario, strategy: Strategy, options: Options) -> Refused | None:
    """Return why stages cannot be divided into the options' parts; None where they can, or are whole."""
    parts, layers = options.virtual_stages, scenario.model.num_layers
    if parts == 1:
        return None
    if scenario.workload.kind != "training":
        return Refused("virtual-stages-train", f"virtual_stages={parts} is an order of forward and backward passes")
    if strategy.pp == 1 or strategy.pp * parts > layers:
        reason = f"{strategy.pp} stage(s) of {parts} parts for {layers} layers; there must be two stages or more, and "
        return Refused("parts-have-layers", f"{reason}a layer for each part")
    return None


def _shares_parameters(options: Options, workload: Workload) -> Refused | None:
    """Return why parameters cannot be fully sharded; None where they can, or are not to be."""
    if options.fully_sharded and workload.kind != "training":
        return Refused("fully-sharded-trains", "fully_sharded shares out what training holds; nothing else gathers it")
    return None


def pool_of(case: PoolCase, outcome: PhaseOutcome, role: Phase) -> tuple[Pool, Projection]:
    """Return a judged case as a pool of a plan, and its projection."""
    pool = Pool(
        role=role,
        first_rank=case.first_rank,
        strategy=case.strategy,
        schedule=outcome.schedule,
        placement=case.placement,
        memory=outcome.memory,
    )
    projection = project_pool(case.scenario, pool, outcome)
    return pool.model_copy(update={"projection": projection}), projection


def _outcomes(case: PoolCase, timing: Timing) -> Iterator[PhaseOutcome | Refused]:
    workload, strategy = case.scenario.workload, case.strategy
    if workload.request_rate_per_s is not None:
        yield _at_rate(case, workload.request_rate_per_s, timing)
        return
    choices = schedules(workload, workload.kind, strategy, case.options)
    if case.options.virtual_stages > 1:
        choices = [each for each in choices if each.num_microbatches % strategy.pp == 0]
    if not choices:
        yield Refused("every-group-has-work", _too_little_work(case.scenario, strategy))
    for schedule in choices:
        outcome, memory = outcome_if_it_fits(case, workload.kind, schedule, timing=timing)
        yield outcome or _does_not_fit(memory)


def _at_rate(case: PoolCase, rate_per_s: float, timing: Timing) -> PhaseOutcome | Refused:
    """Return the outcome with as many in flight as an arrival rate leads to: rate x time of a request (Little)."""
    workload, strategy = case.scenario.workload, case.strategy
    held = strategy.num_groups
    for _ in range(MAX_RATE_STEPS):
        choices = schedules(workload, "mixed", strategy, case.options, held)
        if not choices:
            # a pipeline needs as many sequences as it has stages
            held *= 2
            continue
        memory = phase_work(case, "mixed", choices[0], timing=timing).memory
        if not memory.fits:
            return _does_not_fit(memory)
        served = case.served(choices[0])
        needed = rate_per_s * case.request_time_s(serving_latency(case, served, timing=timing))
        if needed <= served:
            return phase_outcome(case, "mixed", choices[0], timing=timing)
        if needed > _MOST_IN_FLIGHT:
            break
        held = math.ceil(needed * ROOM)
    return Refused(
        "keeps-up-with-arrivals",
        f"{rate_per_s:g} requests/s arrive faster than they are served; more GPUs or shorter requests are needed",
    )


def _does_not_fit(memory: MemoryPlan) -> Refused:
    missing = memory.total_bytes - memory.capacity_bytes
    return Refused(
        "fits-the-memory",
        f"needs {memory.total_bytes / 1e9:.1f} GB a GPU, {missing / 1e9:.1f} GB more than there are; "
        f"most of it {memory.biggest.replace('_', ' ')} ({memory.bytes_by_kind[memory.biggest] / 1e9:.1f} GB)",
        missing,
    )


def _too_little_work(scenario: Scenario, strategy: Strategy) -> str:
    groups = strategy.num_groups
    return f"{scenario.workload.name} has too little work for {groups} attention groups of {strategy.pp} stage(s)"
