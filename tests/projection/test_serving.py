"""Latencies of pools of workers: speculation, pools apart, offline runs."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moiety.calibration.engine_memory import EngineMemory
from moiety.calibration.serving import PREFILL_APART
from moiety.calibration.serving_catalog import load_serving
from moiety.projection.serving import (
    aggregated_latency,
    filled_prompt_s,
    group_load,
    offline_sequences,
    offline_throughput,
)
from moiety.projection.serving_apart import disaggregated_latency
from moiety.projection.serving_simulation import serving_engine, simulated_closed_loop
from moiety.projection.speculation import tokens_per_step
from moiety.sim.arrivals import Lengths, poisson
from moiety.sim.serving import simulate_serving
from moiety.validation.predict import ServingPredictor
from moiety.validation.serving_case import serving_case
from moiety.validation.serving_row import ServingRow

if TYPE_CHECKING:
    from moiety.projection.serving_pool import ServingPool

ROW: dict[str, Any] = {
    "id": "r",
    "model": "deepseek-ai/DeepSeek-V3",
    "system": "gb200",
    "backend": "trtllm",
    "backend_version": "1.2.0",
    "precision": "fp8",
    "mode": "disagg",
    "isl": 1024,
    "osl": 256,
    "concurrency": 64,
    "prefill": {"workers": 2, "tp": 8, "moe_ep": 8},
    "decode": {"workers": 2, "tp": 8, "moe_ep": 8},
    "draft_tokens": 0,
    "measured": {},
}


@pytest.fixture(scope="module")
def pools() -> tuple[ServingPool, ServingPool]:
    case = serving_case(ServingRow.model_validate(ROW))
    predictor = ServingPredictor()
    return predictor.pool(case, case.prefill), predictor.pool(case, case.decode)


def with_lengths(pool: ServingPool, shortest_share: float) -> ServingPool:
    work = pool.workload.model_copy(update={"shortest_share": shortest_share})
    return replace(pool, scenario=replace(pool.scenario, workload=work))


@given(draft_tokens=st.integers(0, 20), acceptance=st.floats(0, 0.99))
def test_a_sequence_advances_by_what_is_right_of_its_guesses(draft_tokens: int, acceptance: float) -> None:
    tokens = tokens_per_step(draft_tokens, acceptance)
    assert 1 <= tokens <= min(draft_tokens + 1, 1 / (1 - acceptance)) * (1 + 1e-9)


def test_guesses_cost_time_and_pay_only_where_they_are_right(pools: tuple[ServingPool, ServingPool]) -> None:
    prefill, decode = pools
    guessing = replace(decode, draft_tokens=3)
    assert decode.step_s(0, 8, 1000) < guessing.step_s(0, 8, 1000) < 4 * decode.step_s(0, 8, 1000)
    assert guessing.step_s(4096, 0, 0) == decode.step_s(4096, 0, 0)
    plain = disaggregated_latency(prefill, decode, 16, PREFILL_APART).tpot_s
    assert disaggregated_latency(prefill, replace(guessing, acceptance=0.9), 16, PREFILL_APART).tpot_s < plain
    assert disaggregated_latency(prefill, replace(guessing, acceptance=0.0), 16, PREFILL_APART).tpot_s > plain


def test_who_finds_no_slot_waits_for_one(pools: tuple[ServingPool, ServingPool]) -> None:
    prefill, decode = pools
    free, limited = (
        disaggregated_latency(prefill, replace(decode, max_sequences=most), 64, PREFILL_APART) for most in (32, 16)
    )
    assert group_load(replace(decode, max_sequences=16), 64).running == 16
    assert limited.tpot_s < free.tpot_s
    # as long as an answer, but for one request in twenty (a run begins with empty slots), and longer where the prompt
    # takes its time too: yet the two do not add up
    assert 0.95 * 255 * limited.tpot_s < limited.ttft_s < free.ttft_s + 255 * limited.tpot_s


def test_a_prompt_alone_in_its_worker_has_the_experts_of_all_ranks(pools: tuple[ServingPool, ServingPool]) -> None:
    prefill = pools[0]
    strategy = prefill.strategy.model_copy(update={"tp": 1, "attn_dp": prefill.strategy.gpus_per_instance})
    parallel = replace(prefill, strategy=strategy)
    assert parallel.prompt_alone_s(8192) < 0.8 * parallel.step_s(8192, 0, 0)
    whole = replace(prefill, strategy=prefill.strategy.model_copy(update={"tp": 8, "attn_dp": 1}))
    assert whole.prompt_alone_s(8192) == whole.step_s(8192, 0, 0)


def test_few_workers_for_prompts_make_a_queue(pools: tuple[ServingPool, ServingPool]) -> None:
    prefill, decode = pools
    several = [prefill.strategy.model_copy(update={"instances": count}) for count in (1, 4, 64)]
    waits = [
        disaggregated_latency(replace(prefill, strategy=strategy), decode, 2000, PREFILL_APART).ttft_s
        for strategy in several
    ]
    assert waits[0] > 2 * waits[1] > 2 * waits[2]


def test_groups_that_step_as_one_see_the_prompts_of_the_others(pools: tuple[ServingPool, ServingPool]) -> None:
    def tpot_s(groups: int, unshared: float) -> float:
        overheads = pools[1].overheads.model_copy(update={"unshared_prefill": unshared})
        strategy = pools[1].strategy.model_copy(update={"tp": 8 // groups, "attn_dp": groups})
        return aggregated_latency(replace(pools[1], strategy=strategy, overheads=overheads), 64).tpot_s

    assert tpot_s(1, 0.5) == tpot_s(1, 0.0)
    assert tpot_s(8, 0.0) < tpot_s(8, 0.5) < tpot_s(8, 1.0)


@pytest.mark.parametrize("model", ["openai/gpt-oss-120b", "deepseek-ai/DeepSeek-V3"])
def test_an_engine_that_keeps_all_tokens_holds_fewer_sequences_with_windows(model: str) -> None:
    row = ROW | {
        "model": model,
        "precision": "fp4",
        "prefill": None,
        "decode": None,
        "mode": "agg",
        "tp": 8,
        "moe_ep": 8,
    }
    case = serving_case(ServingRow.model_validate(row))
    pool = ServingPredictor().pool(case, case.decode)
    few, many = (
        replace(pool, scheduling=replace(pool.scheduling, keeps_all_tokens=each)).capacity() for each in (True, False)
    )
    # half of the layers of gpt-oss see a window, which is short beside a prompt and its answer
    assert many / few == pytest.approx(1.8 if "gpt-oss" in model else 1.0, abs=0.05)


def test_an_engine_that_keeps_whole_sequences_free_holds_fewer(pools: tuple[ServingPool, ServingPool]) -> None:
    work = pools[1].workload
    few, many = (replace(pools[1], scheduling=replace(pools[1].scheduling, keeps_whole=each)) for each in (True, False))
    assert few.capacity() == many.capacity(work.input_tokens + work.output_tokens) < many.capacity()


def test_what_a_sequence_waits_out_of_the_cache_is_no_wait_for_its_first_token(
    pools: tuple[ServingPool, ServingPool],
) -> None:
    pool = replace(pools[1], memory=EngineMemory(0.9, 0.0))
    work = pool.workload.model_copy(update={"input_tokens": 100, "output_tokens": 10_000})
    pool = replace(pool, scenario=replace(pool.scenario, workload=work))
    crowded = round(1.5 * pool.capacity() * pool.num_groups)
    foreseen, not_foreseen = (
        aggregated_latency(replace(pool, scheduling=replace(pool.scheduling, foresees_growth=foresees)), crowded)
        for foresees in (True, False)
    )
    assert not_foreseen.ttft_s < foreseen.ttft_s
    assert not_foreseen.tpot_s > foreseen.tpot_s
    waits = [each.ttft_s + 10_000 * each.tpot_s for each in (foreseen, not_foreseen)]
    assert waits[1] == pytest.approx(waits[0], rel=1e-9)


def test_workers_that_agree_before_a_prompt_is_computed_hand_it_over_later() -> None:
    apart = load_serving().apart
    for groups in (1, 4):
        once_s = apart.request_s("tensorrt-llm", groups)
        assert once_s == pytest.approx(apart.handover_overhead_s + (groups - 1) * apart.group_overhead_s)
        assert apart.request_s("vllm", groups) == once_s
        assert apart.request_s("sglang", groups) == pytest.approx(apart.handshake_rounds * once_s)
    assert apart.handshake_rounds > 1
    assert apart.request_s("vllm", 64) == apart.request_s("vllm", 16), "no more groups were measured"


def test_steps_of_prompts_that_are_captured_lose_their_launches(pools: tuple[ServingPool, ServingPool]) -> None:
    eager = pools[1]
    captured, overheads = replace(eager, captured_prompts=True), eager.overheads
    saved_s = eager.step_s(1024, 8, 1000) - captured.step_s(1024, 8, 1000)
    launches = saved_s / (overheads.eager_gap_s - overheads.op_gap_s)
    assert launches == pytest.approx(round(launches), abs=1e-6)
    assert launches > 10 * eager.model.num_layers
    assert captured.step_s(0, 8, 1000) == eager.step_s(0, 8, 1000)


def test_prompts_that_wait_together_fill_steps(pools: tuple[ServingPool, ServingPool]) -> None:
    filled = pools[1]
    alone = replace(filled, step_tokens=filled.workload.input_tokens)
    load = group_load(alone, 64)
    assert filled_prompt_s(alone, load) == pytest.approx(load.prefill_s * load.chunks), "whole steps: none is cut"
    cut = replace(alone, scheduling=replace(alone.scheduling, takes_whole_prompts=False))
    assert filled_prompt_s(cut, load) == pytest.approx(load.added_s * load.chunks)
    assert filled_prompt_s(filled, load) < 0.9 * filled_prompt_s(alone, load)
    assert aggregated_latency(filled, 64).ttft_s < aggregated_latency(alone, 64).ttft_s
    assert aggregated_latency(filled, 64).tpot_s == aggregated_latency(alone, 64).tpot_s
    simulated = [simulated_closed_loop(pool, 64, requests_per_sequence=2).ttft.mean for pool in (filled, alone)]
    assert simulated[0] < simulated[1]


def test_answers_of_one_length_keep_prompts_together(pools: tuple[ServingPool, ServingPool]) -> None:
    drawn = pools[1]
    overheads = drawn.overheads.model_copy(update={"convoy": 9.0})
    drawn, equal = (with_lengths(replace(drawn, overheads=overheads), share) for share in (0.8, 1.0))
    added_s = [aggregated_latency(equal, n).ttft_s - aggregated_latency(drawn, n).ttft_s for n in (2, 10, 64, 128)]
    prompt_s = [filled_prompt_s(drawn, group_load(drawn, n)) for n in (2, 10, 64, 128)]
    # two workers: one sequence each waits for nobody, five for two others, and more for no more than four; all of them
    # for a part of the first batch that grows with it
    mates = [0, 2, 4, 4]
    first = [overheads.burst_growth / 64 * sequences**2 for sequences in (1, 5, 32, 64)]
    expected = [sum(each) for each in zip(mates, first, strict=True)]
    prompts = [s / (overheads.interference * each) for s, each in zip(added_s, prompt_s, strict=True)]
    assert prompts == pytest.approx(expected)
    assert aggregated_latency(equal, 64).tpot_s == aggregated_latency(drawn, 64).tpot_s


@pytest.mark.parametrize(("isl", "osl", "concurrency"), [(2048, 128, 64), (1024, 512, 64), (16384, 64, 8)])
def test_in_lockstep_closed_form_and_simulation_agree(isl: int, osl: int, concurrency: int) -> None:
    row = ROW | {"model": "Qwen/Qwen3-32B", "system": "h100_sxm", "backend": "sglang", "backend_version": "0.5.1.post1"}
    row |= {"precision": None, "mode": "agg", "isl": isl, "osl": osl, "concurrency": concurrency}
    case = serving_case(ServingRow.model_validate(row | {"prefill": None, "decode": None, "tp": 4, "num_gpus": 4}))
    pool = ServingPredictor().pool(case, case.decode)
    # what is measured of an engine beside its steps, left out of both
    plain = {"interference": 1.0, "prefill_slowdown": 1.0, "concurrency_overhead_s": 0.0, "wait": 1.0}
    pool = replace(pool, overheads=pool.overheads.model_copy(update=plain))
    assert pool.in_lockstep
    closed = aggregated_latency(pool, concurrency)
    simulated = simulated_closed_loop(pool, concurrency, requests_per_sequence=10)
    assert closed.ttft_s == pytest.approx(simulated.ttft.mean, rel=0.05)
    assert closed.tpot_s == pytest.approx(simulated.tpot.mean, rel=0.05)
    drawn = aggregated_latency(with_lengths(pool, 0.8), concurrency)
    assert abs(drawn.ttft_s / simulated.ttft.mean - 1) > 0.3


@pytest.mark.parametrize("backend", ["vllm", "sglang"])
@pytest.mark.parametrize(
    ("isl", "osl", "busy"), [(8192, 256, 0.2), (8192, 256, 0.6), (1024, 512, 0.3), (16384, 64, 0.3), (16384, 512, 0.5)]
)
def test_at_a_rate_closed_form_and_simulation_agree(backend: str, isl: int, osl: int, busy: float) -> None:
    row = ROW | {"model": "Qwen/Qwen3-32B", "system": "h100_sxm", "backend": backend, "backend_version": None}
    row |= {"precision": None, "mode": "agg", "isl": isl, "osl": osl, "concurrency": 64}
    case = serving_case(ServingRow.model_validate(row | {"prefill": None, "decode": None, "tp": 4, "num_gpus": 4}))
    pool = ServingPredictor().pool(case, case.decode)
    # what is measured of an engine beside its steps, left out of both
    plain = {"interference": 1.0, "prefill_slowdown": 1.0, "concurrency_overhead_s": 0.0, "wait": 1.0}
    pool = replace(pool, overheads=pool.overheads.model_copy(update=plain), memory=None)
    rate = busy / (pool.step_s(min(isl, 8192), 1, isl) * max(isl / 8192, 1))
    work = pool.workload.model_copy(update={"concurrency": None, "request_rate_per_s": rate, "shortest_share": 0.8})
    pool = replace(pool, scenario=replace(pool.scenario, workload=work))
    in_flight = 1.0
    for _ in range(20):
        closed = aggregated_latency(pool, round(in_flight))
        in_flight = rate * (closed.ttft_s + osl * closed.tpot_s)
    requests = poisson(rate, Lengths(isl, osl, 0.8), count=4000)
    simulated = simulate_serving(serving_engine(pool), requests)
    assert closed.ttft_s == pytest.approx(simulated.ttft.mean, rel=0.2)
    assert closed.tpot_s == pytest.approx(simulated.tpot.mean, rel=0.2)


def test_a_run_without_warm_up_waits_once_its_start_fills_a_step(pools: tuple[ServingPool, ServingPool]) -> None:
    warm = pools[1]
    cold = replace(warm, cold_tokens=16 * warm.workload.input_tokens)
    added_s = [aggregated_latency(cold, n).ttft_s - aggregated_latency(warm, n).ttft_s for n in (30, 32, 256)]
    assert added_s[0] == 0
    expected = warm.overheads.cold_fp4_step_s if warm.options.dtypes.experts == "fp4" else warm.overheads.cold_step_s
    assert added_s[1:] == pytest.approx([expected, expected])


@pytest.mark.parametrize("backend", ["vllm", "sglang", "trtllm"])
@pytest.mark.parametrize("osl", [1, 2, 4])
def test_no_more_prompts_are_answered_than_are_computed(backend: str, osl: int) -> None:
    row = ROW | {"model": "Qwen/Qwen3-32B", "system": "h100_sxm", "backend": backend, "backend_version": None}
    row |= {"precision": None, "mode": "agg", "isl": 8192, "osl": osl, "concurrency": 128}
    case = serving_case(ServingRow.model_validate(row | {"prefill": None, "decode": None, "tp": 4, "num_gpus": 4}))
    pool = replace(ServingPredictor().pool(case, case.decode), memory=None)
    pool = replace(pool, overheads=pool.overheads.model_copy(update={"interference": 1.0}))
    for concurrency in (1, 8, 128, 1000):
        latency = aggregated_latency(pool, concurrency)
        request_s = latency.ttft_s + (osl - 1) * latency.tpot_s
        computed_s = concurrency * filled_prompt_s(pool, group_load(pool, concurrency))
        assert request_s >= computed_s * (1 - 1e-9)


@pytest.mark.parametrize("backend", ["vllm", "sglang", "trtllm"])
def test_a_request_alone_waits_for_no_other_s_prompt_however_short_its_answer(backend: str) -> None:
    row = ROW | {"model": "Qwen/Qwen3-32B", "system": "h100_sxm", "backend": backend, "backend_version": None}
    row |= {"precision": None, "mode": "agg", "isl": 8192, "concurrency": 1, "prefill": None, "decode": None}

    def ttft_s(osl: int) -> float:
        case = serving_case(ServingRow.model_validate(row | {"osl": osl, "tp": 4, "num_gpus": 4}))
        return aggregated_latency(ServingPredictor().pool(case, case.decode), 1).ttft_s

    assert [ttft_s(osl) for osl in (1, 2, 16)] == pytest.approx([ttft_s(512)] * 3, rel=0.1)


@pytest.mark.parametrize("concurrency", [1, 4, 16])
def test_a_first_token_comes_when_its_prompt_is_through_the_pipeline(concurrency: int) -> None:
    row = ROW | {"model": "Qwen/Qwen3-32B", "system": "h100_sxm", "backend": "vllm", "precision": None, "mode": "agg"}
    row |= {"backend_version": None, "isl": 8192, "osl": 256, "prefill": None, "decode": None, "tp": 4, "num_gpus": 4}
    case = serving_case(ServingRow.model_validate(row))
    pool = with_lengths(ServingPredictor().pool(case, case.decode), 0.8)
    plain = {"interference": 1.0, "prefill_slowdown": 1.0, "request_overhead_s": 0.0, "concurrency_overhead_s": 0.0}
    overheads = pool.overheads.model_copy(update=plain)
    for tp, pp in ((4, 1), (2, 2), (1, 4)):
        piped = replace(
            pool, strategy=pool.strategy.model_copy(update={"tp": tp, "pp": pp, "etp": tp}), overheads=overheads
        )
        alone_s = piped.step_s(8192, 0, 0)
        assert aggregated_latency(piped, concurrency).ttft_s >= alone_s
        simulated = simulated_closed_loop(piped, concurrency).ttft
        assert simulated.quantile(0.01) >= 0.75 * alone_s, "of the shortest prompts"


def test_workers_with_as_much_to_do_are_as_fast_however_many_there_are(pools: tuple[ServingPool, ServingPool]) -> None:
    one, many = (
        replace(pools[1], strategy=pools[1].strategy.model_copy(update={"instances": count})) for count in (1, 2048)
    )
    assert one.overheads.concurrency_overhead_s > 0
    assert aggregated_latency(many, 32 * 2048) == aggregated_latency(one, 32)


def test_an_offline_run_takes_whole_waves(pools: tuple[ServingPool, ServingPool]) -> None:
    decode = replace(pools[1], max_sequences=100)
    assert offline_sequences(decode) == 100
    assert offline_sequences(decode, 200) == 100
    assert offline_sequences(decode, 300) == 75
    assert offline_sequences(decode, 20) == 10
    assert offline_throughput(decode, 20) < offline_throughput(decode, 300) < offline_throughput(decode)
