"""Ranks of a server that are killed, stopped, slowed or told to end, and the server itself: no token lost or wrong.

What only a driver of the crew can do to a rank (die in a certain op, hang, come back where nobody can kill it, move
experts) is in `tests/runtime/elastic/test_survival.py`.
"""

from __future__ import annotations

import signal
import time
from contextlib import suppress
from typing import TYPE_CHECKING

import pytest

pytest.importorskip("fastapi", reason="serving is an extra")

from moiety.control.policy import Policy
from tests.chaos.cluster import Fleet
from tests.chaos.faults import slowed
from tests.chaos.streams import Stream, longest_gap_s
from tests.runtime.launched import is_gone
from tests.serve.servers import Server, awaited, ended, send

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.chaos.cluster import Answer
    from tests.chaos.recoveries import Recover

KILLED_BAR_S = 2.0
FENCED_BAR_S = 5.0
SLOW_BAR_S = 10.0
"""Until a slow rank is fenced: it takes several windows of steps to say that it is no chance."""
LONG_PROMPT = [1 + place % 100 for place in range(500)]
ENDED_BAR_S = 5.0
"""From the death of the server to that of its last rank."""


@pytest.fixture(scope="module")
def fleet(plan: Path, checkpoint: Path) -> Iterator[Fleet]:
    running = Fleet(plan, checkpoint)
    yield running
    running.close()


@pytest.fixture
def server(fleet: Fleet) -> Server:
    """Return a server all of whose ranks are ready."""
    return fleet.server()


def pids(server: Server) -> list[int]:
    return [each["pid"] for each in server.ranks()]


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_rank_is_killed(server: Server, answers: list[Answer], recover: Recover, number: signal.Signals) -> None:
    epoch, (victim, *others) = server.epoch(), pids(server)
    gap_s = longest_gap_s(server, answers, lambda: send(victim, number))
    assert server.epoch() > epoch
    assert set(others) <= set(pids(server)), "the others go on in their processes"
    recover(f"{number.name} to 1 of 3 ranks", gap_s, bar_s=KILLED_BAR_S, of="longest gap of a stream")


def test_two_ranks_are_killed_at_once(server: Server, answers: list[Answer], recover: Recover) -> None:
    *victims, survivor = pids(server)
    gap_s = longest_gap_s(server, answers, lambda: [send(each, signal.SIGKILL) for each in victims])
    assert survivor in pids(server)
    recover("SIGKILL to 2 of 3 ranks", gap_s, bar_s=2 * KILLED_BAR_S, of="longest gap of a stream")


def test_a_rank_is_stopped_and_comes_back_too_late(server: Server, answers: list[Answer], recover: Recover) -> None:
    epoch, victim = server.epoch(), pids(server)[1]
    fenced_s = 0.0

    def stop() -> None:
        nonlocal fenced_s
        began_s = time.monotonic()
        send(victim, signal.SIGSTOP)
        awaited(lambda: server.epoch() > epoch and victim not in pids(server))
        fenced_s = time.monotonic() - began_s
        with suppress(ProcessLookupError):
            send(victim, signal.SIGCONT)  # if it is there at all

    gap_s = longest_gap_s(server, answers, stop)
    awaited(lambda: is_gone(victim))
    recover("SIGSTOP to 1 of 3 ranks", fenced_s, bar_s=FENCED_BAR_S, of="until it is fenced")
    recover("SIGSTOP to 1 of 3 ranks", gap_s, bar_s=FENCED_BAR_S + KILLED_BAR_S, of="longest gap of a stream")


def test_a_rank_is_stopped_for_a_moment(server: Server, answers: list[Answer], recover: Recover) -> None:
    epoch, before = server.epoch(), pids(server)

    def stop() -> None:
        send(before[0], signal.SIGSTOP)
        time.sleep(0.5)
        send(before[0], signal.SIGCONT)

    gap_s = longest_gap_s(server, answers, stop)
    assert (server.epoch(), pids(server)) == (epoch, before), "nobody is given up for that"
    recover("SIGSTOP for 0.5 s", gap_s, bar_s=0.5 + KILLED_BAR_S, of="longest gap of a stream")


