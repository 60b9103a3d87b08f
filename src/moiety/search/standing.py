"""What makes one strategy better than another."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from moiety.projection.scenario import Scenario


class Achieved(Protocol):
    """What ranks a strategy: a projection has it, and what a pool achieves in a phase."""

    @property
    def throughput_tokens_per_s(self) -> float:
        """Tokens per second of all GPUs."""
        ...

    @property
    def step_s(self) -> float:
        """Seconds of a step."""
        ...

    @property
    def ttft_s(self) -> float | None:
        """Seconds to the first token; None where the phase has none."""
        ...

    @property
    def tpot_s(self) -> float | None:
        """Seconds per output token; None where the phase has none."""
        ...


def latency_s(achieved: Achieved) -> float:
    """Return the latency a user of the workload feels: time per output token, else to the first, else the step."""
    if achieved.tpot_s is not None:
        return achieved.tpot_s
    return achieved.ttft_s if achieved.ttft_s is not None else achieved.step_s


def missed_share(scenario: Scenario, achieved: Achieved) -> float:
    """Return by what share latencies exceed the objective, added up; 0 where it is met."""
    slo = scenario.workload.slo
    missed = 0.0
    for limit, value in ((slo.ttft_s, achieved.ttft_s), (slo.tpot_s, achieved.tpot_s)):
        if limit is not None and value is not None:
            missed += max(value / limit - 1, 0.0)
    return missed


def standing(scenario: Scenario, achieved: Achieved) -> tuple[float, float, float]:
    """Return what ranks a strategy, better when larger: how little it misses the objective, throughput, quickness."""
    return (-missed_share(scenario, achieved), achieved.throughput_tokens_per_s, -quickness_s(scenario, achieved))


def quickness_s(scenario: Scenario, achieved: Achieved) -> float:
    """Return the seconds that are to be few among equal rates: all of a request, where all arriving ones are served."""
    workload = scenario.workload
    if workload.request_rate_per_s is None:
        return latency_s(achieved)
    return (achieved.ttft_s or 0.0) + (workload.output_tokens - 1) * (achieved.tpot_s or 0.0)
