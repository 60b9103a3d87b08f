"""Prefill and decode on pools of their own: which instances for each, and how many GPUs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from moiety.plan import Pool
from moiety.projection.phase import PHASES, PhaseOutcome, PoolCase
from moiety.projection.project import project_disaggregated, project_pool
from moiety.projection.schedule import schedules
from moiety.search.judge import Judged, place, variants
from moiety.strategy.enumeration import enumerate_strategies
from moiety.strategy.legality import divisors

if TYPE_CHECKING:
    from collections.abc import Iterator

    from moiety.plan import Options, Phase
    from moiety.projection.scenario import Scenario
    from moiety.strategy.strategy import Strategy

_MAX_SPLITS = 6
_BEST_PER_SIZE = 2
_KEPT = 8


@dataclass(frozen=True, slots=True)
class _Choice:
    """An instance's strategy with the options that serve it."""

    strategy: Strategy
    options: Options
    outcome: PhaseOutcome


def disaggregated(scenario: Scenario, options: Options, aggregated: Judged) -> list[Judged]:
    """Return the best splits of the cluster into a prefill and a decode pool, each of equal instances.

    Instances are independent, so the best strategies per instance size are found once, then every split is judged with
    the workload's concurrency, or with what the best aggregated strategy needs at the workload's arrival rate.
    """
    total = scenario.cluster.num_gpus
    concurrency = scenario.workload.concurrency or _concurrency_at_rate(scenario, aggregated)
    sizes = [size for size in divisors(total) if size < total]
    prefill = {size: _best(scenario, options, "prefill", size, None) for size in sizes}
    decode = {size: _best(scenario, options, "decode", size, max(concurrency * size // total, 1)) for size in sizes}
    found = [
        judged
        for prefill_gpus in _splits(scenario, total)
        for judged in _pairs(scenario, prefill, decode, prefill_gpus, concurrency)
    ]
    found.sort(key=lambda each: (-each.projection.throughput_tokens_per_s, each.name))
    return found[:_KEPT]


def _splits(scenario: Scenario, total: int) -> list[int]:
    """Return how many GPUs prefill may get: whole nodes where there are several, at most six even steps."""
    node = scenario.cluster.gpus_per_node
    unit = node if total > node else 1
    choices = list(range(unit, total, unit))
    step = max(len(choices) / _MAX_SPLITS, 1)
    return sorted({choices[int(index * step)] for index in range(min(_MAX_SPLITS, len(choices)))})


def _best(
    scenario: Scenario, options: Options, phase: Phase, size: int, concurrency: int | None
) -> list[_Choice]:
    """Return the strategies of one instance of `size` GPUs with the highest rate, within the objective where any is."""
    found: list[_Choice] = []
    for candidate in enumerate_strategies(scenario.model, size, options.redundant_experts, max_instance_gpus=size):
        strategy = candidate.strategy
        if not candidate.is_legal or strategy.instances > 1:
            continue
        found += _judged(scenario, strategy, options, phase, concurrency)
    limit = scenario.workload.slo.ttft_s if phase == "prefill" else scenario.workload.slo.tpot_s

    def order(choice: _Choice) -> tuple[bool, float, str]:
        latency = choice.outcome.ttft_s if phase == "prefill" else choice.outcome.tpot_s
        missed = limit is not None and latency is not None and latency > limit
        return missed, -choice.outcome.tokens_per_s, choice.strategy.name

    return sorted(found, key=order)[:_BEST_PER_SIZE]


def _judged(
    scenario: Scenario, strategy: Strategy, options: Options, phase: Phase, concurrency: int | None
) -> Iterator[_Choice]:
    placement = place(scenario, strategy, options)
    for choice in variants(strategy, options):
        case = PoolCase(scenario, strategy, choice, placement)
        for schedule in schedules(scenario.workload, phase, strategy, choice, concurrency)[:1]:
            outcome = PHASES[phase](case, schedule, timing="estimated")
            if outcome.memory.fits:
                yield _Choice(strategy, choice, outcome)


def _pairs(
    scenario: Scenario,
    prefill: dict[int, list[_Choice]],
    decode: dict[int, list[_Choice]],
    prefill_gpus: int,
    concurrency: int,
) -> Iterator[Judged]:
    decode_gpus = scenario.cluster.num_gpus - prefill_gpus
    prefills = [c for size, choices in prefill.items() if prefill_gpus % size == 0 for c in choices[:1]]
    if not prefills:
        return
    best_prefill = max(prefills, key=lambda c: c.outcome.tokens_per_s / c.strategy.num_gpus)
    first = _pool(scenario, best_prefill, "prefill", prefill_gpus, 0, None)
    if first is None:
        return
    for size, choices in decode.items():
        if decode_gpus % size:
            continue
        for choice in choices:
            options = choice.options
            second = _pool(scenario, choice, "decode", decode_gpus, prefill_gpus, concurrency)
            if second is None:
                continue
            pools = (first[0], second[0])
            projection = project_disaggregated(scenario, pools, (first[1], second[1]))
            yield Judged(pools, options, projection)


def _pool(  # noqa: PLR0913 - a pool is a strategy for a phase on some GPUs under a load
    scenario: Scenario, choice: _Choice, phase: Phase, gpus: int, first_rank: int, concurrency: int | None
) -> tuple[Pool, PhaseOutcome] | None:
    """Return a pool of as many instances as `gpus` holds, and what it comes to; None where it has no work or no room."""
    strategy = choice.strategy.model_copy(update={"instances": gpus // choice.strategy.num_gpus})
    placement = place(scenario, strategy, choice.options)
    options = schedules(scenario.workload, phase, strategy, choice.options, concurrency)
    if not options:
        return None
    case = PoolCase(scenario, strategy, choice.options, placement, first_rank)
    outcome = PHASES[phase](case, options[0], timing="estimated")
    if not outcome.memory.fits:
        return None
    pool = Pool(role=phase, first_rank=first_rank, strategy=strategy, schedule=outcome.schedule, placement=placement)
    projection = project_pool(scenario, pool, outcome)
    return pool.model_copy(update={"memory": outcome.memory, "projection": projection}), outcome


def _concurrency_at_rate(scenario: Scenario, aggregated: Judged) -> int:
    rate, projection = scenario.workload.request_rate_per_s or 0.0, aggregated.projection
    request_s = (projection.ttft_s or 0.0) + scenario.workload.output_tokens * (projection.tpot_s or 0.0)
    return max(int(rate * request_s), 1)