def test_a_slow_rank_is_waited_for(server: Server, answers: list[Answer], recover: Recover) -> None:
    epoch, before = server.epoch(), pids(server)
    with slowed(before[2], 0.03, 0.015):
        gap_s = longest_gap_s(server, answers, lambda: None)
    assert (server.epoch(), pids(server)) == (epoch, before), "nobody is given up for that"
    recover("a rank that runs two thirds of the time", gap_s, bar_s=KILLED_BAR_S, of="longest gap of a stream")


def test_a_far_slower_rank_is_noticed_and_replaced(server: Server, answers: list[Answer], recover: Recover) -> None:
    epoch, (*others, victim) = server.epoch(), pids(server)
    noticed_s = 0.0

    def slow() -> None:
        nonlocal noticed_s
        began_s = time.monotonic()
        with slowed(victim, 0.01, 0.11):
            awaited(lambda: victim not in pids(server))
        noticed_s = time.monotonic() - began_s

    gap_s = longest_gap_s(server, answers, slow, num_streams=6)
    assert server.epoch() > epoch
    assert set(others) <= set(pids(server)), "the others go on in their processes"
    fault = "a rank that runs a twelfth of the time"
    recover(fault, noticed_s, bar_s=SLOW_BAR_S, of="until it is fenced")
    recover(fault, gap_s, bar_s=2 * KILLED_BAR_S, of="longest gap of a stream")


def test_uneven_requests_make_no_rank_slow(server: Server, answers: list[Answer]) -> None:
    epoch, before = server.epoch(), pids(server)
    (prompt, tokens), most = answers[0], 0.0
    streams = [Stream(server, prompt, len(tokens)) for _ in range(2)]  # one on each of two ranks
    while any(each.is_alive() for each in streams):
        server.complete(LONG_PROMPT, 1)  # and on the third one long prompt after the other
        most = max(most, *server.control()["slowness"])
    for each in streams:
        each.check(tokens)
    assert most <= Policy().far_slower
    assert all(each["own_step_s"] > 0 for each in server.ranks())
    assert server.metric("moiety_rank_step_seconds", rank="0") > 0
    assert (server.epoch(), pids(server)) == (epoch, before)


def test_the_server_is_killed_while_ranks_regroup(fleet: Fleet, answers: list[Answer], recover: Recover) -> None:
    server = fleet.server()
    epoch, ranks = server.epoch(), pids(server)
    streams = [Stream(server, prompt, len(tokens)) for prompt, tokens in answers]
    awaited(lambda: all(each.tokens for each in streams))
    send(ranks[0], signal.SIGKILL)
    awaited(lambda: server.epoch() > epoch)  # experts are on their way to those who are left
    ranks += pids(server)
    server.process.kill()
    began_s = time.monotonic()
    awaited(lambda: all(is_gone(each) for each in ranks))
    ended_s = time.monotonic() - began_s
    server.process.wait(30.0)
    for stream, (_, tokens) in zip(streams, answers, strict=True):
        stream.join(10.0)
        assert stream.tokens == tokens[: len(stream.tokens)], "what clients have is the beginning of what is right"
        assert not stream.is_complete
    again = fleet.server()
    prompt, tokens = answers[0]
    assert again.complete(prompt, len(tokens)) == tokens
    recover("SIGKILL to the server while ranks regroup", ended_s, bar_s=ENDED_BAR_S, of="until its ranks are gone")
    recover(
        "SIGKILL to the server while ranks regroup", time.monotonic() - began_s, bar_s=None, of="until another serves"
    )


def test_the_server_is_told_to_end(server: Server, answers: list[Answer], recover: Recover) -> None:
    ranks = pids(server)
    streams = [Stream(server, prompt, len(tokens)) for prompt, tokens in answers]
    awaited(lambda: all(each.tokens for each in streams))
    began_s = time.monotonic()
    send(server.process.pid, signal.SIGTERM)
    for stream, (_, tokens) in zip(streams, answers, strict=True):
        stream.check(tokens)
    answered_s = time.monotonic()
    code, errors = ended(server)
    assert (code, errors) == (0, "")
    awaited(lambda: all(is_gone(each) for each in ranks))
    recover("SIGTERM to the server", answered_s - began_s, bar_s=None, of="until the last stream has ended")
    recover("SIGTERM to the server", time.monotonic() - answered_s, bar_s=None, of="from there until all are gone")
