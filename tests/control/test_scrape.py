"""Engines' metrics as events: missing series, NaN and counters that start anew are tolerated."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest

from moiety.control.scrape import Scrape, read_scrape, request_metrics
from moiety.errors import InputError


def scrape(text: str, time_s: float) -> Scrape:
    return read_scrape(text, time_s=time_s, source="http://127.0.0.1/metrics")


@pytest.mark.parametrize("engine", ["vllm", "sglang"])
def test_rates_and_times_are_those_that_an_engine_counted(engine: str) -> None:
    registry = CollectorRegistry()
    tokens = Counter(f"{engine}:generation_tokens", "Tokens.", ["model_name", "rank"], registry=registry)
    times = Histogram(f"{engine}:inter_token_latency_seconds", "Latency.", ["model_name"], registry=registry)
    ours = [tokens.labels("m", str(rank)) for rank in range(2)]
    for each in ours:
        each.inc(100)
    times.labels("m").observe(1.0)
    before = scrape(generate_latest(registry).decode(), 10.0)
    ours[0].inc(300)
    ours[1].inc(500)
    for seconds in (0.02, 0.04):
        times.labels("m").observe(seconds)
    found = request_metrics(before, scrape(generate_latest(registry).decode(), 14.0))
    assert found is not None
    assert found.time_s == 14.0
    assert found.served_tokens_per_s == pytest.approx(200)
    assert found.tpot_s == pytest.approx(0.03)


def queue(engine: str, waiting: str) -> str:
    name = "num_requests_waiting" if engine == "vllm" else "num_queue_reqs"
    return "".join(
        f'{engine}:{name}{{dp_rank="{dp}",tp_rank="{tp}"}} {waiting}\n' for dp in range(2) for tp in range(2)
    )


def counted(engine: str, generated: float, ended: int, tokens_of_ended: float) -> str:
    if engine == "sglang":
        return f"sglang:generation_tokens_total {tokens_of_ended}\nsglang:num_requests_total {ended}\n"
    own = "vllm:request_generation_tokens"
    return f"vllm:generation_tokens_total {generated}\n{own}_sum {tokens_of_ended}\n{own}_count {ended}\n"


@pytest.mark.parametrize("engine", ["vllm", "sglang"])
def test_what_waits_is_worth_the_tokens_of_those_that_ended_lately_else_before(engine: str) -> None:
    queues = 2  # ranks of one scheduler of SGLang show the same queue
    first = scrape(counted(engine, 900, 10, 800) + queue(engine, "0"), 0.0)
    second = scrape(counted(engine, 2100, 14, 1200) + queue(engine, "3"), 60.0)
    third = scrape(counted(engine, 2700, 14, 1200) + queue(engine, "5"), 120.0)
    found = [request_metrics(*pair) for pair in ((first, second), (second, third))]
    assert [each and each.backlog_tokens for each in found] == [3 * queues * 100, pytest.approx(5 * queues * 1200 / 14)]
    quiet = scrape(counted(engine, 2700, 14, 1200) + queue(engine, "0"), 180.0)
    none = request_metrics(third, quiet)
    assert none is not None
    assert none.backlog_tokens == 0.0


@pytest.mark.parametrize("waiting", ["", "vllm:num_requests_waiting NaN\n", "vllm:num_requests_waiting 4\n"])
def test_a_queue_that_is_not_shown_or_of_unknown_worth_is_not_known(waiting: str) -> None:
    one, other = (scrape(f"vllm:generation_tokens_total {at}\n{waiting}", at) for at in (1.0, 2.0))
    found = request_metrics(one, other)
    assert found is not None
    assert found.backlog_tokens is None


@given(old=st.floats(0, 1e9), new=st.floats(0, 1e9))
def test_a_counter_never_runs_backwards(old: float, new: float) -> None:
    one, other = (scrape(f"vllm:generation_tokens_total {value!r}\n", at) for at, value in ((0.0, old), (2.0, new)))
    found = request_metrics(one, other)
    assert found is not None
    assert found.served_tokens_per_s == (new - old if new >= old else new) / 2
    assert found.tpot_s is None


@pytest.mark.parametrize("text", ["", "vllm:generation_tokens_total NaN\n", "up 1\n", "vllm:num_requests_running 3\n"])
def test_what_is_missing_or_not_a_number_says_nothing(text: str) -> None:
    good = "vllm:generation_tokens_total 5\n"
    assert request_metrics(scrape(text, 0.0), scrape(good, 1.0)) is None
    assert request_metrics(scrape(good, 0.0), scrape(text, 1.0)) is None


def test_no_time_between_two_readings_is_no_rate() -> None:
    one = scrape("vllm:generation_tokens_total 5\n", 1.0)
    assert request_metrics(one, one) is None


@pytest.mark.parametrize(
    "text", ["<html>no</html>\n", '{"error": "not found"}\n', "vllm:generation_tokens_total many\n"]
)
def test_what_is_no_metrics_is_refused(text: str) -> None:
    with pytest.raises(InputError, match="Prometheus"):
        scrape(text, 0.0)
