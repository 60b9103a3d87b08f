"""Verification: good plans pass, and any number that was tampered with is found."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from moiety.calibration.engines import engine_calibration
from moiety.plan import DtypePolicy, Options, Plan
from moiety.projection.project import evaluate
from moiety.strategy.strategy import parse_strategy
from moiety.verify.checks.cross_node import cross_node_bytes
from moiety.verify.checks.table import FIGURES, STRUCTURE
from moiety.verify.findings import Verification
from moiety.verify.inspection import Inspection
from moiety.verify.verify import verification, verify_plan
from moiety.workload.workload import ServiceObjective, Workload
from tests.routed import routed_plan
from tests.scenarios import GQA, evaluated, moe, prefill_load, scenario, small_model, tiered, training_load
from tests.verify.plans import (
    CALIBRATION,
    OFF,
    SOME,
    decided,
    decode_plan,
    dense_plan,
    hybrid_plan,
    mixed_plan,
    reference_plan,
    small_plan,
    sparse_plan,
    training_plan,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from moiety.dtypes import Dtype
    from moiety.verify.findings import Finding

PLANS: dict[str, Callable[[], Plan]] = {
    "reference": reference_plan,
    "prefill": small_plan,
    "decode": decode_plan,
    "training": training_plan,
    "mixed": mixed_plan,
    "dense": dense_plan,
    "hybrid": hybrid_plan,
    "sparse": sparse_plan,
}


def errors(plan: Plan) -> list[Finding]:
    return [finding for finding in verify_plan(plan, CALIBRATION) if finding.severity == "error"]


def found(plan: Plan, check: str) -> list[Finding]:
    return [finding for finding in verify_plan(plan, CALIBRATION) if finding.check == check]


@pytest.mark.parametrize("name", PLANS)
def test_plan_that_was_just_made_has_no_errors(name: str) -> None:
    assert errors(PLANS[name]()) == []


@pytest.mark.parametrize("name", PLANS)
def test_plan_that_was_written_and_read_has_no_errors(name: str) -> None:
    assert errors(Plan.model_validate_json(PLANS[name]().model_dump_json())) == []


@pytest.mark.parametrize("options", [OFF, SOME, Options(all_to_all="dedup"), Options(redundant_experts=8)])
def test_options_change_the_plan_and_not_the_checks(options: Options) -> None:
    plan = decided("mixtral-8x7b", "h100x16", small_plan().workload, parse_strategy("ep8_tp2", 16), options)
    assert errors(plan) == []


@pytest.mark.parametrize("experts", ["fp32", "bf16", "fp8"])
def test_products_in_two_formats_are_a_share_of_the_peak_of_the_faster(experts: Dtype) -> None:
    options = Options(dense_parameter_sharding=True, dtypes=DtypePolicy(experts=experts))
    plan = decided("deepseek-v2-lite", "h100x8", training_plan().workload, parse_strategy("ep8_tp1", 8), options)
    assert errors(plan) == []
    (finding,) = found(plan, "utilization-agrees")
    peak = max(plan.cluster.device.peak(each) for each in ("bf16", experts))
    assert f"(8 x {peak / 1e12:g} TFLOPS)" in finding.message


def test_latents_that_no_token_picks_need_not_be_read() -> None:
    workload = Workload(name="books", kind="decode", input_tokens=131_072, output_tokens=1024, concurrency=1024)
    plan = decided("deepseek-v3.2", "gb300x64", workload, parse_strategy("ep64_tp1", 64))
    assert errors(plan) == []
    (least,) = (
        finding.expected
        for finding in verify_plan(plan, CALIBRATION)
        if finding.check == "speed-of-light" and "cache" in finding.subject
    )
    sequences, context, memory = 1024 // 64, plan.pools[0].schedule.context_tokens, plan.pools[0].memory
    # of 61 layers: FP8 keys of 128 with a scale for all tokens, 2,048 latents of 576 in BF16
    cache = 61 * sequences * (context * (128 + 4) + 2048 * 576 * 2)
    assert memory is not None
    bandwidth = plan.cluster.device.memory_bandwidth_bytes_per_s
    assert least == pytest.approx((cache + memory.bytes_by_kind["dense_weights"]) / bandwidth, rel=0.01)


@pytest.mark.parametrize(
    ("per_node", "strategy", "workload"),
    [
        (3, "ep3_tp2", prefill_load()),
        (3, "tp1_dp6_ep3_cp2", training_load(length=1536)),
        (5, "ep10_tp1", training_load()),
    ],
)
def test_groups_that_no_node_holds_whole_are_no_error(per_node: int, strategy: str, workload: Workload) -> None:
    heads = GQA.model_copy(update={"num_heads": 12, "num_kv_heads": 6})
    case = scenario(
        small_model(heads, moe(num_experts=30)), tiered(per_node, 2 * per_node, per_node=per_node), workload
    )
    assert errors(evaluated(case, strategy, Options(all_to_all="flat"))) == []


@pytest.mark.parametrize(
    ("strategy", "options"),
    [
        ("ep16_tp1", Options()),
        ("ep8_tp2", Options(dense_parameter_sharding=True)),
        ("ep16_tp1_x2", Options(fully_sharded=True)),
        ("ep16_tp1_x2", Options(activation_checkpointing=False)),
    ],
)
def test_bytes_that_training_sends_between_nodes_are_within_what_rows_and_weights_take(
    strategy: str, options: Options
) -> None:
    num_gpus = 32 if strategy.endswith("_x2") else 16
    workload = training_plan().workload
    plan = decided("olmoe-1b-7b", f"h100x{num_gpus}", workload, parse_strategy(strategy, num_gpus), options)
    stated = plan.pools[0].projection
    assert stated is not None
    for factor, severity in ((1.0, "ok"), (0.3, "error"), (20.0, "error")):
        figure = {"cross_node_bytes_per_token": factor * stated.cross_node_bytes_per_token}
        pool = plan.pools[0].model_copy(update={"projection": stated.model_copy(update=figure)})
        (finding,) = cross_node_bytes(Inspection(plan.model_copy(update={"pools": (pool,)}), CALIBRATION))
        assert finding.severity == severity, (factor, finding.message)


def test_every_check_says_something_about_some_plan() -> None:
    silent = {check.__name__ for check in (*STRUCTURE, *FIGURES)}
    workload = small_plan().workload.model_copy(update={"slo": ServiceObjective(ttft_s=100.0)})
    redundant = decided(
        "mixtral-8x7b", "h100x16", workload, parse_strategy("ep8_tp2", 16), Options(redundant_experts=8)
    )
    for plan in (redundant, reference_plan(), training_plan(), routed_plan()):
        inspection = Inspection(plan, CALIBRATION)
        silent -= {check.__name__ for check in (*STRUCTURE, *FIGURES) if list(check(inspection))}
    assert not silent


def test_verification_is_the_same_every_time_and_survives_json() -> None:
    plan = small_plan()
    first, second = (verification(plan, verify_plan(plan, CALIBRATION)) for _ in range(2))
    assert first == second
    assert Verification.model_validate_json(first.model_dump_json()) == first
    assert first.passed
    assert first.summary.num_checks == first.summary.num_ok + first.summary.num_warnings + first.summary.num_errors


def test_given_evaluation_saves_the_second_one() -> None:
    plan = small_plan()
    assert verify_plan(plan, CALIBRATION, evaluate(plan, CALIBRATION)) == verify_plan(plan, CALIBRATION)


# Tampering ----------------------------------------------------------------------------------------------------------

Path = tuple[str | int, ...]
TAMPERED = ("projection", "memory", "schedule")
UNCHECKED = {"seed"}


def number_paths(node: object, path: Path = ()) -> list[Path]:
    """Return the path of every number that a plan's pools and projection hold."""
    if isinstance(node, dict):
        items: list[tuple[str | int, object]] = [(key, value) for key, value in node.items() if key not in UNCHECKED]
    elif isinstance(node, list):
        items = list(enumerate(node))
    else:
        return [path] if isinstance(node, (int, float)) and not isinstance(node, bool) else []
    return [found for key, value in items for found in number_paths(value, (*path, key))]


