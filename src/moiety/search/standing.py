"""What makes one strategy better than another."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from moiety.plan import Projection
    from moiety.projection.scenario import Scenario


def latency_s(projection: Projection) -> float:
    """Return the latency a user of the workload feels: time per output token, else to the first, else the step."""
    if projection.tpot_s is not None:
        return projection.tpot_s
    return projection.ttft_s if projection.ttft_s is not None else projection.step_s


def missed_share(scenario: Scenario, projection: Projection) -> float:
    """Return by what share latencies exceed the objective, added up; 0 where it is met."""
    slo = scenario.workload.slo
    missed = 0.0
    for limit, value in ((slo.ttft_s, projection.ttft_s), (slo.tpot_s, projection.tpot_s)):
        if limit is not None and value is not None:
            missed += max(value / limit - 1, 0.0)
    return missed


def standing(scenario: Scenario, projection: Projection) -> tuple[float, float, float]:
    """Return what ranks a strategy, better when larger: how little it misses the objective, throughput, quickness."""
    return (-missed_share(scenario, projection), projection.throughput_tokens_per_s, -latency_s(projection))
