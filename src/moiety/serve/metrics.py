"""Prometheus metrics of the server, under the names that are usual for them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from moiety.serve.journal import Entry

_LATENCY_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)


class Metrics:
    """What is counted and timed; each server has its own."""

    def __init__(self) -> None:
        self._registry = registry = CollectorRegistry()
        self._ended = Counter(
            "moiety_requests", "Sequences that are over, by what ended them.", ["finish_reason"], registry=registry
        )
        self._refused = Counter(
            "moiety_http_refused_requests", "Requests that were refused, by status.", ["status"], registry=registry
        )
        self._prompt = Counter("moiety_prompt_tokens", "Tokens of admitted prompts.", registry=registry)
        self._generated = Counter("moiety_generation_tokens", "Tokens generated.", registry=registry)
        self._first = Histogram(
            "moiety_time_to_first_token_seconds",
            "From the arrival of a sequence to its first token.",
            buckets=_LATENCY_S,
            registry=registry,
        )
        self._between = Histogram(
            "moiety_inter_token_latency_seconds",
            "From one token of a sequence to the next.",
            buckets=_LATENCY_S,
            registry=registry,
        )
        self._step = Histogram(
            "moiety_step_duration_seconds", "One step of all ranks.", buckets=_LATENCY_S, registry=registry
        )
        self._recovery = Histogram(
            "moiety_recovery_duration_seconds",
            "From the end of a generation of ranks to the next step.",
            buckets=_LATENCY_S,
            registry=registry,
        )
        self._running = Gauge("moiety_num_requests_running", "Sequences in flight.", registry=registry)
        self._waiting = Gauge("moiety_num_requests_waiting", "Sequences that wait for a place.", registry=registry)
        self._usage = Gauge("moiety_kv_cache_usage_ratio", "Share of the KV cache's rows taken.", registry=registry)

    def watch(self, running: Callable[[], float], waiting: Callable[[], float], usage: Callable[[], float]) -> None:
        """Read these whenever the metrics are asked for."""
        self._running.set_function(running)
        self._waiting.set_function(waiting)
        self._usage.set_function(usage)

    def watch_limits(self, are_set: Callable[[], float]) -> None:
        """Read whenever the metrics are asked for whether the clock or power that was decided is set on GPUs."""
        text = "1 while the clock or power that was decided is set on this machine's GPUs."
        Gauge("moiety_limits_set", text, registry=self._registry).set_function(are_set)

    def submitted(self, entries: Iterable[Entry]) -> None:
        """Count admitted prompts."""
        self._prompt.inc(sum(len(each.prompt) for each in entries))

    def stepped(self, seconds: float) -> None:
        """Time a step."""
        self._step.observe(seconds)

    def accepted(self, entries: Iterable[Entry]) -> None:
        """Count and time the tokens that these sequences have just got."""
        for each in entries:
            self._generated.inc()
            (self._first if len(each.accepted) == 1 else self._between).observe(each.gap_s)
            if each.finish_reason is not None:
                self.ended(each.finish_reason)

    def ended(self, reason: Literal["stop", "length", "cancelled", "failed"]) -> None:
        """Count a sequence that is over."""
        self._ended.labels(reason).inc()

    def refused(self, status: int) -> None:
        """Count a request that was refused."""
        self._refused.labels(str(status)).inc()

    def recovered(self, seconds: float) -> None:
        """Time a regrouping of the ranks."""
        self._recovery.observe(seconds)

    def text(self) -> bytes:
        """Return the metrics as Prometheus reads them."""
        return generate_latest(self._registry)
