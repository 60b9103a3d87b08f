"""Rows in FP8: gathered, each 128 values with the scale that float64 gives, and back within half a step."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("triton", reason="the kernels are Triton's")

from moiety.runtime.kernels.quantized_rows import dequantized_rows, quantized_rows

DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def nearest(state: float, scale: float) -> float:
    """Return the float8_e4m3 nearest to state / scale, of two the even one, times the scale, in Python's floats."""
    value = abs(state) / scale
    step = 2.0**-9
    while value >= step * 16:  # the binade of a step has 8 of them, from 8 steps to 16
        step *= 2
    nearest_value = min(round(value / step) * step, 448.0)
    return nearest_value * scale * (1 if state >= 0 else -1)


@given(
    tokens=st.integers(1, 5),
    rows=st.integers(0, 9),
    hidden=st.sampled_from((1, 127, 128, 130, 512, 1100)),
    magnitude=st.sampled_from((-30, -3, 0, 4, 15)),
    dtype=st.sampled_from(DTYPES),
    seed=st.integers(0, 99),
)
@settings(max_examples=30)
def test_values_and_scales_are_those_of_float64(
    tokens: int, rows: int, hidden: int, magnitude: int, dtype: torch.dtype, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    padded = (torch.randn(tokens, hidden + 5, generator=generator) * 2.0**magnitude).to(dtype).clamp(-60000, 60000)
    states, index = padded[:, :hidden], torch.randint(0, tokens, (rows,), generator=generator)
    values, scales = quantized_rows(states, index)
    assert values.dtype == torch.float8_e4m3fn
    assert (values.shape, scales.shape) == ((rows, hidden), (rows, -(-hidden // 128)))
    back = dequantized_rows(values, scales, torch.float64)
    for row, token in enumerate(index.tolist()):
        for group in range(scales.shape[1]):
            given_states = states[token, group * 128 : group * 128 + 128].double()
            scale = float(scales[row, group])
            largest = float(given_states.abs().max())
            assert scale == pytest.approx(max(largest / 448, 2.0**-126), rel=1e-6)
            got = back[row, group * 128 : group * 128 + 128]
            expected = torch.tensor([nearest(each, scale) for each in given_states.tolist()], dtype=torch.float64)
            step = torch.clamp(expected.abs() / 8, min=scale * 2.0**-9)
            assert ((got - expected).abs() <= 1e-5 * expected.abs() + step * (got != expected)).all()
            assert ((got - given_states).abs() <= step / 2 * (1 + 1e-5)).all(), "within half a step"


def test_what_is_exact_in_the_format_comes_back_as_it_was() -> None:
    states = (torch.arange(-8, 8) * 32.0).repeat(8)[None]
    states[0, 0] = 448.0
    values, scales = quantized_rows(states, torch.tensor([0, 0]))
    assert torch.equal(scales, torch.ones(2, 1))
    assert torch.equal(dequantized_rows(values, scales, torch.float32), states.expand(2, -1))


def test_zeros_stay_zeros() -> None:
    values, scales = quantized_rows(torch.zeros(3, 200), torch.tensor([2, 0]))
    assert not dequantized_rows(values, scales, torch.float32).any()
    assert scales.isfinite().all()
