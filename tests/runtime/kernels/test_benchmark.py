"""What the GPU benchmark times computes one thing, in Triton's interpreter: every way is right, or is told of."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch

pytest.importorskip("triton", reason="the kernels are Triton's")

from benchmarks.expert_products import RoutedExperts, Shape
from benchmarks.fp8_experts import fp8_row

if TYPE_CHECKING:
    from collections.abc import Callable

TINY = Shape(hidden=64, width=32, experts=10, rows=3)
CPU = torch.device("cpu")


def test_every_way_that_is_timed_gives_the_rows_of_float64() -> None:
    torch.manual_seed(0)
    found = RoutedExperts(TINY, CPU, torch.float32).wrong()
    parts = {name.split(", ", 1)[0] for name in found}
    assert parts == {"gate-up", "down", "whole"}
    assert max(found.values()) < 1e-5


def test_a_result_that_is_wrong_is_found() -> None:
    torch.manual_seed(0)
    experts = RoutedExperts(TINY, CPU, torch.float32)
    experts.scale = experts.scale * 1.1  # what ours weighs outputs by, and torch's does not
    found = experts.wrong()
    assert {name for name, off in found.items() if off > 0.05} == {"down, ours", "whole, ours"}


def test_experts_held_in_fp8_are_timed_beside_the_numbers_that_they_stand_for() -> None:
    torch.manual_seed(0)

    def seconds(call: Callable[[], object]) -> float:
        call()
        return 1.0

    row = fp8_row(Shape(hidden=160, width=32, experts=10, rows=3), seconds, (1e9, 1e9), CPU)
    assert set(row["seconds"]) == set(row["apart"]) == {"FP8", "BF16", "expanded"}
    assert max(row["apart"].values()) < 0.01
    codes_and_scales = 10 * (3 * 160 * 32 + 4 * (2 + 2))
    assert row["of_bandwidth"] * 1e9 == codes_and_scales + 4 * 24 * (160 + 32) + 4 * 3 * 160
