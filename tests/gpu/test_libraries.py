"""Grouped products of GPU libraries, where they are installed: the sums of torch's, within the format's rounding."""

from __future__ import annotations

import pytest
import torch

from benchmarks.gpu import moved
from moiety.runtime.experts.backends import BACKENDS
from moiety.runtime.telemetry import Silent
from tests.runtime.kernels.routed_rows import case_of, tolerance

GPU = torch.device("cuda", 0)


@pytest.mark.parametrize("kind", ["some", "spread", "one slot", "nowhere"])
@pytest.mark.parametrize("sizes", [(512, 256), (128, 64)])
@pytest.mark.parametrize("name", ["flashinfer", "deep_gemm"])
def test_sums_are_those_of_float64(name: str, sizes: tuple[int, int], kind: str) -> None:
    case = case_of(num_rows=300, num_slots=9, width=4, sizes=sizes, dtype=torch.bfloat16, kind=kind)
    rows, weights = moved(case, GPU)
    reason = BACKENDS[name].obstacle(weights)
    if reason is not None:
        pytest.skip(reason)
    sums = BACKENDS[name].outputs(rows, weights, Silent(), 0)
    reference, doubt = case.reference()
    # gates and ups are rounded before they meet, which the kernels' own reference does not count
    allowed = 4 * tolerance(torch.bfloat16) * doubt + 1e-6
    assert ((sums.cpu().double() - reference).abs() <= allowed).all()
    plain = BACKENDS["grouped_mm"].outputs(rows, weights, Silent(), 0)
    assert ((sums - plain).abs().cpu().double() <= allowed).all()
