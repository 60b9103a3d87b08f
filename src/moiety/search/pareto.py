"""The Pareto front of throughput per GPU against latency, over strategies and loads."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from moiety.plan import ParetoPoint
from moiety.search.judge import Judged, judge
from moiety.search.standing import latency_s

if TYPE_CHECKING:
    from collections.abc import Sequence

    from moiety.plan import Options
    from moiety.projection.scenario import Scenario
    from moiety.workload.workload import Workload

_SHARES = (1, 4, 16)
_STRATEGIES = 12


def pareto_front(
    scenario: Scenario, ranked: Sequence[Judged], options: Options, *, tune: bool
) -> tuple[ParetoPoint, ...]:
    """Return the points that no other beats in throughput per GPU and latency at once, fastest answer first.

    Looked at: the best and the quickest strategies at the workload's load, a quarter and a sixteenth of it.
    """
    quickest = sorted(ranked, key=lambda each: (latency_s(each.projection), each.name))
    looked_at = {each.name: each for each in (*ranked[:_STRATEGIES], *quickest[:_STRATEGIES])}
    points: list[tuple[float, float, str, int]] = []
    for share in _SHARES:
        workload = _lighter(scenario.workload, share)
        if workload is None:
            continue
        for each in looked_at.values():
            again = (
                each if share == 1 else _judged_again(replace(scenario, workload=workload), each, options, tune=tune)
            )
            if again is not None:
                rate = again.projection.throughput_tokens_per_s_per_gpu
                points.append((latency_s(again.projection), -rate, again.name, _load(workload, again)))
    front: list[ParetoPoint] = []
    for latency, negative_rate, name, load in sorted(points):
        if not front or -negative_rate > front[-1].throughput_tokens_per_s_per_gpu:
            front.append(
                ParetoPoint(strategy=name, load=load, throughput_tokens_per_s_per_gpu=-negative_rate, latency_s=latency)
            )
    return tuple(front)


def _lighter(workload: Workload, share: int) -> Workload | None:
    """Return the workload with its load divided; None where that leaves nothing, or an arrival rate sets the load."""
    for name in ("tokens_in_flight", "concurrency"):
        load = getattr(workload, name)
        if load is not None:
            return workload.model_copy(update={name: load // share}) if load >= share else None
    return workload if share == 1 else None


def _load(workload: Workload, judged: Judged) -> int:
    if workload.tokens_in_flight or workload.concurrency:
        return workload.tokens_in_flight or workload.concurrency or 1
    pool = judged.pools[-1]
    schedule = pool.schedule
    return schedule.decode_sequences * schedule.num_microbatches * pool.strategy.num_groups


def _judged_again(scenario: Scenario, judged: Judged, options: Options, *, tune: bool) -> Judged | None:
    if judged.is_disaggregated:
        return None
    again = judge(scenario, judged.pools[0].strategy, options, tune=tune, timing="estimated")
    return again if isinstance(again, Judged) else None
