"""Offline rows: what is read where a table's label divides the experts alone."""

from __future__ import annotations

from typing import Any

import pytest

from moiety.validation.offline_case import as_closed_loop, predict_offline
from moiety.validation.skipped import SkippedRow
from moiety.validation.system_row import SystemRow

PAGE = "NVIDIA/TensorRT-LLM:docs/source/performance/perf-overview.md"


def _row(**changes: object) -> SystemRow:
    row: dict[str, Any] = {
        "id": "o",
        "kind": "e2e",
        "source": PAGE,
        "hardware": "H200",
        "n_gpus": 8,
        "model": "Qwen3-235B-A22B",
        "precision": "fp8",
        "parallel": {"tp": 8, "ep": None},
        "phase": "mixed",
        "isl": 1000,
        "osl": 1000,
        "batch": "max load (all requests queued)",
        "metrics": {"output_tok_s_total": 23789.0},
    }
    return SystemRow.model_validate(row | changes)


def test_a_mixture_labelled_by_tp_runs_with_the_attention_of_its_page() -> None:
    loop = as_closed_loop(_row())
    assert (loop.tp, loop.attention_dp, loop.moe_tp, loop.moe_ep) == (1, 8, 8, 1)
    told = {"tp": 1, "dp": 8, "moe_tp": 8, "ep": 1}
    assert predict_offline(_row()) == predict_offline(_row(parallel=told))


def test_a_dense_model_has_the_degrees_of_its_label() -> None:
    loop = as_closed_loop(_row(model="Llama-3.3-70B", parallel={"tp": 8}))
    assert (loop.tp, loop.attention_dp) == (8, 1)


def test_a_label_without_such_a_page_leaves_the_experts_open() -> None:
    with pytest.raises(SkippedRow, match="how the experts are divided"):
        predict_offline(_row(source="somebody's table"))