def tampered(document: dict[str, Any], path: Path, change: float) -> dict[str, Any]:
    """Return a copy of the document with the number at `path` changed by a share of itself, at least by one."""
    copy = json.loads(json.dumps(document))
    place: Any = copy
    for key in path[:-1]:
        place = place[key]
    old = place[path[-1]]
    step = old * change if isinstance(old, float) and old else max(abs(round(old * change)), 1)
    place[path[-1]] = old + step if not (path[-1] == "overlap_fraction" and old + step > 1) else old - step
    return copy


DOCUMENT: dict[str, Any] = json.loads(small_plan().model_dump_json())
PATHS = sorted(
    (
        path
        for path in number_paths(DOCUMENT)
        if path[0] == "projection"
        or (path[0] == "pools" and path[2] in {*TAMPERED, "placement", "strategy", "first_rank"})
    ),
    key=str,
)


def test_there_are_many_numbers_to_tamper_with() -> None:
    kinds = {(path[0], *path[2:4]) if path[0] == "pools" else path for path in PATHS}
    assert len(kinds) > 20


@settings(max_examples=60, deadline=None)
@given(
    path=st.sampled_from([path for path in PATHS if "physical_to_logical_map" not in path]),
    change=st.sampled_from([0.01, 0.3]),
)
def test_any_number_that_was_changed_is_found(path: Path, change: float) -> None:
    document = tampered(DOCUMENT, path, change)
    try:
        plan = Plan.model_validate(document)
    except ValidationError:
        return  # found on reading
    assert errors(plan), path


