"""Verification of measured routing: a sound plan passes, figures that its map cannot have are found."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from moiety.plan import Plan
from moiety.verify.audit import audit
from moiety.verify.case import claimed_plans
from moiety.verify.claims import read_claims
from moiety.verify.verify import verify_plan
from tests.routed import routed_plan
from tests.scenarios import CALIBRATION

if TYPE_CHECKING:
    from collections.abc import Callable

    from moiety.verify.audit import ClaimVerdict
    from moiety.verify.findings import Finding

CLAIMS = """
name: cuts
strategy: ep8_tp1
claims:
  - {id: cut, quantity: cross_node_traffic_reduction, of: enhanced, by: placement, value: 40, unit: "%", text: "less"}
"""


def wrong(plan: Plan) -> set[str]:
    return {each.check for each in verify_plan(plan, CALIBRATION) if each.severity == "error"}


def found(plan: Plan, check: str) -> list[Finding]:
    return [each for each in verify_plan(plan, CALIBRATION) if each.check == check]


@pytest.mark.parametrize("redundant", [0, 8])
def test_a_plan_from_its_file_has_no_errors(redundant: int) -> None:
    plan = Plan.model_validate_json(routed_plan(redundant).model_dump_json())
    assert wrong(plan) == set()
    assert {each.severity for check in ("routed-traffic", "served-loads") for each in found(plan, check)} == {"ok"}


def test_loads_without_a_trace_are_pointed_out() -> None:
    plan = routed_plan(traced=False)
    assert wrong(plan) == set()
    (finding,) = found(plan, "routed-traffic")
    assert finding.severity == "warning"
    assert "uniform routing" in finding.message


def lower_messages(pool: dict[str, Any]) -> None:
    pool["placement"]["traffic"]["domains"][0] |= {"messages": 0.5, "ranks": 0.5, "narrower": 0.5, "domains": 0.2}


def fewer_nodes(pool: dict[str, Any]) -> None:
    pool["placement"]["traffic"]["domains"][0]["domains"] /= 2


def flattened_loads(pool: dict[str, Any]) -> None:
    rows = pool["placement"]["traffic"]["rank_loads"]
    rows[0] = [8.0, *(0.0 for _ in rows[0][1:])]


def no_loads(pool: dict[str, Any]) -> None:
    del pool["placement"]["traffic"]["rank_loads"]


def another_method(pool: dict[str, Any]) -> None:
    pool["placement"]["method"] = "balance"


@pytest.mark.parametrize(
    ("tamper", "check"),
    [
        (lower_messages, "routed-traffic"),
        (fewer_nodes, "cross-node-bytes"),
        (flattened_loads, "served-loads"),
        (no_loads, "served-loads"),
        (another_method, "placement-shape"),
    ],
)
def test_measured_figures_that_were_tampered_with_are_found(
    tamper: Callable[[dict[str, Any]], None], check: str
) -> None:
    document = json.loads(routed_plan().model_dump_json())
    tamper(document["pools"][0])
    assert check in wrong(Plan.model_validate(document))


def verdict(plan: Plan, percent: float) -> ClaimVerdict:
    claims = read_claims(CLAIMS.replace("40", str(percent)), source="c.yaml")
    plans = claimed_plans(claims, plan, {"enhanced": plan.options}, CALIBRATION)
    return audit(claims, plans, CALIBRATION).verdict_of("cut")


def test_a_claimed_reduction_is_judged_by_the_trace() -> None:
    plan = routed_plan(0)
    (pool,) = plan.pools
    assert pool.placement is not None
    assert pool.placement.traffic is not None
    linear = next(each for each in pool.measured if each.method == "linear")
    saved = 100 * (1 - pool.placement.traffic.remote_domains / linear.traffic.remote_domains)
    assert verdict(plan, round(saved)).verdict == "holds"
    wrong_claim = verdict(plan, 60)
    assert wrong_claim.verdict == "does not hold"
    assert f"{saved:.1f}% less than linear" in wrong_claim.reasons[0]
    assert "less than eplb-global" in wrong_claim.reasons[0]


def test_a_claim_about_one_copy_each_is_not_judged_by_a_plan_with_copies() -> None:
    judged = verdict(routed_plan(8), 60)
    assert judged.verdict == "cannot be judged"
    assert "no redundant experts" in judged.reasons[0]
