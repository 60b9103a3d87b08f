"""How long prompts wait to be taken up."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moiety.projection.admission import AT_EVERY_STEP, Admission, thrown_out
from moiety.sim.arrivals import Arrival
from moiety.sim.serving import ServingEngine, simulate_serving

groups, arrivals, steps = st.integers(1, 256), st.floats(1e-6, 10), st.integers(1, 200)


@given(groups, arrivals)
def test_by_default_a_prompt_waits_for_half_the_running_step(groups: int, arrivals: float) -> None:
    assert AT_EVERY_STEP.wait_steps(groups, arrivals) == 0.5


@given(groups, arrivals, steps)
def test_an_engine_that_looks_seldom_makes_prompts_wait_for_half_of_that(
    groups: int, arrivals: float, steps: int
) -> None:
    assert Admission(poll_steps=steps).wait_steps(groups, arrivals) == steps / 2


@given(groups, arrivals, steps)
def test_groups_begin_together_as_soon_as_each_has_a_prompt(groups: int, arrivals: float, steps: int) -> None:
    waited = Admission(balance_steps=steps).wait_steps(groups, arrivals)
    assert 0.5 <= waited <= steps / 2
    assert waited >= Admission(balance_steps=steps).wait_steps(groups, 2 * arrivals)
    assert waited <= Admission(balance_steps=steps).wait_steps(groups + 1, arrivals) or groups == 1


def test_the_last_of_three_groups_has_a_prompt_after_eleven_sixths_of_the_time_between_two() -> None:
    assert Admission(balance_steps=1000).wait_steps(3, 0.1) == pytest.approx(11 / 6 / 0.1 / 2)
    assert Admission(balance_steps=60).wait_steps(3, 1e-6) == 30
    assert Admission(balance_steps=60).wait_steps(1, 1e-6) == 0.5


@given(groups, arrivals, steps, st.integers(1, 64))
def test_prompts_that_a_step_has_no_room_for_wait_for_another_period(
    groups: int, arrivals: float, steps: int, room: int
) -> None:
    held = Admission(balance_steps=steps)
    roomy, full = held.wait_steps(groups, arrivals), held.wait_steps(groups, arrivals, room)
    assert roomy <= full <= 2 * roomy
    assert full <= held.wait_steps(groups, arrivals, 1)
    assert AT_EVERY_STEP.wait_steps(groups, arrivals, room) == 0.5


def test_groups_with_a_prompt_a_period_and_room_for_one_wait_for_a_whole_period() -> None:
    held = Admission(balance_steps=60)
    assert held.wait_steps(2, 1 / 60, 1) == 60
    assert held.wait_steps(2, 1 / 60, 8) == pytest.approx(30 * 9 / 8)


@given(groups, arrivals, steps)
def test_a_batch_s_first_prompt_waits_all_the_time_and_later_ones_half(
    groups: int, arrivals: float, steps: int
) -> None:
    waited = Admission(batch_wait_steps=steps).wait_steps(groups, arrivals) - 0.5
    assert steps / 2 - 1e-9 <= waited <= steps + 1e-9
    assert Admission(batch_wait_steps=steps).wait_steps(groups, 1e-12) == pytest.approx(0.5 + steps)


@given(st.floats(0, 20), st.integers(1, 100_000), st.integers(1, 100_000))
def test_who_is_thrown_out_waits_no_longer_than_all_wait(wait: float, prompt: int, output: int) -> None:
    out = thrown_out(wait, prompt, output)
    assert 0 <= out <= wait
    assert out <= thrown_out(wait, prompt, output + 1)
    assert out <= thrown_out(wait + 0.1, prompt, output)


@pytest.mark.parametrize("crowding", [1.2, 1.5])
@pytest.mark.parametrize(("prompt", "output"), [(4000, 500), (2000, 2000), (1000, 2000), (1000, 4000), (500, 4000)])
def test_waits_before_and_after_the_first_token_are_those_of_steps_played_one_by_one(
    prompt: int, output: int, crowding: float
) -> None:
    draws = random.Random(1)  # noqa: S311 - lengths, no secret
    spread = [[draws.uniform(0.9, 1.1) for _ in range(2)] for _ in range(480)]
    requests = [Arrival(0.0, round(prompt * one), round(output * other)) for one, other in spread]
    held = 48 / crowding * (prompt + output / 2)
    engine = ServingEngine(step_s=lambda *_: 1.0, chunk_tokens=2**30, mixes_prefill=True, cache_tokens=held)
    played = simulate_serving(engine, requests, concurrency=48)
    after = thrown_out(crowding - 1, prompt, output)
    assert crowding - 1 - after == pytest.approx(played.ttft.mean / output, abs=0.08)
    assert after == pytest.approx(played.tpot.mean - 1, abs=0.08)
