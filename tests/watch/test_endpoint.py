"""Engines' metrics over real HTTP: what is read, and the one line that is said of what is not."""

from __future__ import annotations

import socket
import threading
from typing import TYPE_CHECKING

import pytest

from moiety.control.scrape import Scrape, balancedness, request_metrics
from moiety.errors import InputError
from moiety.watch.endpoint import scrape, scrape_all
from moiety.watch.site import instances_of
from tests.watch.engines import Engine, listening

if TYPE_CHECKING:
    from collections.abc import Iterator

GOOD = b"vllm:generation_tokens_total 5\n"


@pytest.fixture(scope="module")
def engine() -> Iterator[Engine]:
    with listening(Engine()) as started:
        yield started


@pytest.mark.parametrize("kind", ["vllm", "sglang"])
def test_counters_are_read_by_name_and_what_is_no_number_is_left_out(kind: str) -> None:
    with listening(Engine(kind)) as engine:
        if kind == "sglang":
            engine.balance.labels("decode").observe(0.5)
        url = f"{engine.address}/metrics"
        before = scrape(url, 5.0)
        engine.serve(600, tpot_s=0.04)
        if kind == "sglang":
            engine.balance.labels("decode").observe(0.8)
        after = scrape(url, 5.0)
    assert isinstance(before, Scrape)
    assert isinstance(after, Scrape)
    found = request_metrics(before, Scrape(before.time_s + 2.0, after.counters))
    assert found is not None
    assert (found.served_tokens_per_s, found.tpot_s) == (300.0, pytest.approx(0.04))
    assert balancedness(before, after) == (0.8 if kind == "sglang" else None)
    prompts = request_metrics(before, after, (f"{kind}:prompt_tokens_total",), at_s=7.0)
    assert prompts is not None
    assert prompts.time_s == 7.0


@pytest.mark.parametrize(
    ("code", "headers", "body", "said"),
    [
        (500, {}, b"", "answers 500"),
        (
            302,
            {"Location": "http://127.0.0.1:1/"},
            b"",
            "answers 302, to go to 'http://127.0.0.1:1/', which is not followed",
        ),
        (204, {}, b"", "answers 204"),
        (200, {"Content-Length": "4000"}, GOOD, "was cut off: 31 of 4,000 bytes came"),
        (200, {}, GOOD[:-1], "was cut off: the last line has no end"),
        (200, {}, b"\xff\xfe\n", "is not UTF-8 text"),
        (200, {}, b"<html>welcome</html>\n", "is not Prometheus' text format"),
        (200, {"Transfer-Encoding": "chunked"}, b"zz\r\n", "was cut off"),
    ],
)
def test_bad_answers_are_told_in_one_line(
    engine: Engine, code: int, headers: dict[str, str], body: bytes, said: str
) -> None:
    engine.answer = lambda: (code, headers, body)
    found = scrape(f"{engine.address}/metrics", 5.0)
    assert isinstance(found, str)
    assert found.startswith(said) or said == "was cut off"
    assert "\n" not in found


def test_an_empty_answer_shows_nothing_and_is_no_error(engine: Engine) -> None:
    engine.answer = lambda: (200, {}, b"")
    found = scrape(f"{engine.address}/metrics", 5.0)
    assert isinstance(found, Scrape)
    assert not found.counters


def test_a_slow_answer_is_given_up_and_keeps_nobody_waiting(engine: Engine) -> None:
    engine.answer = None
    with socket.create_server(("127.0.0.1", 0)) as server:
        ended = threading.Event()

        def drip() -> None:
            link, _ = server.accept()
            with link:
                link.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
                while not ended.wait(0.05):  # never silent for long, never finished
                    try:
                        link.sendall(b"# a line\n")
                    except OSError:
                        return

        thread = threading.Thread(target=drip)
        thread.start()
        dripping = f"http://127.0.0.1:{server.getsockname()[1]}/metrics"
        found = scrape_all([dripping, f"{engine.address}/metrics"], 0.5)
        ended.set()
        thread.join()
    assert found[dripping] == "did not answer in time"
    assert isinstance(found[f"{engine.address}/metrics"], Scrape)


def test_nobody_there_is_told() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        free = server.getsockname()[1]
        silent = f"http://127.0.0.1:{free}/metrics"
        assert scrape(silent, 0.2) == "did not answer in time"  # accepted by the system, answered by nobody
    assert scrape(silent, 5.0) == "Connection refused"
    assert "\n" not in scrape("http://no.such.host.invalid/metrics", 5.0)
    assert scrape_all([], 1.0) == {}


def test_addresses_of_instances() -> None:
    assert instances_of(["http://a:8000,https://b:1/", "http://[::1]:9/other"]) == (
        ("http://a:8000/metrics", "https://b:1/metrics"),
        ("http://[::1]:9/other",),
    )
    for wrong in (
        "a:8000",
        "file:///etc/passwd",
        "http://",
        "http://a:99999",
        "http://u:p@a:1",
        "",
        "http://a b",
        "http://a,http://a",
    ):
        with pytest.raises(InputError, match="--endpoint"):
            instances_of([wrong])
