"""Prefill and decode on pools of their own: which instances for each, and how many GPUs."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from moiety.projection.phase import PhaseOutcome, PoolCase, outcome_if_it_fits
from moiety.projection.place import place
from moiety.projection.project import handed_over_ttft_s, in_flight, project_disaggregated
from moiety.projection.queue import queue_wait_s
from moiety.projection.schedule import schedules
from moiety.search.judge import MAX_RATE_STEPS, ROOM, Judged, pool_of
from moiety.search.standing import standing
from moiety.strategy.enumeration import enumerate_strategies
from moiety.strategy.legality import divisors

if TYPE_CHECKING:
    from collections.abc import Iterator

    from moiety.plan import Options, Phase, Pool, Projection
    from moiety.projection.scenario import Scenario
    from moiety.projection.step import Timing
    from moiety.search.standing import Achieved
    from moiety.strategy.strategy import Strategy
    from moiety.workload.workload import Workload

_MAX_SPLITS = 6
_BEST_PER_SIZE = 2
_KEPT = 8


@dataclass(frozen=True, slots=True)
class _Choice:
    """An instance's strategy with what it achieves."""

    strategy: Strategy
    outcome: PhaseOutcome
    misses: bool
    """Whether its latency is over the objective."""

    @property
    def rate_per_gpu(self) -> float:
        """Tokens per second and GPU."""
        return self.outcome.throughput_tokens_per_s / self.strategy.num_gpus


@dataclass(frozen=True, slots=True)
class _Split:
    """A prefill and a decode pool, and what each achieves."""

    judged: Judged
    phases: tuple[PhaseOutcome, PhaseOutcome]


def disaggregated(
    scenario: Scenario, options: Options, aggregated: Judged | None, *, tune: bool = True
) -> list[Judged]:
    """Return the best splits of the cluster into a prefill and a decode pool, each of equal instances.

    Instances are independent, so the best strategies per instance size are found once, then every split is judged,
    without queues, and the best of them with what their requests wait for (`projection/serving_apart.py`), with
    the workload's concurrency, or with as many in flight as its arrival rate leads to, from what the best aggregated
    strategy needs on, if there is one. Those that do not answer all that arrives are left out. Both pools run with the
    same options; `tune` tries them with and without two-batch overlap.
    """
    concurrency = scenario.workload.concurrency or _concurrency_at_rate(scenario, options, aggregated)
    settings = [options]
    if tune and options.two_batch_overlap:
        settings.append(options.model_copy(update={"two_batch_overlap": False}))
    found = [split for each in settings for split in _under(scenario, each, concurrency)]
    found.sort(key=lambda each: each.judged.name)
    found.sort(key=lambda each: standing(scenario, each.judged.projection), reverse=True)
    best: dict[str, _Split] = {}
    for each in found:
        best.setdefault(each.judged.name, each)
    timed = (_with_queues(scenario, each) for each in list(best.values())[:_KEPT])
    return [each for each in timed if each is not None]


def _with_queues(scenario: Scenario, split: _Split) -> Judged | None:
    """Return a split with all that its requests wait for; None where it does not keep up with those that arrive.

    As many of these decode at a time as the time of a step leads to, so that it is simulated.
    """
    judged, phases = split.judged, split.phases
    if scenario.workload.request_rate_per_s is not None:
        prefill, decode = judged.pools
        again = _decode_pool(
            scenario, judged.options, decode.strategy, decode.num_gpus, in_flight(phases[1]), timing="folded"
        )
        if again is None:
            return None
        judged, phases = replace(judged, pools=(prefill, again[0])), (phases[0], again[1])
    ttft_s = handed_over_ttft_s(scenario, judged.pools, judged.options, phases[1], timing="estimated")
    projection = project_disaggregated(scenario, judged.pools, phases, ttft_s)
    return replace(judged, projection=projection) if _keeps_up(scenario.workload, projection) else None


