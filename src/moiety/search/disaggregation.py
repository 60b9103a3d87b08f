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
from moiety.search.judge import Judged, pool_of
from moiety.search.standing import standing
from moiety.strategy.enumeration import enumerate_strategies
from moiety.strategy.legality import divisors

if TYPE_CHECKING:
    from collections.abc import Iterator

    from moiety.plan import Options, Phase, Pool
    from moiety.projection.scenario import Scenario
    from moiety.search.standing import Achieved
    from moiety.strategy.strategy import Strategy

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


def disaggregated(scenario: Scenario, options: Options, aggregated: Judged, *, tune: bool = True) -> list[Judged]:
    """Return the best splits of the cluster into a prefill and a decode pool, each of equal instances.

    Instances are independent, so the best strategies per instance size are found once, then every split is judged,
    without queues, and the best of them with what their requests wait for (`projection/serving_apart.py`), with
    the workload's concurrency, or with what the best aggregated strategy needs at the workload's arrival rate. Both
    pools run with the same options; `tune` tries them with and without two-batch overlap.
    """
    concurrency = scenario.workload.concurrency or _concurrency_at_rate(scenario, aggregated)
    settings = [options]
    if tune and options.two_batch_overlap:
        settings.append(options.model_copy(update={"two_batch_overlap": False}))
    found = [split for each in settings for split in _under(scenario, each, concurrency)]
    found.sort(key=lambda each: each.judged.name)
    found.sort(key=lambda each: standing(scenario, each.judged.projection), reverse=True)
    best: dict[str, _Split] = {}
    for each in found:
        best.setdefault(each.judged.name, each)
    return [_with_queues(scenario, each) for each in list(best.values())[:_KEPT]]


def _with_queues(scenario: Scenario, split: _Split) -> Judged:
    """Return a split with all that its requests wait for."""
    judged = split.judged
    ttft_s = handed_over_ttft_s(scenario, judged.pools, judged.options, split.phases[1], timing="estimated")
    return replace(judged, projection=project_disaggregated(scenario, judged.pools, split.phases, ttft_s))


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
    first = _pool(scenario, options, best, "prefill", prefill_gpus, None)
    if first is None:
        return
    decode_gpus = scenario.cluster.num_gpus - prefill_gpus
    for choice in (c for size, choices in decode.items() if decode_gpus % size == 0 for c in choices):
        second = _pool(scenario, options, choice, "decode", decode_gpus, concurrency)
        if second is not None and scenario.workload.request_rate_per_s is not None:
            # fewer decode at a time than where prompts are computed between their steps
            least = max(_decoding_at_rate(scenario, second[1]), second[0].strategy.num_groups)
            second = _pool(scenario, options, choice, "decode", decode_gpus, min(least, concurrency)) or second
        if second is not None:
            pools, phases = (first[0], second[0]), (first[1], second[1])
            projection = project_disaggregated(scenario, pools, phases, _unqueued_ttft_s(scenario, *phases))
            yield _Split(Judged(pools, options, projection), phases)


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
    scenario: Scenario, options: Options, choice: _Choice, phase: Phase, gpus: int, concurrency: int | None
) -> tuple[Pool, PhaseOutcome] | None:
    """Return a pool of as many instances as `gpus` holds, and what it does; None where it has no work or no room."""
    strategy = choice.strategy.model_copy(update={"instances": gpus // choice.strategy.num_gpus})
    first_rank = 0 if phase == "prefill" else scenario.cluster.num_gpus - gpus
    cut = schedules(scenario.workload, phase, strategy, options, concurrency)
    if not cut:
        return None
    placement = place(scenario, strategy, options, first_rank, effort="rank")
    case = PoolCase(scenario, strategy, options, placement, first_rank, concurrency)
    outcome, _ = outcome_if_it_fits(case, phase, cut[0], timing="estimated")
    if outcome is None:
        return None
    return pool_of(case, outcome, phase)[0], outcome


def _concurrency_at_rate(scenario: Scenario, aggregated: Judged) -> int:
    """Return the sequences that decode at a time, at most: as many as with prompts computed between their steps."""
    return max(_decoding_at_rate(scenario, aggregated.projection), 1)


def _decoding_at_rate(scenario: Scenario, achieved: Achieved) -> int:
    """Return the sequences that decode at a time where requests arrive at a rate, by Little's law."""
    workload = scenario.workload
    return math.ceil((workload.request_rate_per_s or 0.0) * workload.output_tokens * (achieved.tpot_s or 0.0))
