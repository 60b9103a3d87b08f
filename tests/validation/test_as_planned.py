"""What a plan would have said of a run: a plan's own figure, and the law's of the newest release at its defaults."""

from __future__ import annotations

from dataclasses import MISSING, fields, replace
from typing import Any

import pytest

from moiety.calibration.serving_catalog import load_serving
from moiety.projection.project import evaluate_pools
from moiety.search.planner import make_plan
from moiety.validation.as_planned import PlanPredictor
from moiety.validation.facts import catalog_facts
from moiety.validation.predict import ServingPredictor
from moiety.validation.serving_case import ServingCase, serving_case
from moiety.validation.serving_row import ServingRow
from moiety.validation.skipped import SkippedRow
from tests.validation.test_serving_case import ROW

ROUNDING = 1e-9
SCATTER = 0.01
"""By how much, at most, a plan's busiest rank of experts has more tokens than the mean one in the facts."""


@pytest.fixture(scope="module")
def cases() -> list[ServingCase]:
    """Return the catalogue's serving runs that a plan can be made of."""
    rows = [each.row for each in catalog_facts().rows if isinstance(each.row, ServingRow)]
    return [case for case in map(serving_case, rows) if _is_planned(case)]


def _is_planned(case: ServingCase) -> bool:
    try:
        PlanPredictor().predict(case)
    except SkippedRow:
        return False
    return True


def _at_defaults(case: ServingCase) -> ServingCase:
    """Return the case as the engine's newest release runs it by itself."""
    settings = {each.name: each.default for each in fields(case) if each.default is not MISSING}
    del settings["shortest_share"]  # of the requests
    newest = load_serving().family(case.cluster.device.architecture).newest_release(case.engine)
    return replace(case, version=newest.since or "", **settings)


def _share_experts(case: ServingCase) -> bool:
    return max(case.prefill.strategy.ep, case.decode.strategy.ep) > 1


def test_a_plan_is_the_law_of_the_newest_release_at_its_defaults(cases: list[ServingCase]) -> None:
    planned, predicted, equal = PlanPredictor(), ServingPredictor(), 0
    for case in map(_at_defaults, cases):
        mine, theirs = planned.predict(case), predicted.predict(case)
        if _share_experts(case):
            assert 1 - ROUNDING <= mine.tpot_s / theirs.tpot_s <= 1 + SCATTER
            continue
        equal += 1
        assert mine.tpot_s == pytest.approx(theirs.tpot_s, rel=ROUNDING)
        if not case.disaggregated:  # of workers with prompts alone published recipes have larger steps
            assert mine.ttft_s == pytest.approx(theirs.ttft_s, rel=ROUNDING)
    assert equal > 20


def test_workers_that_decode_begin_on_a_node_of_their_own() -> None:
    prefill, decode = ({"tp": tp, "moe_tp": tp, "workers": 1} for tp in (4, 8))
    apart = {"mode": "disagg", "prefill": prefill, "decode": decode, "num_gpus": 12, "precision": "fp4"}
    case = _at_defaults(serving_case(ServingRow.model_validate(ROW | apart)))
    assert case.cluster.gpus_per_node == 8
    assert PlanPredictor().predict(case).tpot_s == pytest.approx(ServingPredictor().predict(case).tpot_s, rel=ROUNDING)


def test_a_plan_knows_nothing_of_the_run_s_release_and_settings(cases: list[ServingCase]) -> None:
    planned = PlanPredictor()
    assert [planned.predict(_at_defaults(each)) for each in cases] == [planned.predict(each) for each in cases]


def test_it_is_what_moiety_plan_says(cases: list[ServingCase]) -> None:
    planned, engines = PlanPredictor(), set[str]()
    for case in cases:
        scenario, pools = planned.planned(case)
        pinned = pools[0].strategy
        if case.disaggregated or pinned.num_gpus != case.cluster.num_gpus or case.engine in engines:
            continue
        engines.add(case.engine)
        made = make_plan(scenario, case.options, name="whole", version="0", pinned=pinned, tune=False)
        said, mine = made.plan.projection, planned.predict(case)
        assert said is not None
        assert (said.ttft_s, said.tpot_s) == pytest.approx((mine.ttft_s, mine.tpot_s), rel=ROUNDING)
    assert engines == {"vllm", "sglang", "tensorrt-llm"}


def test_with_prompts_apart_it_is_the_plan_simulated_in_full(cases: list[ServingCase]) -> None:
    planned = PlanPredictor()
    case = next(each for each in cases if each.disaggregated)
    said, mine = evaluate_pools(*planned.planned(case), case.options).whole, planned.predict(case)
    assert (said.ttft_s, said.tpot_s) == pytest.approx((mine.ttft_s, mine.tpot_s), rel=ROUNDING)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"draft_tokens": 3}, "guessed tokens"),
        ({"num_gpus": 64, "concurrency": 4}, "refuses such a deployment: every-group-has-work"),
        ({"concurrency": 100_000}, "refuses such a deployment: fits-the-memory"),
        (
            {"model": "openai/gpt-oss-120b", "precision": "fp4", "tp": 5, "num_gpus": 5, "moe_tp": 1, "moe_ep": 5},
            "refuses such a deployment: experts-divide-over-ep",
        ),
    ],
)
def test_what_no_plan_can_be_made_of_has_a_reason(changes: dict[str, Any], reason: str) -> None:
    with pytest.raises(SkippedRow, match=reason):
        PlanPredictor().predict(serving_case(ServingRow.model_validate(ROW | changes)))
