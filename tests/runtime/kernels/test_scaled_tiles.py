"""Weights held in FP8 inside the expert kernels: rows of a single one show the very numbers of the CPU's expansion."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("triton", reason="the kernels are Triton's")

from moiety.runtime.block_scaled import even_blocks
from moiety.runtime.gates import Gate
from tests.runtime.kernels.routed_rows import DTYPES, wrong_numbers

CPU = torch.device("cpu")


@given(
    hidden=st.sampled_from((32, 150)),
    width=st.sampled_from((16, 80, 129)),
    fp8_from=st.sampled_from((0, 30, 64, 127)),
    dtype=st.sampled_from(DTYPES),
    gate=st.sampled_from(Gate),
    num_slots=st.sampled_from((1, 2)),
    is_transposed=st.booleans(),
)
@settings(max_examples=6)
def test_every_number_has_the_bits_of_cpus_wherever_blocks_are_cut(
    hidden: int, width: int, fp8_from: int, dtype: torch.dtype, gate: Gate, num_slots: int, *, is_transposed: bool
) -> None:
    sizes = hidden, width
    assert not wrong_numbers(CPU, sizes, dtype, fp8_from, gate, num_slots=num_slots, is_transposed=is_transposed)


@given(
    offset=st.integers(0, 299),
    size=st.integers(128, 300),
    length=st.integers(1, 1500),
)
def test_cuts_of_even_blocks_are_even(offset: int, size: int, length: int) -> None:
    offset %= size
    bounds = (0, *range(size - offset, length, size), length)
    found = even_blocks(bounds)
    assert found is not None
    blocks = [(found[0] + each) // found[1] for each in range(length)]
    expected = [(offset + each) // size for each in range(length)]
    assert blocks == expected
    assert found[1] >= 128


@pytest.mark.parametrize(
    "bounds", [(0, 64, 128, 192), (0, 128, 256, 384, 600), (0, 200, 328, 456), (0, 128, 256, 300, 400)]
)
def test_blocks_of_other_sizes_are_not_even(bounds: tuple[int, ...]) -> None:
    assert even_blocks(bounds) is None
