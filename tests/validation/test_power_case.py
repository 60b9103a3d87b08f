"""The law of power on measured runs: how a run's time divides, and what a fit makes of rows that follow the law."""

from __future__ import annotations

from dataclasses import replace

import pytest

from moiety.calibration.catalog import load_calibration
from moiety.validation.fit_power import Powered, fitted
from moiety.validation.power_case import power_point, predict_power
from moiety.validation.system_row import SystemRow

LAW = load_calibration().power


def row(rate: float, *, hardware: str = "H100", batch: int = 64, itl_ms: float = 20.0) -> SystemRow:
    return SystemRow.model_validate(
        {
            "id": f"{hardware}-{batch}-{itl_ms}",
            "kind": "energy",
            "hardware": hardware,
            "n_gpus": 1,
            "model": "Qwen/Qwen3-30B-A3B-Instruct-2507",
            "precision": "bfloat16",
            "parallel": {"attn_tp": 1, "ep": 1, "dp": 1, "moe_tp": 1},
            "phase": "mixed",
            "osl": 500,
            "batch": batch,
            "metrics": {"output_tok_s_total": rate, "median_itl_ms": itl_ms, "gpu_power_W_per_gpu": 500.0},
        }
    )


def test_time_beyond_the_median_step_is_spent_on_prompts_at_the_power_limit() -> None:
    decoding, half = power_point(row(3200.0)), power_point(row(1600.0))
    assert decoding.prompt_share == pytest.approx(0)
    assert half.prompt_share == pytest.approx(0.5)
    assert half.mfu == decoding.mfu
    watts = predict_power(row(1600.0))["gpu_power_W_per_gpu"]
    assert watts == pytest.approx((predict_power(row(3200.0))["gpu_power_W_per_gpu"] + 700) / 2)


def test_fp8_in_blocks_computes_on_the_padding_of_its_tiles() -> None:
    def busy(model: str, batch: int) -> float:
        update = {"model": model, "precision": "fp8"}
        return power_point(row(3200.0, batch=batch).model_copy(update=update)).mfu

    blocks, rows_of_scales = "Qwen/Qwen3-30B-A3B-Instruct-2507-FP8", "meta-llama/Llama-4-Scout-17B-16E-Instruct-FP8"
    plain = power_point(row(3200.0, batch=8)).mfu
    # 8 tokens go to some 51 of 128 experts, which compute 64 rows each for the 64 that there are
    assert 10 * plain < busy(blocks, 8) < 64 * plain
    assert busy(rows_of_scales, 16) == pytest.approx(2 * busy(rows_of_scales, 8))
    assert busy(blocks, 8192) / 1024 < 2 * plain


def test_a_flop_in_fp8_takes_half_of_the_peak_that_one_in_bf16_does() -> None:
    wide = row(3200.0).model_copy(update={"model": "meta-llama/Llama-3.1-8B-Instruct"})
    narrow = wide.model_copy(update={"precision": "fp8"})
    assert power_point(narrow).mfu == pytest.approx(power_point(wide).mfu / 2, rel=1e-3)
    assert power_point(narrow).mbu < power_point(wide).mbu


def test_a_fit_finds_the_law_that_made_the_rows() -> None:
    rows = list[Powered]()
    for batch, itl_ms in ((1, 5.0), (4, 6.0), (16, 12.0), (64, 14.0), (64, 60.0), (256, 30.0), (256, 90.0)):
        each = row(batch / itl_ms * 1e3, batch=batch, itl_ms=itl_ms)
        rows.append(Powered(each, power_point(each), 0.0))
        rows.append(Powered(each, replace(rows[-1].point, is_moe=False), 0.0))
    rows = [replace(each, measured_w=each.point.power_w(LAW)) for each in rows]
    found = fitted(LAW, rows)
    for each in rows:
        assert each.point.power_w(found) == pytest.approx(each.measured_w, rel=0.02)
    assert found.of("blackwell") == LAW.of("blackwell"), "no row speaks of it"