def _under(scenario: Scenario, options: Options, concurrency: int) -> Iterator[_Split]:
    """Yield the splits worth judging under these options."""
    total = scenario.cluster.num_gpus
    sizes = [size for size in divisors(total) if size < total]
    prefill = {size: _best(scenario, options, "prefill", size, None) for size in sizes}
    decode = {size: _best(scenario, options, "decode", size, max(concurrency * size // total, 1)) for size in sizes}
    for prefill_gpus in _splits(scenario, total):
        yield from _pairs(scenario, options, prefill, decode, prefill_gpus, concurrency)


def _splits(scenario: Scenario, total: int) -> list[int]:
    """Return how many GPUs prefill may get: whole nodes where there are several, at most six even steps."""
    node = scenario.cluster.gpus_per_node
    unit = node if total > node else 1
    choices = list(range(unit, total, unit))
    step = max(len(choices) / _MAX_SPLITS, 1)
    return sorted({choices[int(index * step)] for index in range(min(_MAX_SPLITS, len(choices)))})


def _best(scenario: Scenario, options: Options, phase: Phase, size: int, concurrency: int | None) -> list[_Choice]:
    """Return the strategies of one instance of `size` GPUs with the highest rate, within the objective where any is."""
    limit = scenario.workload.slo.ttft_s if phase == "prefill" else scenario.workload.slo.tpot_s
    found: list[_Choice] = []
    for candidate in enumerate_strategies(scenario.model, size, options.redundant_experts):
        strategy = candidate.strategy
        if not candidate.is_legal or strategy.instances > 1:
            continue
        cut = schedules(scenario.workload, phase, strategy, options, concurrency)
        if not cut:
            continue
        placement = place(scenario, strategy, options, effort="rank")
        case = PoolCase(scenario, strategy, options, placement, in_flight=concurrency)
        outcome, _ = outcome_if_it_fits(case, phase, cut[0], timing="estimated")
        if outcome is not None:
            latency = outcome.ttft_s if phase == "prefill" else outcome.tpot_s
            found.append(_Choice(strategy, outcome, limit is not None and latency is not None and latency > limit))
    found.sort(key=lambda each: (each.misses, -each.rate_per_gpu, each.strategy.name))
    return found[:_BEST_PER_SIZE]


def _pairs(
    scenario: Scenario,
    options: Options,
    prefill: dict[int, list[_Choice]],
    decode: dict[int, list[_Choice]],
    prefill_gpus: int,
    concurrency: int,
) -> Iterator[_Split]:
    prefills = [c for size, choices in prefill.items() if prefill_gpus % size == 0 for c in choices[:1]]
    if not prefills:
        return
    best = min(prefills, key=lambda c: (c.misses, -c.rate_per_gpu))
    first = _pool(scenario, options, best.strategy, "prefill", prefill_gpus, None)
    if first is None:
        return
    decode_gpus = scenario.cluster.num_gpus - prefill_gpus
    for choice in (c for size, choices in decode.items() if decode_gpus % size == 0 for c in choices):
        second = _decode_pool(scenario, options, choice.strategy, decode_gpus, concurrency)
        if second is not None:
            pools, phases = (first[0], second[0]), (first[1], second[1])
            projection = project_disaggregated(scenario, pools, phases, _unqueued_ttft_s(scenario, *phases))
            if _keeps_up(scenario.workload, projection):
                yield _Split(Judged(pools, options, projection), phases)


def _keeps_up(workload: Workload, projection: Projection) -> bool:
    """Return whether all is answered that arrives at a rate, if requests do."""
    arriving = (workload.request_rate_per_s or 0.0) * workload.output_tokens
    return projection.throughput_tokens_per_s >= arriving * (1 - 1e-9)


def _decode_pool(
    scenario: Scenario,
    options: Options,
    strategy: Strategy,
    gpus: int,
    concurrency: int,
    *,
    timing: Timing = "estimated",
) -> tuple[Pool, PhaseOutcome] | None:
    """Return a decode pool with so many in flight, or with as many as decode at a time where requests arrive at a rate.

    None where it has no work, no room, or never as many as that rate leads to.
    """
    found = _pool(scenario, options, strategy, "decode", gpus, concurrency, timing=timing)
    if scenario.workload.request_rate_per_s is None:
        return found
    for _ in range(MAX_RATE_STEPS):
        if found is None:
            return None
        pool, phase = found
        held, needed = in_flight(phase), _decoding_at_rate(scenario, phase)
        if needed <= held:
            # as many, or fewer than where prompts are computed between the steps
            least = min(max(math.ceil(needed * ROOM), pool.strategy.num_groups), held)
            if least == held:
                return found
            return _pool(scenario, options, strategy, "decode", gpus, least, timing=timing) or found
        found = _pool(scenario, options, strategy, "decode", gpus, math.ceil(needed * ROOM), timing=timing)
    return None


def _unqueued_ttft_s(scenario: Scenario, prefill: PhaseOutcome, decode: PhaseOutcome) -> float:
    """Return a time to first token that no queue makes longer than the prefill pool's rate does.

    All splits are ranked by it; where prompts are computed more slowly than sequences end, these wait for it, and their
    whole time is that of so many in flight at its rate (Little's law).
    """
    workload = scenario.workload
    capacity = prefill.throughput_tokens_per_s / workload.input_tokens
    if workload.request_rate_per_s is not None:
        return prefill.step_s + queue_wait_s(workload.request_rate_per_s / capacity, prefill.step_s)
    decode_s = max(workload.output_tokens - 1, 0) * (decode.tpot_s or 0.0)
    return max(prefill.step_s, in_flight(decode) / capacity - decode_s)


def _pool(
    scenario: Scenario,
    options: Options,
    strategy: Strategy,
    phase: Phase,
    gpus: int,
    concurrency: int | None,
    *,
    timing: Timing = "estimated",
) -> tuple[Pool, PhaseOutcome] | None:
    """Return a pool of as many instances as `gpus` holds, and what it does; None where it has no work or no room."""
    strategy = strategy.model_copy(update={"instances": gpus // strategy.gpus_per_instance})
    first_rank = 0 if phase == "prefill" else scenario.cluster.num_gpus - gpus
    cut = schedules(scenario.workload, phase, strategy, options, concurrency)
    if not cut:
        return None
    placement = place(scenario, strategy, options, first_rank, effort="rank")
    case = PoolCase(scenario, strategy, options, placement, first_rank, concurrency)
    outcome, _ = outcome_if_it_fits(case, phase, cut[0], timing=timing)
    if outcome is None:
        return None
    return pool_of(case, outcome, phase)[0], outcome


def _concurrency_at_rate(scenario: Scenario, options: Options, aggregated: Judged | None) -> int:
    """Return the sequences that decode at a time where prompts are computed between their steps.

    Where no strategy keeps up so, as many as in the largest pool that only decodes, a sequence for each GPU.
    """
    if aggregated is not None:
        return max(_decoding_at_rate(scenario, aggregated.projection), 1)
    largest = max((size for size in divisors(scenario.cluster.num_gpus) if size < scenario.cluster.num_gpus), default=1)
    alone = _best(scenario, options, "decode", largest, largest)
    return max((_decoding_at_rate(scenario, each.outcome) for each in alone), default=1)


def _decoding_at_rate(scenario: Scenario, achieved: Achieved) -> int:
    """Return the sequences that decode at a time where requests arrive at a rate, by Little's law."""
    workload = scenario.workload
    return math.ceil((workload.request_rate_per_s or 0.0) * workload.output_tokens * (achieved.tpot_s or 0.0))
