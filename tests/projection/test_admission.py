"""How long prompts wait to be taken up."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moiety.projection.admission import AT_EVERY_STEP, Admission

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
