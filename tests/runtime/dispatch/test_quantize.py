"""FP8 rows: close to what they stand for, and unchanged when they are quantised again."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from moiety.runtime.dispatch.quantize import dequantized, quantized
from moiety.runtime.fp8 import BLOCK, num_scales


def rows_of(num: int, size: int, seed: int, exponent: int) -> torch.Tensor:
    """Return rows whose values spread over many powers of two."""
    generator = torch.Generator().manual_seed(seed)
    spread = torch.randint(-12, 12, (num, size), generator=generator)
    return torch.ldexp(torch.randn(num, size, generator=generator), spread + exponent)


rows = st.builds(
    rows_of, st.integers(0, 4), st.sampled_from((1, 127, 128, 300)), st.integers(0, 99), st.integers(-60, 60)
)


@given(rows)
def test_a_value_is_off_by_at_most_a_sixteenth_of_itself_or_a_millionth_of_its_blocks_largest(
    given_rows: torch.Tensor,
) -> None:
    codes, scales = quantized(given_rows)
    assert scales.shape == (given_rows.shape[0], num_scales(given_rows.shape[1]))
    found = dequantized(codes, scales, torch.float32)
    largest = torch.stack([block.abs().amax(dim=1) for block in given_rows.split(BLOCK, dim=1)], dim=1)
    allowed = torch.maximum(
        given_rows.abs() / 16, largest.repeat_interleave(BLOCK, dim=1)[:, : found.shape[1]] * 2**-17
    )
    assert bool(((found - given_rows).abs() <= allowed).all())


@given(rows)
def test_what_was_quantised_once_stays_as_it_is_in_float32_and_in_bf16(given_rows: torch.Tensor) -> None:
    for dtype in (torch.float32, torch.bfloat16):
        once = dequantized(*quantized(given_rows), dtype)
        assert torch.equal(dequantized(*quantized(once), dtype), once)


def test_zeros_stay_zeros() -> None:
    codes, scales = quantized(torch.zeros(2, 130))
    assert torch.equal(dequantized(codes, scales, torch.bfloat16), torch.zeros(2, 130, dtype=torch.bfloat16))
