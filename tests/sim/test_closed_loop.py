"""Runs of a closed loop through workers for prompts and others that decode, in cases with a known outcome."""

from __future__ import annotations

from dataclasses import replace
from itertools import accumulate
from statistics import fmean

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moiety.sim.closed_loop import PlayedRun, PromptSteps, TwoStageRun, played

RUN = TwoStageRun(
    concurrency=64,
    waves=10,
    prompts=PromptSteps(groups=4, alone_s=0.0, beside_s=0.0, full_s=0.0),
    prompt_workers=1,
    handed_over_s=0.0,
    workers=1,
    slots=64,
    token_s=((1.0, 0.01), (64.0, 0.01)),
    output_tokens=1000,
    shortest_share=1.0,
)
ANSWER_S = 10.0


def _wait_s(run: PlayedRun) -> float:
    return fmean(run.waits_s)


def test_a_request_alone_waits_for_nothing() -> None:
    alone = played(replace(RUN, concurrency=1, prompts=PromptSteps(4, 0.2, 0.9, 1.0, 2.0), handed_over_s=0.05))
    assert alone.first_token_s(0.0) == pytest.approx(0.25)
    assert not any(alone.waits_s)


@pytest.mark.parametrize("concurrency", [96, 128, 4096])
def test_where_slots_are_full_littles_law_gives_the_wait(concurrency: int) -> None:
    run = replace(RUN, concurrency=concurrency, slots=concurrency / 2 if concurrency == 128 else concurrency * 2 / 3)
    rounds = concurrency * run.waves / run.slots
    # as many requests as there are slots find one at once: those that a run begins with
    expected = (concurrency / run.slots - 1) * ANSWER_S
    assert (1 - 1.5 / rounds) * expected <= _wait_s(played(run)) <= expected


@pytest.mark.parametrize("waves", [1, 2, 10])
def test_prompts_that_all_come_at_once_wait_for_half_of_the_others_and_only_then(waves: int) -> None:
    run = replace(RUN, waves=waves, prompts=PromptSteps(4, 0.1, 0.1, 0.1), output_tokens=10**6)
    others_s = 0.1 * 64 / 4 / 2 / waves
    assert played(run).first_token_s(0.0) == pytest.approx(0.1 + others_s, rel=0.1)


def test_prompts_are_the_narrow_place_where_their_workers_cannot_keep_up() -> None:
    run = replace(RUN, prompts=PromptSteps(4, 2.0, 2.0, 2.0))
    # 64 in flight, 2 prompts a second: 32 s from one prompt of a slot's request to the next, 10 s of which it decodes
    assert played(run).first_token_s(0.0) == pytest.approx(22.0, rel=0.15)


def test_prompts_that_come_together_are_computed_together_and_others_in_between() -> None:
    run = replace(RUN, concurrency=4, prompts=PromptSteps(4, 0.1, 0.4, 0.4))
    assert played(run).first_token_s(0.0) == pytest.approx(0.4)
    assert 0.1 < played(replace(run, shortest_share=0.8)).first_token_s(0.0) < 0.3
    assert played(replace(run, concurrency=1)).first_token_s(0.0) == pytest.approx(0.1)


def test_groups_begin_together_so_that_a_prompt_waits_for_the_step_that_runs_though_its_group_has_none() -> None:
    """Two requests in flight whose answers are short beside a step, and groups enough for both."""
    run = replace(RUN, concurrency=2, prompts=PromptSteps(8, 1.0, 1.0, 1.0), output_tokens=40, shortest_share=0.2)
    one, two = played(run), played(replace(run, prompt_workers=2))
    # each comes in the midst of the other's step: 0.4 s of answer on average, and the step is 1 s
    assert 1.4 < one.ready_s < 1.8
    assert one.ready_s - two.ready_s > 0.2


