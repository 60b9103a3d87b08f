"""What the GPU benchmark times computes one thing, in Triton's interpreter: every way is right, or is told of."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("triton", reason="the kernels are Triton's")

from benchmarks.expert_products import RoutedExperts, Shape

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
