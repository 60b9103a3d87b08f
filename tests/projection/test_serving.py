"""Latencies of pools of workers: speculation, pools apart, offline runs."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moiety.projection.serving import disaggregated_latency, offline_sequences, offline_throughput
from moiety.projection.speculation import tokens_per_step
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


@given(draft_tokens=st.integers(0, 20), acceptance=st.floats(0, 0.99))
def test_a_sequence_advances_by_what_is_right_of_its_guesses(draft_tokens: int, acceptance: float) -> None:
    tokens = tokens_per_step(draft_tokens, acceptance)
    assert 1 <= tokens <= min(draft_tokens + 1, 1 / (1 - acceptance)) * (1 + 1e-9)


def test_guesses_cost_time_and_pay_only_where_they_are_right(pools: tuple[ServingPool, ServingPool]) -> None:
    prefill, decode = pools
    guessing = replace(decode, draft_tokens=3)
    assert decode.step_s(0, 8, 1000) < guessing.step_s(0, 8, 1000) < 4 * decode.step_s(0, 8, 1000)
    assert guessing.step_s(4096, 0, 0) == decode.step_s(4096, 0, 0)
    plain = disaggregated_latency(prefill, decode, 16).tpot_s
    assert disaggregated_latency(prefill, replace(guessing, acceptance=0.9), 16).tpot_s < plain
    assert disaggregated_latency(prefill, replace(guessing, acceptance=0.0), 16).tpot_s > plain


def test_who_finds_no_slot_waits_for_one(pools: tuple[ServingPool, ServingPool]) -> None:
    prefill, decode = pools
    free, limited = (disaggregated_latency(prefill, replace(decode, max_sequences=most), 64) for most in (32, 16))
    assert limited.running == 16
    assert limited.tpot_s < free.tpot_s
    assert limited.ttft_s > free.ttft_s + 0.9 * 255 * limited.tpot_s


def test_few_workers_for_prompts_make_a_queue(pools: tuple[ServingPool, ServingPool]) -> None:
    prefill, decode = pools
    waits = [disaggregated_latency(replace(prefill, num_workers=count), decode, 2000).ttft_s for count in (1, 4, 64)]
    assert waits[0] > 2 * waits[1] > 2 * waits[2]


def test_an_offline_run_takes_whole_waves(pools: tuple[ServingPool, ServingPool]) -> None:
    decode = replace(pools[1], max_sequences=100)
    assert offline_sequences(decode) == 100
    assert offline_sequences(decode, 200) == 100
    assert offline_sequences(decode, 300) == 75
    assert offline_sequences(decode, 20) == 10
    assert offline_throughput(decode, 20) < offline_throughput(decode, 300) < offline_throughput(decode)
