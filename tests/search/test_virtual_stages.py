"""Interleaved pipeline stages in plans of training: every unit once and in order, less waiting, sound plans."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moiety.cli.run_plan import check_runnable
from moiety.errors import InputError
from moiety.projection.project import evaluate
from moiety.search.judge import Refused, judge
from moiety.search.options import default_options
from moiety.search.search import search
from moiety.sim.units import interleaved_units
from moiety.strategy.stages import held_layers, stage_layers
from moiety.strategy.strategy import parse_strategy
from moiety.verify.verify import verify_plan
from tests.scenarios import CALIBRATION, faster, plan_for, prefill_load, scenario, small_model, training_load

if TYPE_CHECKING:
    from moiety.plan import Plan

CASE = scenario(small_model(num_layers=16), "h100x16", training_load(tokens=64 * 1024))


def planned(parts: int, strategy: str = "ep4_tp1_pp4", *, link: float = 1.0, timing: str = "simulated") -> Plan:
    case = faster(CASE, link=link)
    options = default_options(case).model_copy(update={"virtual_stages": parts, "two_batch_overlap": False})
    return evaluate(plan_for(case, strategy, options), CALIBRATION, timing=timing).plan


def step_s(plan: Plan) -> float:
    assert plan.projection is not None
    return plan.projection.step_s


@given(st.integers(2, 6), st.integers(1, 4), st.integers(2, 4))
def test_a_stage_takes_every_part_of_every_microbatch_forward_and_then_backward(
    stages: int, groups: int, parts: int
) -> None:
    for stage in range(stages):
        units = interleaved_units(stage, stages, groups * stages, parts)
        assert len(units) == len(set(units)) == 2 * groups * stages * parts
        place = {unit: index for index, unit in enumerate(units)}
        for unit, index in place.items():
            if unit.direction == "backward":
                assert place[replace(unit, direction="forward")] < index


@given(st.integers(1, 130), st.integers(1, 8), st.integers(1, 4))
def test_parts_of_stages_hold_every_layer_once(num_layers: int, pp: int, parts: int) -> None:
    held = held_layers(num_layers, pp, parts)
    assert sorted(layer for stage in held for layer in stage) == list(range(num_layers))
    if parts == 1:
        assert [list(stage) for stage in held] == [list(stage) for stage in stage_layers(num_layers, pp)]


def test_stages_that_take_turns_wait_a_part_as_long_where_sending_costs_nothing() -> None:
    whole, halves, quarters = (step_s(planned(parts, link=1e4)) for parts in (1, 2, 4))
    assert quarters < halves < whole
    assert (whole - quarters) / (whole - halves) == pytest.approx(
        3 / 2, rel=0.2
    )  # of 3 units' wait, 3/2 and 3/4 are left


def test_sending_more_often_takes_some_of_that_back() -> None:
    near, far = ([step_s(planned(parts, link=link)) for parts in (1, 4)] for link in (1e4, 1.0))
    assert near[0] / near[1] > far[0] / far[1]


@pytest.mark.parametrize("parts", [2, 4])
def test_the_closed_form_comes_close_to_the_simulation(parts: int) -> None:
    whole = step_s(planned(parts))
    for timing in ("folded", "estimated"):
        assert step_s(planned(parts, timing=timing)) == pytest.approx(whole, rel=0.1)


def test_a_plan_with_parts_passes_its_verification_and_keeps_more() -> None:
    plans = [planned(parts) for parts in (1, 2)]
    assert [each for each in verify_plan(plans[1], CALIBRATION) if each.severity == "error"] == []
    kept = [plan.pools[0].memory.bytes_by_kind["stored_activations"] for plan in plans if plan.pools[0].memory]
    assert kept[1] > kept[0]


@pytest.mark.parametrize(
    ("load", "strategy", "parts", "rule"),
    [
        (prefill_load(), "ep4_tp1_pp4", 2, "virtual-stages-train"),
        (training_load(), "ep16_tp1", 2, "parts-have-layers"),
        (training_load(), "ep4_tp1_pp4", 5, "parts-have-layers"),
    ],
)
def test_what_cannot_take_turns_is_refused_by_name(load: object, strategy: str, parts: int, rule: str) -> None:
    case = scenario(CASE.model, "h100x16", load)
    options = default_options(case).model_copy(update={"virtual_stages": parts})
    refused = judge(case, parse_strategy(strategy, 16), options)
    assert isinstance(refused, Refused)
    assert refused.rule == rule


def test_the_search_takes_turns_where_that_is_faster() -> None:
    options = default_options(CASE)
    tuned, fixed = (
        search(CASE, options, pinned=parse_strategy("ep4_tp1_pp4", 16), tune=tune) for tune in (True, False)
    )
    assert tuned.chosen.options.virtual_stages > 1 == fixed.chosen.options.virtual_stages
    assert tuned.chosen.projection.step_s < fixed.chosen.projection.step_s


def test_the_run_time_refuses_it_by_name() -> None:
    with pytest.raises(InputError, match="stages of several parts are planned but not executed"):
        check_runnable(planned(2), "p.json")
