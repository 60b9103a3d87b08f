"""Projections: figures that agree with each other, and hardware that is never worse for being faster."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moiety.calibration.calibration import weakest
from moiety.calibration.engines import engine_calibration
from moiety.errors import InputError
from moiety.plan import DtypePolicy, Options, Phase, Plan, Projection
from moiety.projection.project import computing_share, evaluate
from moiety.projection.schedule import schedules
from moiety.search.disaggregation import disaggregated
from moiety.search.judge import Judged, judge
from moiety.search.options import default_options
from moiety.search.planner import assemble
from moiety.search.search import search
from moiety.search.standing import missed_share
from moiety.strategy.strategy import parse_strategy
from moiety.workload.workload import ServiceObjective
from tests.scenarios import (
    ATTENTIONS,
    CALIBRATION,
    LOADS,
    WINDOWED,
    decode_load,
    dense_model,
    evaluated,
    faster,
    mixed_load,
    moe,
    plan_for,
    prefill_load,
    scenario,
    small_model,
)

if TYPE_CHECKING:
    from moiety.model.model import Model

NAMES = ["ep16_tp1", "ep8_tp2", "tp8_x2", "tp2_dp4_ep8_pp2", "tp8_dp2_ep1"]
PHASES: list[Phase] = ["prefill", "decode", "mixed", "training"]


def projection_of(plan: Plan) -> Projection:
    assert plan.projection is not None
    return plan.projection


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("phase", PHASES)
@pytest.mark.parametrize("attention", list(ATTENTIONS))
def test_figures_agree_with_each_other(phase: Phase, name: str, attention: str) -> None:
    case = scenario(small_model(ATTENTIONS[attention], dense_layers=1), "h100x16", LOADS[phase])
    plan = evaluated(case, name)
    found, pool = projection_of(plan), plan.pools[0]
    groups = pool.strategy.attn_dp * pool.strategy.instances
    if phase in {"prefill", "training"}:
        assert found.throughput_tokens_per_s * found.step_s == pytest.approx(pool.schedule.tokens_per_step * groups)
    elif phase == "decode":
        assert found.tpot_s is not None
        assert found.throughput_tokens_per_s * found.tpot_s == pytest.approx(case.workload.concurrency)
    else:
        assert found.ttft_s is not None
        assert found.tpot_s is not None
        request_s = found.ttft_s + (case.workload.output_tokens - 1) * found.tpot_s
        finished = found.throughput_tokens_per_s / case.workload.output_tokens
        assert finished * request_s == pytest.approx(case.workload.concurrency)
    assert found.throughput_tokens_per_s_per_gpu == pytest.approx(found.throughput_tokens_per_s / 16)
    assert found.tokens_per_joule == pytest.approx(found.throughput_tokens_per_s / (16 * found.power_w_per_gpu))
    assert 0 <= found.overlap_fraction <= 1
    assert 0 <= found.exposed_communication_fraction <= 1
    assert 0 < found.model_flops_utilization < 1
    device = plan.cluster.device
    assert device.idle_power_w <= found.power_w_per_gpu <= device.max_power_w
    assert set(found.provenance) == set(Projection.model_fields) - {"provenance"}
    assert pool.memory is not None
    assert found.memory_bytes_per_gpu == pool.memory.bytes_by_kind


@pytest.mark.parametrize("phase", PHASES)
def test_a_slower_format_of_some_weights_does_not_change_what_utilisation_is_a_share_of(phase: Phase) -> None:
    case = scenario(small_model(), "h100x16", LOADS[phase])
    share_of = dict[str, float]()
    for name, change in {"all": {}, "slow experts": {"experts": "fp32"}, "slow weights": {"weights": "fp32"}}.items():
        options = default_options(case)
        dtypes = options.dtypes.model_copy(update=change)
        found = projection_of(evaluated(case, "ep16_tp1", options.model_copy(update={"dtypes": dtypes})))
        share_of[name] = found.model_flops_utilization / found.throughput_tokens_per_s
    assert share_of["slow experts"] == pytest.approx(share_of["all"])
    assert share_of["slow weights"] == pytest.approx(share_of["all"])


def test_experts_in_fp8_are_padded_where_they_have_a_scale_a_block_and_not_where_they_have_one() -> None:
    case = scenario(small_model(), "h100x16", LOADS["decode"])
    device = case.cluster.device
    constants = engine_calibration("vllm", device.architecture, device.memory_bytes)
    case = replace(case, engine="vllm", calibration=constants)
    padded = list[float]()
    for in_blocks in (False, True):
        dtypes = DtypePolicy(weights="fp8", experts="fp8", block_scales=in_blocks)
        plan = plan_for(case, "ep16_tp1", default_options(case).model_copy(update={"dtypes": dtypes}))
        found = evaluate(plan, constants)
        useful = projection_of(found.plan).model_flops_utilization
        padded.append(computing_share(case, plan.pools[0], found.phases[0]) / useful)
    assert padded[0] == pytest.approx(1)
    assert padded[1] > 1.05


@settings(max_examples=60)
@given(
    st.sampled_from(NAMES),
    st.sampled_from(PHASES),
    st.booleans(),
    st.sampled_from(["gpu", "memory", "link", "inner"]),
    st.floats(1, 8),
)
def test_faster_hardware_never_lowers_throughput(name: str, phase: Phase, on: bool, what: str, factor: float) -> None:
    case = scenario(small_model(), "h100x16", LOADS[phase])
    options = default_options(case).model_copy(update={"two_batch_overlap": on})
    plan = plan_for(case, name, options)
    quick = faster(case, link=factor, tier=0) if what == "inner" else faster(case, **{what: factor})
    before = evaluate(plan, CALIBRATION).plan
    after = evaluate(plan.model_copy(update={"cluster": quick.cluster}), CALIBRATION).plan
    gain = projection_of(after).throughput_tokens_per_s / projection_of(before).throughput_tokens_per_s
    # training goes by the longest chain, and list scheduling knows anomalies: a quicker task may change the order of
    # others (Graham 1969); launch orders that do not depend on the machine know none
    assert gain >= (1 - 1e-3 if phase == "training" else 1 - 1e-9)


@pytest.mark.parametrize("phase", PHASES)
@pytest.mark.parametrize("name", ["ep16_tp1", "ep8_tp2", "tp2_dp4_ep8_pp2", "tp1_pp2_x8", "tp16_dp1_ep16"])
@pytest.mark.parametrize("method", ["flat", "hierarchical"])
def test_halving_the_network_changes_every_plan_that_uses_it(phase: Phase, name: str, method: str) -> None:
    model = small_model().model_copy(update={"blocks": small_model(ATTENTIONS["mla"]).blocks})
    case = scenario(model, "h100x16", LOADS[phase])
    options = default_options(case).model_copy(update={"all_to_all": method, "two_batch_overlap": False})
    plan = plan_for(case, name, options)
    slower = plan.model_copy(update={"cluster": faster(case, link=0.5).cluster})
    fast, slow = (projection_of(evaluate(each, CALIBRATION).plan) for each in (plan, slower))
    crosses = fast.cross_node_bytes_per_token > 0
    assert crosses is (name != "tp1_pp2_x8" or phase == "training")  # whose gradients are summed over nodes
    assert (slow.step_s > fast.step_s) is crosses


def test_the_mean_of_a_request_s_life_is_served_at_the_rate_it_arrives() -> None:
    asked = mixed_load().model_copy(update={"concurrency": None, "request_rate_per_s": 40.0})
    case = scenario(small_model(), "h100x8", asked)
    result = search(case, default_options(case))
    best = result.chosen.projection
    assert best.throughput_tokens_per_s == pytest.approx(40 * asked.output_tokens)
    many = {"input_tokens": 8192, "output_tokens": 2, "request_rate_per_s": 250.0}
    flooded = scenario(small_model(), "h100x1", asked.model_copy(update=many))
    with pytest.raises(InputError, match="arrive faster"):
        search(flooded, default_options(flooded))


@pytest.mark.parametrize("load", [{"concurrency": 8}, {"concurrency": None, "request_rate_per_s": 20.0}])
def test_answers_of_one_token_have_no_time_per_output_token_and_miss_no_limit_of_it(load: dict[str, float]) -> None:
    limits = ServiceObjective(ttft_s=10.0, tpot_s=1e-6)
    case = scenario(small_model(), "h100x8", mixed_load(output=1).model_copy(update=load | {"slo": limits}))
    options = default_options(case)
    judged = judge(case, parse_strategy("tp2_dp4_ep8", 8), options)
    assert isinstance(judged, Judged)
    for each in (judged, *disaggregated(case, options, judged)):
        assert each.projection.tpot_s is None
        assert missed_share(case, each.projection) == 0
        found = projection_of(evaluate(assemble(case, each.pools, each.options, "test", "0"), CALIBRATION).plan)
        assert found.tpot_s is None


@pytest.mark.parametrize("name", ["tp8", "tp4_pp2", "tp2_dp4_ep8", "tp2_x4"])
def test_what_arrives_is_answered_as_long_as_there_is_room(name: str) -> None:
    strategy = parse_strategy(name, 8)
    for rate in (0.5, 3.0, 11.0, 40.0, 90.0):
        asked = mixed_load().model_copy(update={"concurrency": None, "request_rate_per_s": rate})
        case = scenario(small_model(), "h100x8", asked)
        judged = judge(case, strategy, default_options(case))
        assert isinstance(judged, Judged)
        found, pool = judged.projection, judged.pools[0]
        assert found.throughput_tokens_per_s == pytest.approx(rate * asked.output_tokens, rel=1e-9)
        assert found.ttft_s is not None
        assert found.tpot_s is not None
        room = pool.schedule.decode_sequences * pool.schedule.num_microbatches * strategy.num_groups
        assert rate * (found.ttft_s + (asked.output_tokens - 1) * found.tpot_s) <= room


def test_a_plan_that_more_arrives_at_than_it_answers_is_as_busy_as_it_can_be() -> None:
    asked = mixed_load().model_copy(update={"concurrency": None, "request_rate_per_s": 90.0})
    case = scenario(small_model(), "h100x8", asked)
    judged = judge(case, parse_strategy("tp2_dp4_ep8", 8), default_options(case))
    assert isinstance(judged, Judged)
    plan = assemble(case, judged.pools, judged.options, "test", "0")
    answered: list[float] = []
    for rate in (90.0, 95.0, 1e3, 1e6):
        more = asked.model_copy(update={"request_rate_per_s": rate})
        found = projection_of(evaluate(plan.model_copy(update={"workload": more}), CALIBRATION).plan)
        assert found.ttft_s is not None
        assert found.tpot_s is not None
        answered.append(found.throughput_tokens_per_s / asked.output_tokens)
        in_flight = answered[-1] * (found.ttft_s + (asked.output_tokens - 1) * found.tpot_s)
        assert in_flight <= 4 * plan.pools[0].schedule.decode_sequences * (1 + 1e-9)
    assert answered[0] == pytest.approx(90)
    assert 90 < answered[1] < 95
    assert answered[1:] == pytest.approx([answered[1]] * 3)


@pytest.mark.parametrize("concurrency", [16, 17, 31, 32, 500])
def test_no_more_sequences_are_served_than_are_in_flight(concurrency: int) -> None:
    plan = evaluated(scenario(small_model(), "h100x16", decode_load(concurrency)), "ep16_tp1")
    found = projection_of(plan)
    assert found.tpot_s is not None
    assert found.throughput_tokens_per_s * found.tpot_s == pytest.approx(concurrency)


def test_fewer_sequences_than_groups_have_no_schedule() -> None:
    strategy = parse_strategy("ep16_tp1", 16)
    assert schedules(decode_load(15), "decode", strategy, Options()) == []


def test_longer_queues_wait_longer() -> None:
    times: list[tuple[float, float]] = []
    for concurrency in (8, 64, 512, 4096):
        found = projection_of(evaluated(scenario(small_model(), "h100x8", mixed_load(concurrency)), "ep8_tp1"))
        assert found.ttft_s is not None
        times.append((found.ttft_s, found.throughput_tokens_per_s))
    assert times == sorted(times)


def test_pipelines_decode_at_the_pace_of_their_slowest_stage() -> None:
    case = scenario(dense_model(num_layers=8), "h100x4", decode_load(256))
    plan = plan_for(case, "tp1_pp4", Options(two_batch_overlap=False))
    evaluation = evaluate(plan, CALIBRATION)
    timeline = evaluation.phases[0].outcome.timeline
    assert timeline is not None
    found = projection_of(evaluation.plan)
    overhead = CALIBRATION.engines["moiety"].step_overhead_s
    # the last stage also has the head, and every stage has four micro-batches a token
    assert found.step_s - overhead >= max(timeline.compute_busy_s) * (1 - 1e-12)
    assert found.step_s - overhead == pytest.approx(timeline.occupied_s, rel=0.05)


def test_redundant_experts_even_out_hot_ones_and_cost_memory() -> None:
    skewed = prefill_load().model_copy(update={"routing_skew": 1.0})
    case = scenario(small_model(part=moe(16, 2), num_layers=4), "h100x8", skewed)
    plain, spare = (evaluated(case, "ep8_tp1", Options(redundant_experts=n)) for n in (0, 16))
    even = evaluated(scenario(case.model, "h100x8", prefill_load()), "ep8_tp1", Options())
    rates = [projection_of(each).throughput_tokens_per_s for each in (plain, spare, even)]
    assert rates == sorted(rates)
    assert rates[0] < rates[2]
    weights = [projection_of(each).memory_bytes_per_gpu["expert_weights"] for each in (plain, spare)]
    assert weights[1] == 2 * weights[0]


def test_a_window_saves_work() -> None:
    long = prefill_load(tokens=131_072, prompt=8192)
    full, windowed = (
        projection_of(evaluated(scenario(small_model(attention), "h100x8", long), "ep8_tp1"))
        for attention in (ATTENTIONS["gqa"], WINDOWED)
    )
    assert windowed.step_s < full.step_s


@pytest.mark.parametrize("model", [dense_model(), small_model()], ids=["dense", "moe"])
@pytest.mark.parametrize("phase", PHASES)
def test_one_gpu_is_a_cluster_too(model: Model, phase: Phase) -> None:
    found = projection_of(evaluated(scenario(model, "h100x1", LOADS[phase]), "tp1"))
    assert found.cross_node_bytes_per_token == 0
    assert found.exposed_communication_fraction == 0
    assert found.overlap_fraction == 1


def test_the_weakest_basis_counts() -> None:
    assert weakest("computed", "measured", "fitted") == "fitted"
    assert weakest("datasheet", "assumed", "measured") == "assumed"
