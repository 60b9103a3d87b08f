"""Model FLOPs as publishers count them: their rows state tokens and FLOPs a second, whose ratio is the count."""

from __future__ import annotations

from typing import Any

import pytest

from moiety.validation.published_flops import MEGATRON_2025, MEGATRON_2026, convention_of, published_flops_per_token
from moiety.validation.system_row import SystemRow
from moiety.validation.training_case import training_run
from tests.scenarios import small_model

ARCHIVE = "NVIDIA-NeMo/Megatron-Bridge:docs/performance-summary-archive.md"
ROUNDED = 0.003
"""Figures are published to three digits or more."""


def _row(model: str, release: str, **changes: object) -> SystemRow:
    row: dict[str, Any] = {
        "id": "t",
        "kind": "e2e",
        "source": f"{ARCHIVE} [{release} NeMo Container]",
        "hardware": "DGX-GB300",
        "n_gpus": 64,
        "model": model,
        "precision": "MXFP8",
        "parallel": {"tp": 1, "pp": 1, "vp": None, "ep": 8},
        "phase": "training",
        "isl": 4096,
        "batch": "GBS 1280 MBS 1",
        "metrics": {},
    }
    return SystemRow.model_validate(row | changes)


@pytest.mark.parametrize(
    ("model", "release", "tokens", "tflops", "changes"),
    [
        ("GPT OSS 120B", "26.04", 19275, 524, {}),  # windows and its gate do not count
        ("GPT OSS 120B", "26.06", 33166, 1081, {}),
        ("DeepSeekV3 (w/o MTP)", "25.11", 4357, 1088, {"batch": "GBS 256 MBS 1"}),
        ("Nemotron_3_Nano", "26.06", 39749, 885.8, {"isl": 8192}),  # Mamba-2 at twice the model's width
        ("Nemotron_3_Super", "26.04", 6777, 574, {"isl": 8192, "parallel": {"tp": 1, "ep": 64}}),  # two tokens beyond
        ("LLAMA3_70B", "26.04", 7397, 3321, {"isl": 8192, "parallel": {"tp": 1}}),
    ],
)
def test_published_tflops_are_the_tokens_times_the_publishers_count(
    model: str, release: str, tokens: float, tflops: float, changes: dict[str, Any]
) -> None:
    row = _row(model, release, **changes)
    counted = published_flops_per_token(row, training_run(row))
    assert tokens * counted / 1e12 == pytest.approx(tflops, rel=ROUNDED)


def test_the_publisher_and_its_release_choose_the_convention() -> None:
    assert convention_of(_row("Kimi_K2", "26.04.01")) is MEGATRON_2025
    assert convention_of(_row("Kimi_K2", "26.06")) is MEGATRON_2026
    unknown = _row("Qwen3_30B_a3B", "26.06", source="somebody else")
    assert convention_of(unknown) is None
    run = training_run(unknown)
    assert published_flops_per_token(unknown, run) == run.flops_per_token


def test_conventions_agree_where_there_is_neither_window_nor_other_gate() -> None:
    model = small_model()
    found = [
        each.per_token(model, 512, predictions) for each in (MEGATRON_2025, MEGATRON_2026) for predictions in (0, 1)
    ]
    assert found[:2] == pytest.approx(found[2:])
    assert found[0] < found[1]
