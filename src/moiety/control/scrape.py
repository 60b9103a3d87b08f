"""What serving engines say of their requests in Prometheus' text format, as an event; counters by differences."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from prometheus_client.parser import text_string_to_metric_families

from moiety.control.events import RequestMetrics
from moiety.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

GENERATED = ("vllm:generation_tokens_total", "sglang:generation_tokens_total")
PROMPT = ("vllm:prompt_tokens_total", "sglang:prompt_tokens_total")
BALANCEDNESS = "sglang:eplb_balancedness"
"""A summary: mean over fullest GPU's tokens of each forward pass (`--expert-balancedness-report-mode prometheus`)."""
TIME_PER_TOKEN = (
    "vllm:inter_token_latency_seconds",
    "vllm:time_per_output_token_seconds",  # its name before
    "sglang:inter_token_latency_seconds",
    "sglang:time_per_output_token_seconds",  # likewise
)
"""Histograms, the first that an engine has."""
WAITING = ("vllm:num_requests_waiting", "sglang:num_queue_reqs")
FINISHED = {
    "vllm:generation_tokens_total": ("vllm:request_generation_tokens_sum", "vllm:request_generation_tokens_count"),
    "vllm:prompt_tokens_total": ("vllm:request_prompt_tokens_sum", "vllm:request_prompt_tokens_count"),
    "sglang:generation_tokens_total": ("sglang:generation_tokens_total", "sglang:num_requests_total"),
    "sglang:prompt_tokens_total": ("sglang:prompt_tokens_total", "sglang:num_requests_total"),
}
"""By what is counted: the same tokens of requests that are over, and how many these are. SGLang counts both at the end
of a request."""

_COPIES = frozenset({"tp_rank", "pp_rank", "moe_ep_rank"})
"""Labels of SGLang's ranks that share one queue: with `--enable-metrics-for-all-schedulers` each of them shows it."""
_PARTS = ("sum", "count")
_Series = tuple[str, tuple[tuple[str, str], ...]]


@dataclass(frozen=True, slots=True)
class Scrape:
    """One reading, without what is not a number."""

    time_s: float
    counters: Mapping[_Series, float]
    """By name and labels."""
    waiting: float | None = None
    """Requests that wait for room; None where that is not shown."""


def read_scrape(text: str, *, time_s: float, source: str) -> Scrape:
    """Return what is known by name; raise InputError for what is not Prometheus' text format."""
    names = {*GENERATED, *PROMPT, *(f"{name}_{part}" for name in (*TIME_PER_TOKEN, BALANCEDNESS) for part in _PARTS)}
    names |= {name for pair in FINISHED.values() for name in pair}
    found: dict[_Series, float] = {}
    queues: dict[_Series, float] = {}
    try:
        for family in text_string_to_metric_families(text):
            for sample in family.samples:
                if not math.isfinite(sample.value):
                    continue
                if sample.name in names:
                    found[sample.name, tuple(sorted(sample.labels.items()))] = sample.value
                elif sample.name in WAITING:
                    own = (each for each in sample.labels.items() if each[0] not in _COPIES)
                    queue = sample.name, tuple(sorted(own))
                    queues[queue] = max(sample.value, queues.get(queue, 0.0))
    except (ValueError, IndexError, KeyError) as error:
        rule = f"is not Prometheus' text format: {str(error)[:80]}"
        raise InputError(rule, source=source, remedy="name the engine's /metrics") from None
    return Scrape(time_s, found, sum(queues.values()) if queues else None)


def request_metrics(
    before: Scrape, after: Scrape, counted: Sequence[str] = GENERATED, *, at_s: float | None = None
) -> RequestMetrics | None:
    """Return tokens a second, those that `counted` names, the mean time per token, and what waits at the end.

    It is stamped with `at_s`, else with the time of the second. None where no engine counted tokens in both. A counter
    that has fallen was reset: what it shows has come since. A series that was not there before says nothing yet.
    """
    elapsed_s = after.time_s - before.time_s
    tokens = [_increase(before, after, name) for name in counted]
    known = [each for each in tokens if each is not None]
    if not known or elapsed_s <= 0:
        return None
    means = (_mean(before, after, name) for name in TIME_PER_TOKEN)
    tpot_s = next((mean for mean in means if mean is not None), None)
    backlog = _backlog_tokens(before, after, counted)
    return RequestMetrics(after.time_s if at_s is None else at_s, sum(known) / elapsed_s, tpot_s, backlog)


def balancedness(before: Scrape, after: Scrape) -> float | None:
    """Return what SGLang measured as its balancedness between two readings; None where it does not say."""
    return _mean(before, after, BALANCEDNESS)


def restarted(before: Scrape, after: Scrape) -> bool:
    """Return whether a counter has fallen: the engine has started anew in between."""
    return any(value < before.counters.get(series, value) for series, value in after.counters.items())


def _backlog_tokens(before: Scrape, after: Scrape, counted: Sequence[str]) -> float | None:
    """Return the requests that wait, times the tokens of one: the mean of those that ended since, else of all before.

    None where the requests are not shown, or none has ended yet.
    """
    if not after.waiting:
        return after.waiting
    nothing = Scrape(before.time_s, dict.fromkeys(after.counters, 0.0))
    for since in (before, nothing):
        for name in counted:
            tokens, number = (_increase(since, after, each) for each in FINISHED[name])
            if tokens and number:
                return after.waiting * tokens / number
    return None


def _mean(before: Scrape, after: Scrape, name: str) -> float | None:
    """Return the mean of what a histogram or a summary has seen since; None where it has seen nothing."""
    total, number = (_increase(before, after, f"{name}_{part}") for part in _PARTS)
    return total / number if total is not None and number else None


def _increase(before: Scrape, after: Scrape, name: str) -> float | None:
    """Return by how much the series of a name have grown together; None where none was there both times."""
    grown: float | None = None
    for series, value in after.counters.items():
        if series[0] != name or series not in before.counters:
            continue
        old = before.counters[series]
        grown = (grown or 0.0) + (value - old if value >= old else value)
    return grown
