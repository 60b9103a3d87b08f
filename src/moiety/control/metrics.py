"""The state in Prometheus' text format, under conventional names (https://prometheus.io/docs/practices/naming/)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from prometheus_client import generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

from moiety.control.energy import CLOCKED
from moiety.control.health import slowness
from moiety.control.state import Status
from moiety.control.working import is_covered, relative_loads, working_map, working_problem

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from prometheus_client.core import Metric

    from moiety.control.state import State
    from moiety.placement.problem import Loads


def metrics_text(state: State, expert_tokens: Loads | None = None, exposed_s: Mapping[int, float] | None = None) -> str:
    """Return the metrics of a state; what is not known (a GPU's watts, balance while experts move) is left out.

    `expert_tokens` says how many tokens have chosen each expert so far, [layers with experts, experts]; None: unknown.
    `exposed_s` has the seconds in which a rank only waited for transfers, by rank; of GPUs they are not known.
    """
    collector = _StateCollector(state, expert_tokens, exposed_s or {})
    return generate_latest(collector).decode()  # pyright: ignore[reportArgumentType] - only asked to collect


class _StateCollector(Collector):
    """Gives the metrics of one state, always in the same order."""

    def __init__(self, state: State, expert_tokens: Loads | None, exposed_s: Mapping[int, float]) -> None:
        self._state, self._expert_tokens, self._exposed_s = state, expert_tokens, exposed_s

    def collect(self) -> Iterator[Metric]:
        """Give the metrics."""
        yield from _counters(self._state)
        yield from _gauges(self._state)
        yield from demand_gauges(self._state)
        yield _ranks(self._state)
        yield from _paces(self._state)
        yield _exposed(self._exposed_s)
        yield _power(self._state)
        yield from _limit(self._state)
        yield _loads(self._state)
        if self._expert_tokens is not None:
            yield _tokens(self._expert_tokens)
        if is_covered(self._state) and len(self._state.forecast.history):
            yield _balance(self._state)


def _counters(state: State) -> Iterator[Metric]:
    for name, text, value in (
        ("moiety_expert_moves", "Experts moved.", state.moves),
        ("moiety_recoveries", "Times that ranks were fenced.", state.recoveries),
        ("moiety_stale_messages", "Messages of an old epoch or a fenced rank, ignored.", state.zombie_words),
    ):
        yield CounterMetricFamily(name, text, value=value)


def _gauges(state: State) -> Iterator[Metric]:
    for name, text, value in (
        ("moiety_epoch", "Number of the membership that is in force.", state.epoch),
        ("moiety_expert_moves_pending", "Moves asked for and not reported yet.", len(state.pending)),
        ("moiety_experts_refused", "Experts that no rank holds and none can be given.", len(state.refused)),
        ("moiety_standing_back", "1 while this controller decides nothing.", int(state.standing_back)),
    ):
        yield GaugeMetricFamily(name, text, value=value)


def demand_gauges(state: State) -> Iterator[Metric]:
    """Give what was asked for by the last report of requests, if there was one."""
    if state.demands:
        text = "Tokens a second, at the plan's pace, that nodes have to do: served, come to wait, and waiting."
        yield GaugeMetricFamily("moiety_demand_tokens_per_second", text, value=state.demands[-1])
        text = "Tokens that requests which wait for room will ask for."
        yield GaugeMetricFamily("moiety_backlog_tokens", text, value=state.backlog_tokens)


def _ranks(state: State) -> Metric:
    family = GaugeMetricFamily("moiety_ranks", "Ranks by what they are to the others.", labels=["status"])
    for status in Status:
        family.add_metric([status.name.lower()], float((state.ranks.status == status).sum()))
    return family


def _paces(state: State) -> Iterator[Metric]:
    own = "Seconds of a step that a rank works by itself, without waits for others, last window of steps."
    slow = "A rank's own step time over what its work takes the others; 1 where it is no outlier."
    known = np.flatnonzero(~np.isnan(state.ranks.own_s)).tolist()
    for name, text, values in (
        ("moiety_rank_step_seconds", own, state.ranks.own_s),
        ("moiety_rank_slowness", slow, slowness(state)),
    ):
        family = GaugeMetricFamily(name, text, labels=["rank"])
        for rank in known:
            family.add_metric([str(rank)], float(values[rank]))
        yield family


def _exposed(seconds: Mapping[int, float]) -> Metric:
    text = "Seconds of steps in which a rank did nothing but wait for transfers; mean of its processes."
    family = CounterMetricFamily("moiety_rank_exposed_communication_seconds", text, labels=["rank"])
    for rank, value in sorted(seconds.items()):
        family.add_metric([str(rank)], value)
    return family


def _power(state: State) -> Metric:
    family = GaugeMetricFamily("moiety_power_watts", "Last reading of a rank's GPU.", labels=["rank"])
    for rank, watts in enumerate(state.ranks.power_w.tolist()):
        if np.isfinite(watts):
            family.add_metric([str(rank)], watts)
    return family


def _limit(state: State) -> Iterator[Metric]:
    """Give what clock, or what power, was decided last; whoever carries it out says whether it is set."""
    if state.limit is not None and state.deployment.phase in CLOCKED:
        yield GaugeMetricFamily("moiety_chosen_clock_hertz", "SM clock decided for the ranks' GPUs.", value=state.limit)
    elif state.limit is not None:
        yield GaugeMetricFamily(
            "moiety_chosen_power_watts", "Power cap decided for the ranks' GPUs.", value=state.limit
        )


def _loads(state: State) -> Metric:
    text = "Share of its layer's tokens that an expert is expected to get in the next window."
    family = GaugeMetricFamily("moiety_expert_load", text, labels=["layer", "expert"])
    if len(state.forecast.history):
        for layer, row in enumerate(state.forecast.shares.tolist()):
            for expert, share in enumerate(row):
                family.add_metric([str(layer), str(expert)], share)
    return family


def _tokens(counts: Loads) -> Metric:
    text = "Tokens whose router has chosen an expert, as the ranks said it last."
    family = CounterMetricFamily("moiety_expert_tokens", text, labels=["layer", "expert"])
    for layer, row in enumerate(counts.tolist()):
        for expert, count in enumerate(row):
            family.add_metric([str(layer), str(expert)], count)
    return family


def _balance(state: State) -> Metric:
    """Return mean over fullest rank's load of each layer in the last window."""
    problem = working_problem(state, state.forecast.history[-1:])
    peaks = relative_loads(problem, working_map(state))[0].max(axis=1)
    family = GaugeMetricFamily("moiety_balancedness", "Mean over fullest rank's load, last window.", labels=["layer"])
    for layer, peak in enumerate(peaks.tolist()):
        family.add_metric([str(layer)], 1 / peak)
    return family
