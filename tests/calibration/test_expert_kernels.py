"""Which releases compute experts by DeepGEMM's contiguous kernel, and what that changes."""

from __future__ import annotations

from typing import Any

import pytest

from moiety.calibration.catalog import load_calibration
from moiety.calibration.expert_kernels import has_contiguous_experts, with_contiguous_experts

RUN: dict[str, Any] = {
    "engine": "vllm",
    "version": "0.12.0",
    "architecture": "hopper",
    "experts": "fp8",
    "expert_tp": 4,
}


@pytest.mark.parametrize(
    ("changes", "has"),
    [
        ({}, True),
        ({"version": "0.11.1"}, True),
        ({"version": "0.14.1"}, True),
        ({"version": "0.11.0"}, False),
        ({"version": "0.15.0"}, False),
        ({"version": "nightly"}, False),
        ({"engine": "sglang"}, False),
        ({"architecture": "blackwell"}, False),
        ({"experts": "mxfp4"}, False),
        ({"expert_tp": 8}, False),
    ],
)
def test_some_releases_of_vllm_have_it(changes: dict[str, Any], has: bool) -> None:
    assert has_contiguous_experts(**(RUN | changes)) is has


def test_experts_take_the_kernel_as_it_was_measured_and_nothing_else_changes() -> None:
    known = load_calibration()
    changed = with_contiguous_experts(known)
    different = {kind for kind, line in changed.roofline.items() if line != known.roofline[kind]}
    assert different == {"grouped_gemm_decode", "grouped_gemm_prefill"}
    line = changed.roofline["grouped_gemm_decode"]
    assert line.contiguous_layout
    assert line.tiles == known.roofline["grouped_gemm_prefill"].tiles
    assert line == changed.roofline["grouped_gemm_prefill"]
    assert changed.model_copy(update={"roofline": known.roofline}) == known