def test_a_step_takes_as_long_as_its_fullest_group_and_the_experts_of_all() -> None:
    """Two prompts at the most in each of four groups: 3 s a step, 4 s of attention a prompt, 1 s of experts."""
    steps = PromptSteps(groups=4, alone_s=3 + 4 + 1, beside_s=3 + 4 + 4, full_s=3 + 8 + 8, most=2.0)
    expected = {0.5: 8, 1: 8, 2: 9, 4: 11, 5: 3 + 8 + 5, 8: 19, 16: 2 * 19}
    assert {prompts: steps.step_s(prompts) for prompts in expected} == pytest.approx(expected)
    assert steps.capacity == 8
    cut = replace(steps, most=1.5)
    times = [cut.step_s(prompts) for prompts in range(1, 25)]
    assert cut.capacity == 6
    assert times == sorted(times)


def test_answers_that_end_in_another_order_leave_a_router_behind_and_many_routers_more_so() -> None:
    run = replace(RUN, concurrency=60, workers=15, slots=4, shortest_share=0.8)
    one, many = (_wait_s(played(replace(run, frontends=count))) / ANSWER_S for count in (1, 10))
    assert 0.005 < one < 0.06
    assert 0.08 < many < 0.25
    assert _wait_s(played(replace(run, workers=1, slots=60, frontends=10))) == 0


def test_what_requests_take_longer_is_hidden_behind_their_wait_for_a_slot() -> None:
    full, free = replace(RUN, concurrency=128, shortest_share=0.8), replace(RUN, shortest_share=0.8)
    for run in (full, free, replace(full, concurrency=80)):
        longer = played(replace(run, handed_over_s=2.0))
        assert played(run).first_token_s(2.0) == pytest.approx(longer.first_token_s(0.0), rel=0.1)
    assert played(full).first_token_s(2.0) < played(full).first_token_s(0.0) + 0.3
    assert played(free).first_token_s(2.0) == pytest.approx(2.0)


@pytest.mark.parametrize("slots", [70, 128])
def test_bundles_of_requests_see_what_each_of_them_would(slots: int) -> None:
    """Ten times the requests, slots and workers for prompts; ten times as many sequences decode as slowly."""
    small = replace(
        RUN,
        concurrency=128,
        prompts=PromptSteps(4, 0.2, 0.3, 0.5, 2.0),
        slots=slots,
        token_s=((1.0, 0.005), (128.0, 0.02)),
        shortest_share=0.8,
    )
    large = replace(
        small,
        concurrency=1280,
        prompt_workers=10,
        slots=10 * slots,
        token_s=tuple((10 * sequences, seconds) for sequences, seconds in small.token_s),
    )
    assert played(large).first_token_s(0.1) == pytest.approx(played(small).first_token_s(0.1), rel=0.1)


def test_runs_come_out_the_same_every_time() -> None:
    run = replace(RUN, concurrency=40, slots=30, shortest_share=0.8, frontends=3)
    again = played.__wrapped__(run)
    assert played(run).ready_s == again.ready_s
    assert played(run).waits_s == again.waits_s


@given(st.lists(st.floats(0, 100), min_size=1, max_size=30), st.floats(0, 120))
def test_of_a_longer_overhead_nothing_is_lost_while_requests_wait_anyway(waits: list[float], overhead: float) -> None:
    waits.sort()
    run = PlayedRun(3.0, tuple(waits), (0.0, *accumulate(waits)))
    assert run.first_token_s(overhead) == pytest.approx(3.0 + fmean(max(wait, overhead) for wait in waits))


def test_paces_between_known_counts_are_linear() -> None:
    def answer_s(sequences: int) -> float:
        known = ((1.0, 0.01), (5.0, 0.03), (9.0, 0.04))
        # nothing waits, all begin together: so many decode at one pace to the end
        run = replace(RUN, concurrency=sequences, waves=2, token_s=known)
        return fmean(played(replace(run, slots=sequences / 2)).waits_s) if sequences > 1 else 0.0

    # of twice as many as there are slots for, a mean request of two waves waits for an answer at the slots' pace
    assert answer_s(6) / answer_s(4) == pytest.approx(0.02 / 0.015, rel=0.01)
    assert answer_s(14) / answer_s(10) == pytest.approx(0.035 / 0.03, rel=0.01)
