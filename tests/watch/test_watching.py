"""Laws of a round: noise changes nothing, drift does, what is known survives a file, and nothing is told twice."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moiety.control.scrape import Scrape
from moiety.errors import InputError
from moiety.watch.dumps import Dumps, Mark, nothing_read
from moiety.watch.known import Round, Seen, Watch
from moiety.watch.snapshot import read_watch, watch_bytes
from moiety.watch.watching import next_round, started
from tests.watch.engines import POINTS, URLS, site

if TYPE_CHECKING:
    from moiety.watch.site import Site

RATE = 1000.0
"""Tokens a second that an instance can do."""


def scrape(time_s: float, tokens: float, tpot_s: float = 0.02) -> Scrape:
    times = {
        ("vllm:inter_token_latency_seconds_sum", ()): tokens * tpot_s,
        ("vllm:inter_token_latency_seconds_count", ()): tokens,
    }
    return Scrape(time_s, {("vllm:generation_tokens_total", ()): tokens, **times})


def seen(time_s: float, readings: dict[str, Scrape | str], counts: np.ndarray | None = None) -> Seen:
    dumps = nothing_read() if counts is None else Dumps(frozenset(), frozenset(), {}, counts, None)
    return Seen(time_s, readings, dumps)


def window(rng: np.random.Generator, shares: np.ndarray) -> np.ndarray:
    return np.stack([rng.multinomial(20_000, row) for row in shares]).astype(float)


def shares_of(rng: np.random.Generator) -> np.ndarray:
    shares = np.exp(rng.normal(0.0, 1.0, (2, 8)))
    return shares / shares.sum(axis=1, keepdims=True)


def kinds(rounds: list[Round]) -> list[str]:
    return [each.kind for done in rounds for each in done.advice]


def demanded(of: Site, rates: list[float], *, silent: dict[int, set[int]] | None = None) -> tuple[Watch, list[Round]]:
    """Return what becomes of a story: tokens a second by round, and the rounds in which an instance is silent."""
    watch, rounds, total = started(of), [], np.zeros(len(of.instances))
    for at, rate in enumerate(rates):
        now = 1e9 + of.interval_s * at
        answers = [at not in (silent or {}).get(number, set()) for number in range(len(of.instances))]
        total += np.array(answers) * rate * of.interval_s / max(sum(answers), 1)
        readings = {
            url: scrape(now, float(total[number])) if answers[number] else "did not answer in time"
            for number, url in enumerate(URLS[: len(of.instances)])
        }
        watch, done = next_round(watch, of, seen(now, readings))
        rounds.append(done)
    return watch, rounds


def test_stationary_loads_change_no_file_and_drift_does_with_figures() -> None:
    of, rng = site(instances=0), np.random.default_rng(1)
    before, after = shares_of(rng), shares_of(rng)
    watch, moves, told = started(of), [], []
    for at in range(75):
        counts = window(rng, before if at < 60 else after)
        watch, done = next_round(watch, of, seen(1e9 + 60.0 * at, {}, counts))
        moves.append(done.moves)
        told += done.advice
    assert sum(moves[:40]) > 0, "the plan's map is for even loads"
    assert sum(moves[40:60]) == 0, "what could be had has been had by two trials of sixteen windows"
    assert sum(moves[60:]) > 0
    last = told[-1]
    assert last.kind == "placement"
    assert last.figures["expected_balance"] > last.figures["expected_balance_before"]
    assert last.figures["expected_balance_in_force"] == pytest.approx(done.expected_balance_in_force, abs=0.1)
    assert "--init-expert-location" in last.limits
    held = np.sort(watch.placement, axis=1)
    assert all(set(row) == set(range(8)) for row in held.tolist())


STORY = st.lists(
    st.tuples(st.integers(0, 9999), st.booleans(), st.sampled_from([0.3, 1.0, 1.0, 1.0, 7.0])), min_size=2, max_size=14
)


@settings(max_examples=15, deadline=None)
@given(STORY, st.integers(0, 13))
def test_a_controller_that_is_killed_goes_on_as_if_it_had_not_been(
    story: list[tuple[int, bool, float]], killed: int
) -> None:
    of = site(instances=3, tokens_per_s_per_node=RATE, clock_points=POINTS, tpot_limit_s=0.03)
    one = other = started(of)
    now, total = 1e9, 0.0
    for at, (number, dumped, pace) in enumerate(story):
        rng = np.random.default_rng(number)
        now += 60.0 * pace
        total = total + 60.0 * number if number % 11 else 0.0
        readings: dict[str, Scrape | str] = {
            url: scrape(now, total, 0.001 * (number % 50)) if (number >> at) % 4 else "Connection refused"
            for at, url in enumerate(URLS)
        }
        what = seen(now, readings, window(rng, shares_of(rng)) if dumped else None)
        if at == killed:
            other = read_watch(watch_bytes(one, of), of, "state.npz")
        one, done = next_round(one, of, what)
        other, again = next_round(other, of, what)
        assert again == done
        assert watch_bytes(other, of) == watch_bytes(one, of)
    assert [each.number for each in one.advice] == list(range(1, one.given + 1))


def test_an_instance_that_is_silent_is_told_of_once_and_again_when_it_is_back() -> None:
    of = site(instances=3, tokens_per_s_per_node=RATE)
    _, rounds = demanded(of, [2400.0] * 20, silent={1: set(range(4, 10))})
    told = [each for done in rounds for each in done.advice]
    assert [each.kind for each in told] == ["source", "restart", "return", "over"]
    restart = told[1]
    assert URLS[1] in restart.do
    assert restart.time_s == 1e9 + 60.0 * 6  # the third round in which it is silent


def test_most_instances_silent_is_taken_for_a_cut_and_nothing_is_decided() -> None:
    of = site(instances=3, tokens_per_s_per_node=RATE)
    _, rounds = demanded(of, [2400.0] * 20, silent={1: set(range(4, 10)), 2: set(range(4, 10))})
    assert "restart" not in kinds(rounds)
    assert kinds(rounds).count("stand-back") == 1


def test_instances_follow_the_demand_and_more_than_there_are_is_a_new_plan() -> None:
    of = site(instances=3, tokens_per_s_per_node=RATE)  # a node is an instance of one node
    watch, rounds = demanded(of, [300.0] * 30)
    assert kinds(rounds).count("drain") == 1
    drained = next(each for done in rounds for each in done.advice if each.kind == "drain")
    assert drained.figures["working_instances"] == 1
    assert URLS[1] in drained.do
    assert URLS[2] in drained.do
    assert watch.fleet is not None
    _, rounds = demanded(of, [300.0] * 20 + [1700.0] * 3 + [9000.0] * 3 + [1700.0] * 3)
    assert kinds(rounds).count("start") == 2  # one more, then all
    assert kinds(rounds).count("re-plan") == 1
    assert kinds(rounds)[-1] == "over"


@pytest.mark.parametrize("queued", [False, True])
def test_requests_that_wait_call_for_instances_though_no_more_is_served(queued: bool) -> None:
    of = site(instances=2, tokens_per_s_per_node=RATE)
    watch, rounds = started(of), []
    for at in range(24):
        now, ended = 60.0 * at, 300.0 * at  # each of 100 tokens
        waiting = 50.0 * (at - 19) if queued and at >= 20 else 0.0
        own = {("vllm:request_generation_tokens_sum", ()): 100 * ended}
        own |= {("vllm:request_generation_tokens_count", ()): ended}
        reading = Scrape(1e9 + now, {("vllm:generation_tokens_total", ()): 500.0 * now, **own}, waiting)
        still = Scrape(1e9 + now, {("vllm:generation_tokens_total", ()): 0.0}, 0.0)
        watch, done = next_round(watch, of, seen(1e9 + now, {URLS[0]: reading, URLS[1]: still}))
        assert done.served_tokens_per_s in {None, 500.0}
        rounds.append(done)
    assert kinds(rounds).count("drain") == 1
    assert kinds(rounds).count("start") == queued
    if queued:
        (start,) = (each for done in rounds for each in done.advice if each.kind == "start")
        assert start.figures["backlog_tokens"] > 0
        assert start.figures["demand_tokens_per_s"] > 0.85 * RATE


def test_what_one_silent_instance_served_is_not_taken_for_a_fall_of_the_demand() -> None:
    of = site(instances=2, tokens_per_s_per_node=RATE)
    watch, _ = demanded(of, [1200.0] * 8, silent={1: {5, 6}})
    assert watch.fleet is not None
    assert watch.fleet.demands == pytest.approx([1200.0] * len(watch.fleet.demands), rel=0.35)


def test_time_that_nobody_watched_fences_nobody() -> None:
    of = site(instances=2)
    watch, _ = demanded(of, [100.0] * 4)
    late: dict[str, Scrape | str] = {URLS[0]: scrape(2e9, 1e6), URLS[1]: "Connection refused"}
    _, done = next_round(watch, of, seen(2e9, late))
    assert [each.kind for each in done.advice] == ["source"]
    backwards, done = next_round(watch, of, seen(5e8, late))
    assert backwards.clock_s == watch.clock_s
    assert done.demand_tokens_per_s is None


def test_clocks_are_advice_with_what_they_rest_on() -> None:
    of = site(instances=1, clock_points=POINTS)
    _, rounds = demanded(of, [100.0] * 3)
    (clock,) = [each for done in rounds for each in done.advice]
    assert clock.kind == "clock"
    assert "1500 MHz" in clock.do
    assert clock.figures == {"modelled_power_share_saved": 0.2, "modelled_step_share_longer": 0.02}
    assert "root" in clock.limits


def test_a_dump_that_cannot_be_read_twice_is_given_up_and_told_of_until_it_is_gone() -> None:
    of, mark = site(instances=0), Mark("a.pt", 7, 1)
    broken = Dumps(frozenset({mark}), frozenset(), {mark: "a.pt: is damaged"}, None, None)
    watch, first = next_round(started(of), of, Seen(1.0, {}, broken))
    assert (first.advice, watch.dumps_done) == ((), frozenset())
    watch, second = next_round(watch, of, Seen(61.0, {}, broken))
    assert watch.dumps_done == {mark}
    assert [each.reason for each in second.advice] == ["a.pt: is damaged"]
    still = Dumps(frozenset({mark}), frozenset(), {}, None, None)
    watch, third = next_round(watch, of, Seen(121.0, {}, still))
    assert third.advice == ()
    _, gone = next_round(watch, of, Seen(181.0, {}, nothing_read()))
    assert [each.kind for each in gone.advice] == ["over"]


def test_the_engines_own_map_and_restarts_are_seen() -> None:
    of = site(instances=1)
    other = of.slot_map[:, ::-1].copy()
    counts = np.ones((2, 8))
    dumps = Dumps(frozenset(), frozenset(), {}, counts, other)
    watch, _ = next_round(started(of), of, Seen(1.0, {URLS[0]: scrape(1.0, 500.0)}, dumps))
    assert watch.in_force.tolist() == other.tolist()
    watch, done = next_round(watch, of, seen(61.0, {URLS[0]: scrape(61.0, 60.0)}))
    assert "anew" in done.advice[0].reason
    assert done.demand_tokens_per_s == 1.0
    wider = Dumps(frozenset(), frozenset(), {}, counts, np.zeros((2, 16), dtype=np.int64))
    _, done = next_round(watch, of, Seen(121.0, {URLS[0]: Scrape(121.0, {})}, wider))
    assert done.expected_balance_in_force is None
    assert sorted(each.kind for each in done.advice) == ["re-plan", "source"]


def test_a_snapshot_of_another_plan_and_a_damaged_one_are_refused() -> None:
    of = site(instances=2)
    watch, _ = demanded(of, [100.0] * 4)
    data = watch_bytes(watch, of)
    with pytest.raises(InputError, match="plan = other"):
        read_watch(watch_bytes(watch, replace(of, plan="other")), of, "state.npz")
    for wrong in (data[: len(data) // 2], b"", b"PK\x03\x04", watch_bytes(watch, of)[:-1]):
        with pytest.raises(InputError, match=r"state\.npz.*remove the file"):
            read_watch(wrong, of, "state.npz")
    fewer = replace(of, instances=of.instances[:1])
    kept = read_watch(data, fewer, "state.npz")
    assert kept.fleet is None
    assert list(kept.scrapes) == [URLS[0]]
