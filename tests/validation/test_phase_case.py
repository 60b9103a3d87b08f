"""Rows of one phase by itself, of limits of transfers, and the reasons of those that are not predicted."""

from __future__ import annotations

from typing import Any

import pytest

from moiety.validation.phase_case import phase_case
from moiety.validation.skipped import SkippedRow
from moiety.validation.system_case import predict_system
from moiety.validation.system_row import SystemRow

PREFILL: dict[str, Any] = {
    "id": "1",
    "kind": "e2e",
    "source": "lm-sys/blog",
    "hardware": "H100 SXM",
    "n_gpus": 16,
    "model": "DeepSeek-V3",
    "precision": "fp8",
    "parallel": {"tp": 1, "ep": 16, "attn_dp": 16},
    "phase": "prefill",
    "isl": 2048,
    "batch": "8192 tok/GPU",
    "metrics": {"input_tok_s_per_gpu": 1.0},
}


def _predicted(**changed: object) -> dict[str, float]:
    return predict_system(SystemRow.model_validate(PREFILL | changed))


def test_a_phase_states_the_same_rate_in_all_its_units() -> None:
    found = _predicted()
    assert found["input_tok_s_per_node"] == pytest.approx(8 * found["input_tok_s_per_gpu"])
    assert found["input_tok_s_per_instance"] == pytest.approx(16 * found["input_tok_s_per_gpu"])
    assert _predicted(batch=None)["input_tok_s_per_gpu"] == found["input_tok_s_per_gpu"]


def test_longer_prompts_are_slower() -> None:
    rates = [_predicted(isl=tokens)["input_tok_s_per_gpu"] for tokens in (2048, 4096, 8192)]
    assert rates == sorted(set(rates), reverse=True)


def test_ranks_have_even_work_whatever_is_said_of_their_balance() -> None:
    assert _predicted(notes="default expert distribution") == _predicted(notes="simulated perfect EPLB") == _predicted()


def test_the_format_of_attention_is_that_of_its_cache_not_of_its_projections() -> None:
    assert _predicted(precision="bf16 attn + fp8 moe") == _predicted(precision="fp8")
    decode = {"phase": "decode", "batch": "256 req/GPU"}
    wide, narrow = (
        _predicted(**decode, precision=f"{each} attn + fp8 moe")["output_tok_s_per_gpu"] for each in ("bf16", "fp8")
    )
    assert narrow > wide


@pytest.mark.parametrize("ranks", [8, 12, 24, 72, 144, 320])
def test_every_rank_holds_as_many_experts_by_the_fewest_copies(ranks: int) -> None:
    case, _ = phase_case(SystemRow.model_validate(PREFILL | {"n_gpus": ranks, "parallel": {"ep": ranks}}))
    assert case.model.moe is not None
    copies = case.options.redundant_experts
    assert (case.model.moe.num_experts + copies) % ranks == 0
    assert 0 <= copies < ranks


def test_ranks_that_hold_fewer_experts_are_faster_also_where_some_of_them_are_copies() -> None:
    decode = {"phase": "decode", "batch": "64 req/GPU"}
    rates = [
        _predicted(**decode, n_gpus=ranks, parallel={"ep": ranks})["output_tok_s_per_gpu"]
        for ranks in (16, 24, 32)  # whole nodes; 16, 11 and 8 experts a rank
    ]
    assert rates == sorted(set(rates))


def test_the_largest_all_reduce_is_faster_where_the_switch_reduces() -> None:
    comm = {"kind": "comm", "phase": "comm", "n_gpus": 8, "metrics": {"busbw_GBps": 1.0}}
    reduced = _predicted(**comm, model="all_reduce single node")["busbw_GBps"]
    assert reduced > _predicted(**comm, model="ring/other ops")["busbw_GBps"] > 100


def test_timing_from_the_host_lengthens_small_collectives_of_a_benchmark_and_large_ones_hardly() -> None:
    def both(size: float) -> tuple[float, float]:
        comm = {"kind": "comm", "phase": "comm", "n_gpus": 2, "model": "all_reduce", "hardware": "h100_dgx"}
        comm |= {"metrics": {"bytes": size, "us": 1.0}}
        timed, plain = (_predicted(**comm, source=source)["us"] for source in ("microsoft/vidur:data", "somebody"))
        return timed, plain

    timed, plain = both(2048.0)
    assert timed > 2 * plain
    timed, plain = both(2.0**28)
    assert plain < timed < 1.02 * plain


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"notes": "24h production average"}, "average"),
        ({"phase": "decode", "batch": None}, "in flight"),
        ({"isl": None}, "length"),
        ({"source": "somebody"}, "engine"),
        ({"parallel": {"tp": 16}}, "ranks"),
        ({"phase": "mixed", "source": "mlcommons/results", "batch": "Offline"}, "MLPerf"),
        ({"phase": "mixed", "batch": "300 ShareGPT requests"}, "ShareGPT"),
        ({"phase": "mixed", "batch": "8 req/GPU (concurrency 64)"}, "release"),
        ({"phase": "ablation"}, "ratios"),
        ({"phase": "mixed", "batch": "some"}, "batch 'some'"),
        ({"kind": "latency"}, "link"),
        ({"kind": "overlap"}, "DualPipe"),
        ({"kind": "comm", "model": "unheard"}, "unheard"),
    ],
)
def test_reasons_name_what_is_missing(changed: dict[str, object], said: str) -> None:
    with pytest.raises(SkippedRow, match=said):
        _predicted(**changed)
