"""The search: every strategy counted, the best first, the same every time."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from moiety.calibration.engines import engine_calibration
from moiety.cluster.catalog import load_cluster
from moiety.cluster.resize import resized
from moiety.errors import InputError
from moiety.model.catalog import load_catalog_model
from moiety.model.feed_forward import DenseFeedForward
from moiety.plan import Options, Phase, Plan
from moiety.projection.project import evaluate
from moiety.projection.scenario import Scenario
from moiety.search.disaggregation import disaggregated
from moiety.search.fit import smallest_fitting_gpus
from moiety.search.judge import Judged, judge
from moiety.search.options import baseline_options, default_options
from moiety.search.planner import assemble, make_plan
from moiety.search.search import search
from moiety.search.standing import standing
from moiety.strategy.enumeration import enumerate_strategies
from moiety.strategy.strategy import parse_strategy
from moiety.workload.catalog import load_workload
from moiety.workload.workload import ServiceObjective, Workload
from tests.scenarios import (
    CALIBRATION,
    GQA,
    LOADS,
    decode_load,
    dense_model,
    mixed_load,
    moe,
    prefill_load,
    scenario,
    small_model,
    training_load,
)

if TYPE_CHECKING:
    from moiety.model.model import Model

PHASES: list[Phase] = ["prefill", "decode", "mixed", "training"]


def made(case: Scenario, pinned: str | None = None) -> Plan:
    strategy = parse_strategy(pinned, case.cluster.num_gpus) if pinned else None
    return make_plan(case, default_options(case), name="test", version="0", pinned=strategy).plan


@pytest.mark.parametrize("phase", PHASES)
def test_a_plan_is_made_read_back_equal_and_made_again_to_the_bit(phase: Phase) -> None:
    case = scenario(small_model(), "h100x16", LOADS[phase])
    plan = made(case)
    text = plan.model_dump_json()
    assert Plan.model_validate_json(text) == plan
    assert made(case).model_dump_json() == text
    assert plan.projection is not None
    assert plan.num_gpus == 16
    assert [each.name for each in plan.comparison] == ["baseline", "original", "enhanced"]
    assert plan.comparison[-1].projection == plan.projection
    assert all(pool.memory is not None and pool.memory.fits for pool in plan.pools)


@pytest.mark.parametrize("phase", PHASES)
@pytest.mark.parametrize("model", [small_model(), dense_model()], ids=["moe", "dense"])
def test_strategies_are_ranked_and_all_of_them_accounted_for(phase: Phase, model: Model) -> None:
    case = scenario(model, "h100x8", LOADS[phase])
    result = search(case, default_options(case))
    summary = result.summary
    candidates = list(enumerate_strategies(case.model, 8))
    assert summary.num_enumerated == len(candidates)
    assert summary.num_legal == sum(each.is_legal for each in candidates)
    assert sum(each.num_strategies for each in summary.rejected) == summary.num_enumerated - summary.num_fitting
    aggregated = [line for line in summary.ranking if line.mode == "aggregated"]
    assert len(aggregated) == summary.num_fitting
    assert [line.rank for line in summary.ranking] == list(range(1, len(summary.ranking) + 1))
    simulated = summary.ranking[:24]
    assert [line.throughput_tokens_per_s_per_gpu for line in simulated] == sorted(
        (line.throughput_tokens_per_s_per_gpu for line in simulated), reverse=True
    )
    assert summary.ranking[0].strategy == result.chosen.name
    assert [line.strategy for line in summary.ranking if not line.why_not] == [result.chosen.name]


def test_the_objective_comes_before_throughput() -> None:
    free = scenario(small_model(), "h100x16", decode_load(2048))
    fastest = search(free, default_options(free)).chosen
    assert fastest.projection.tpot_s is not None
    ranked = search(free, default_options(free)).summary.ranking
    limit = sorted(line.tpot_s for line in ranked if line.tpot_s is not None)[3]
    strict = decode_load(2048).model_copy(update={"slo": ServiceObjective(tpot_s=limit * 1.01)})
    case = scenario(small_model(), "h100x16", strict)
    result = search(case, default_options(case))
    assert result.chosen.projection.tpot_s is not None
    assert result.chosen.projection.tpot_s <= limit * 1.01
    meets = [line.meets_slo for line in result.summary.ranking]
    assert meets == sorted(meets, reverse=True)
    late = next(line for line in result.summary.ranking if not line.meets_slo)
    assert "is over the objective" in late.why_not


def test_a_pinned_strategy_is_kept_and_placed() -> None:
    case = scenario(small_model(), "h100x16", prefill_load())
    options = default_options(case)
    free = search(case, options)
    worst = free.summary.ranking[-1].strategy
    pinned = search(case, options, pinned=parse_strategy(worst, 16))
    assert pinned.chosen.name == worst
    assert pinned.summary.chosen_by == "user"
    line = next(each for each in pinned.summary.ranking if not each.why_not)
    assert line.strategy == worst
    assert line.rank > 1
    assert pinned.summary.ranking[0].why_not == f"the best, but {worst} was asked for"
    with pytest.raises(InputError, match="experts-divide-over-ep"):
        search(
            scenario(small_model(part=moe(18)), "h100x16", prefill_load()), options, pinned=parse_strategy("ep16", 16)
        )


def test_the_pareto_front_is_one() -> None:
    case = scenario(small_model(), "h100x16", decode_load(4096))
    front = search(case, default_options(case)).summary.pareto_front
    assert len(front) > 1
    latencies = [point.latency_s for point in front]
    rates = [point.throughput_tokens_per_s_per_gpu for point in front]
    assert latencies == sorted(latencies)
    assert rates == sorted(rates)
    assert len(set(rates)) == len(rates)


@pytest.mark.parametrize(("rate", "answers"), [(20.0, True), (600.0, True), (1500.0, False)])
def test_disaggregated_plans_answer_all_that_arrives_or_are_none(rate: float, *, answers: bool) -> None:
    asked = mixed_load(prompt=4096, output=512).model_copy(update={"concurrency": None, "request_rate_per_s": rate})
    case = scenario(small_model(part=moe(16)), "h100x16", asked)
    options = default_options(case)
    aggregated = judge(case, parse_strategy("ep16_tp1", 16), options, timing="estimated")
    assert isinstance(aggregated, Judged)
    found = disaggregated(case, options, aggregated)
    assert bool(found) is answers
    for judged in found:
        plan = evaluate(assemble(case, judged.pools, judged.options, "test", "0"), CALIBRATION).plan
        assert plan.projection is not None
        assert plan.projection.throughput_tokens_per_s == pytest.approx(rate * asked.output_tokens)


def test_where_no_single_pool_keeps_up_two_are_looked_at() -> None:
    cluster = load_cluster("h100x4")
    calibration = engine_calibration("sglang", "hopper", cluster.device.memory_bytes)
    lengths = {"input_tokens": 8192, "output_tokens": 256, "shortest_share": 0.8}
    load = Workload(name="rag", kind="mixed", request_rate_per_s=14.9, **lengths)
    case = Scenario(load_catalog_model("qwen3-30b-a3b"), cluster, load, "sglang", calibration)
    found = search(case, default_options(case))
    assert found.summary.num_fitting == 0, "no strategy of one pool answers so many"
    assert found.chosen.is_disaggregated
    assert found.chosen.projection.throughput_tokens_per_s == pytest.approx(14.9 * 256)


def test_of_plans_that_answer_all_that_arrives_the_one_with_the_quickest_requests_is_best() -> None:
    asked = mixed_load(prompt=4096, output=64).model_copy(update={"concurrency": None, "request_rate_per_s": 20.0})
    case = scenario(small_model(part=moe(16)), "h100x8", asked)
    ranking = search(case, default_options(case)).summary.ranking
    times = [(line.ttft_s or 0.0) + 63 * (line.tpot_s or 0.0) for line in ranking[:20]]
    assert times[0] == min(times)
    assert len({line.throughput_tokens_per_s_per_gpu for line in ranking[:20]}) == 1


def test_disaggregated_plans_tile_the_gpus_obey_little_and_share_their_options() -> None:
    case = scenario(small_model(), "h100x16", mixed_load(512, prompt=2048, output=64))
    result = search(case, default_options(case))
    split = [line for line in result.summary.ranking if line.mode == "disaggregated"]
    assert split
    for judged in disaggregated(case, default_options(case), result.chosen):
        plan = evaluate(assemble(case, judged.pools, judged.options, "split", "0"), case.calibration).plan
        prefill, decode = plan.pools
        assert (prefill.role, decode.role) == ("prefill", "decode")
        assert decode.first_rank == prefill.num_gpus
        assert plan.num_gpus == 16
        found = plan.projection
        assert found is not None
        assert found.ttft_s is not None
        assert found.tpot_s is not None
        finished = found.throughput_tokens_per_s / 64
        assert finished * (found.ttft_s + 63 * found.tpot_s) == pytest.approx(512)
        assert prefill.projection is not None
        assert finished * 2048 <= prefill.projection.throughput_tokens_per_s
        # what the search promised is what the simulation keeps, but for what overlap costs
        assert found.throughput_tokens_per_s == pytest.approx(judged.projection.throughput_tokens_per_s, rel=0.15)


@pytest.mark.parametrize(
    ("case", "options"),
    [
        (scenario(small_model(part=moe(512), num_layers=60), "h100x1", decode_load(64)), Options()),
        (scenario(small_model(part=moe(512), num_layers=60), "h100x1", training_load()), Options()),
        (
            scenario(
                small_model(GQA, DenseFeedForward(intermediate_size=16384), num_layers=600), "h100x1", prefill_load()
            ),
            Options(),
        ),
    ],
    ids=["decode", "training", "dense"],
)
def test_the_smallest_number_of_gpus_that_fits_is_the_smallest(case: Scenario, options: Options) -> None:
    case = replace(case, cluster=load_cluster("h100x64"))
    enough = smallest_fitting_gpus(case, options)
    assert enough is not None
    assert search(replace(case, cluster=resized(case.cluster, enough)), options).summary.num_fitting
    below = {1: None, 2: 1, 4: 2, 8: 4}.get(enough, enough - 8)
    if below:
        with pytest.raises(InputError, match=f"would is {enough}") as caught:
            search(replace(case, cluster=resized(case.cluster, below)), options)
        assert "does not fit" in str(caught.value)


def test_options_off_are_never_better_for_prefill() -> None:
    case = scenario(small_model(), "h100x16", prefill_load())
    options = default_options(case)
    best, bare = (search(case, each).chosen for each in (options, baseline_options(options)))
    assert standing(case, best.projection) >= standing(case, bare.projection)


@pytest.mark.parametrize("cluster", ["h100x1", "h100x2", "l40sx4", "gb200x36"])
def test_clusters_of_any_size_are_searched(cluster: str) -> None:
    for phase in PHASES:
        case = scenario(small_model(), cluster, LOADS[phase])
        result = search(case, default_options(case))
        assert sum(pool.num_gpus for pool in result.chosen.pools) == case.cluster.num_gpus


def test_requests_that_arrive_too_fast_are_the_cause_not_the_memory_they_fill() -> None:
    case = Scenario(
        load_catalog_model("mixtral-8x22b"), load_cluster("a100x16"), load_workload("rag"), "moiety", CALIBRATION
    )
    with pytest.raises(InputError, match=r"requests/s arrive faster than they are served; .* GPUs that would is 24"):
        search(case, default_options(case))
