"""What serving engines say of their requests in Prometheus' text format, as an event; counters only, by differences."""

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

_PARTS = ("sum", "count")
_Series = tuple[str, tuple[tuple[str, str], ...]]


@dataclass(frozen=True, slots=True)
class Scrape:
    """Counters of one reading, by name and labels; without those that are not numbers."""

    time_s: float
    counters: Mapping[_Series, float]


def read_scrape(text: str, *, time_s: float, source: str) -> Scrape:
    """Return the counters that are known by name; raise InputError for what is not Prometheus' text format."""
    names = {*GENERATED, *PROMPT, *(f"{name}_{part}" for name in (*TIME_PER_TOKEN, BALANCEDNESS) for part in _PARTS)}
    found: dict[_Series, float] = {}
    try:
        for family in text_string_to_metric_families(text):
            for sample in family.samples:
                if sample.name in names and math.isfinite(sample.value):
                    found[sample.name, tuple(sorted(sample.labels.items()))] = sample.value
    except (ValueError, IndexError, KeyError) as error:
        rule = f"is not Prometheus' text format: {str(error)[:80]}"
        raise InputError(rule, source=source, remedy="name the engine's /metrics") from None
    return Scrape(time_s, found)


def request_metrics(
    before: Scrape, after: Scrape, counted: Sequence[str] = GENERATED, *, at_s: float | None = None
) -> RequestMetrics | None:
    """Return tokens a second, those that `counted` names, and the mean time per token, between two readings.

    It is stamped with `at_s`, else with the time of the second. None where no engine counted tokens in both. A counter
    that has fallen was reset: what it shows has come since. A series that was not there before says nothing yet. What
    waiting requests will need is not seen: the demand is what was served.
    """
    elapsed_s = after.time_s - before.time_s
    tokens = [_increase(before, after, name) for name in counted]
    known = [each for each in tokens if each is not None]
    if not known or elapsed_s <= 0:
        return None
    means = (_mean(before, after, name) for name in TIME_PER_TOKEN)
    tpot_s = next((mean for mean in means if mean is not None), None)
    return RequestMetrics(after.time_s if at_s is None else at_s, sum(known) / elapsed_s, tpot_s)


def balancedness(before: Scrape, after: Scrape) -> float | None:
    """Return what SGLang measured as its balancedness between two readings; None where it does not say."""
    return _mean(before, after, BALANCEDNESS)


def restarted(before: Scrape, after: Scrape) -> bool:
    """Return whether a counter has fallen: the engine has started anew in between."""
    return any(value < before.counters.get(series, value) for series, value in after.counters.items())


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
