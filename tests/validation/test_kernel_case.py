"""Rows of kernels: general forms give the work of what they name, and what is missing is named."""

from __future__ import annotations

from typing import Any

import pytest

from moiety.graph.op import AttentionCore, Gemm
from moiety.validation.kernel_case import kernels_of
from moiety.validation.skipped import SkippedRow
from moiety.validation.system_case import predict_system
from moiety.validation.system_row import SystemRow


def _row(model: str, metrics: dict[str, Any], **fields: object) -> SystemRow:
    given = {"id": "1", "kind": "kernel", "hardware": "H800", "model": model, "metrics": metrics, "phase": "kernel"}
    return SystemRow.model_validate(given | fields)


@pytest.mark.parametrize(
    ("model", "flops", "isl", "batch"),
    [
        ("FA3 MLA prefill h128", 1024 * 1025 * 128 * 320, 1024, "1"),
        ("GQA prefill 32q/8kv d128", 2 * 1024 * 1025 * 32 * 256, 1024, "2"),
        ("attention fwd B4 H16 S4096 D128", 4 * 4 * 16 * 4096**2 * 128, 4096, None),
        ("attention fwd causal B4 H16/2 S4096 D128", 2 * 4 * 16 * 4096 * 4097 * 128, 4096, None),
        ("FA3 MLA bwd causal s=4096 h=128 d=192/128", 2.5 * 4096 * 4097 * 128 * 320, 4096, "4096 tok"),
    ],
)
def test_attention_over_prompts_is_read_in_all_its_forms(model: str, flops: float, isl: int, batch: str | None) -> None:
    row = _row(model, {"us": 1.0}, isl=isl, batch=batch)
    (kernel,) = kernels_of(row)
    assert isinstance(kernel.work, AttentionCore)
    assert kernel.work.flops == pytest.approx(flops)
    assert kernel.forward is ("bwd" not in model)
    predicted = predict_system(row)
    assert predicted["tflops"] == pytest.approx(1e-6 * flops / predicted["us"])


def test_groups_whose_rows_are_drawn_are_empty_where_they_round_to_nothing() -> None:
    row = _row("grouped GEMM 256 experts h7168 i2048 (decode)", {"tokens_per_expert": 1, "up_us": 1, "down_us": 1})
    up, down = kernels_of(row)
    assert isinstance(up.work, Gemm)
    assert isinstance(down.work, Gemm)
    assert (up.work.groups, up.work.n, up.work.k) == (pytest.approx(128), 4096, 7168)
    assert (down.work.n, down.work.k, down.kind) == (7168, 2048, "grouped_gemm_decode")
    (masked,) = kernels_of(_row("grouped GEMM G4 M256/grp N4096 K7168 (masked)", {"tflops": 1.0}))
    assert isinstance(masked.work, Gemm)
    assert (masked.work.groups, masked.work.m, masked.even_rows) == (4, 1024, True)


def test_a_layer_in_one_kernel_takes_less_than_in_several() -> None:
    fields = {"precision": "fp8", "parallel": {"ep": 8}, "batch": "512 tok/GPU"}
    layer = predict_system(_row("DSV4-Pro MoE layer", {"megamoe_us": 1.0}, **fields))
    sized = predict_system(_row("any (384e top6 h7168 i3072)", {"megamoe_us": 1.0}, **fields))
    assert layer == sized
    assert 0 < layer["megamoe_us"] < layer["deepep_ht_plus_gemm_us"]


@pytest.mark.parametrize(
    ("model", "fields", "said"),
    [
        ("GQA prefill 32q/8kv d128", {"batch": "1"}, "length of the sequences"),
        ("attention fwd B4 S4096", {}, "heads"),
        ("FA3 fwd peak", {}, "peak"),
        ("FlashMLA sparse prefill", {}, "sparse"),
        ("DSV4-Pro MoE layer", {"precision": "fp8"}, "mixture's layer"),
        ("DeepEP internode combine bf16", {"source": "deepseek-ai/profile-data:train.json"}, "waits"),
        ("unheard of", {}, "unheard of"),
    ],
)
def test_what_is_missing_is_named(model: str, fields: dict[str, Any], said: str) -> None:
    with pytest.raises(SkippedRow, match=said):
        predict_system(_row(model, {"us": 1.0}, **fields))