@settings(max_examples=15, deadline=None)
@given(data=st.data())
def test_any_expert_in_another_slot_is_found(data: st.DataObject) -> None:
    placement = small_plan().pools[0].placement
    assert placement is not None
    row = data.draw(st.integers(0, len(placement.layers) - 1))
    first, second = data.draw(st.lists(st.integers(0, placement.num_slots - 1), min_size=2, max_size=2, unique=True))
    rows = [list(each) for each in placement.physical_to_logical_map]
    rows[row][first], rows[row][second] = rows[row][second], rows[row][first]
    moved = placement.model_copy(update={"physical_to_logical_map": tuple(tuple(each) for each in rows)})
    plan = small_plan()
    pool = plan.pools[0].model_copy(update={"placement": moved})
    assert errors(plan.model_copy(update={"pools": (pool,)}))


@pytest.mark.parametrize(
    "change",
    [
        {"all_to_all": "flat"},
        {"two_batch_overlap": False},
        {"redundant_experts": 8},
        {"arena": False},
        {"dense_parameter_sharding": True},
        {"fused_kernels": False},
    ],
)
def test_an_option_that_was_switched_is_found(change: dict[str, object]) -> None:
    plan = small_plan()
    assert errors(plan.model_copy(update={"options": plan.options.model_copy(update=change)}))


def test_a_plan_without_figures_fails() -> None:
    plan = small_plan()
    pool = plan.pools[0].model_copy(update={"memory": None, "projection": None})
    assert errors(plan.model_copy(update={"pools": (pool,), "projection": None}))


def test_an_arena_without_room_for_a_matrix_that_is_expanded_is_found() -> None:
    plan = decode_plan()
    in_fp8 = plan.options.dtypes.model_copy(update={"weights": "fp8", "experts": "fp8"})
    plan = plan.model_copy(update={"options": plan.options.model_copy(update={"dtypes": in_fp8})})
    plan = evaluate(plan, CALIBRATION).plan
    (finding,) = found(plan, "arena-expands")
    assert finding.severity != "error"
    pool = plan.pools[0]
    assert pool.memory is not None
    assert pool.memory.arena is not None
    less = pool.memory.arena.model_copy(
        update={"buffers": tuple(each for each in pool.memory.arena.buffers if ".expanded" not in each.name)}
    )
    assert len(less.buffers) < len(pool.memory.arena.buffers)
    less = less.model_copy(update={"live_bytes": 0})
    pool = pool.model_copy(update={"memory": pool.memory.model_copy(update={"arena": less})})
    (finding,) = found(plan.model_copy(update={"pools": (pool,)}), "arena-expands")
    assert finding.severity == "error"
    constants = engine_calibration("vllm", plan.cluster.device.architecture, plan.cluster.device.memory_bytes)
    for_another = evaluate(plan.model_copy(update={"engine": "vllm"}), constants).plan
    assert not any(each.check == "arena-expands" for each in verify_plan(for_another, constants))


# Single checks ------------------------------------------------------------------------------------------------------


def test_missed_objective_is_a_warning() -> None:
    plan = small_plan()
    workload = plan.workload.model_copy(update={"slo": ServiceObjective(ttft_s=1e-6)})
    (finding,) = found(plan.model_copy(update={"workload": workload}), "objective")
    assert finding.severity == "warning"
    assert finding.expected == 1e-6


def test_skewed_routing_is_a_warning() -> None:
    workload = small_plan().workload.model_copy(update={"routing_skew": 2.0})
    plan = decided("mixtral-8x7b", "h100x16", workload, parse_strategy("ep8_tp2", 16))
    (finding,) = found(plan, "expert-load")
    assert finding.severity == "warning"
    assert errors(plan) == []


def test_halved_network_is_felt_where_traffic_crosses_nodes() -> None:
    (finding,) = found(reference_plan(), "network-matters")
    assert finding.severity == "ok"
    assert isinstance(finding.actual, float)
    assert isinstance(finding.expected, float)
    assert finding.actual < finding.expected


def test_format_that_the_device_lacks_is_a_warning() -> None:
    workload = Workload(name="tokens", kind="decode", input_tokens=512, output_tokens=128, concurrency=256)
    options = Options()
    options = options.model_copy(update={"dtypes": options.dtypes.model_copy(update={"experts": "mxfp4"})})
    plan = decided("gpt-oss-20b", "h100x8", workload, parse_strategy("ep8", 8), options)
    severities = {finding.subject: finding.severity for finding in found(plan, "number-formats")}
    assert severities == {"dense weights": "ok", "experts": "warning", "activations": "ok"}


def test_coverage_counts_the_copies() -> None:
    single, double = (
        found(
            decided(
                "mixtral-8x7b",
                "h100x16",
                small_plan().workload,
                parse_strategy("ep8_tp2", 16),
                Options(redundant_experts=n),
            ),
            "coverage",
        )[0].actual
        for n in (0, 8)
    )
    assert single == pytest.approx(1 - 1 / 8)
    assert double == 1.0
