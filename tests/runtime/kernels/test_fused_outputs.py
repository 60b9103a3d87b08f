"""The expert kernels together, in Triton's interpreter: the sums of float64, and the order of adding."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("triton", reason="the kernels are Triton's")

from moiety.runtime.dispatch.wire import Rows
from moiety.runtime.experts.fused import fused_outputs
from moiety.runtime.experts.grouped import partial_outputs
from moiety.runtime.gates import Gate
from moiety.runtime.kernels.configs import MOST_ROWS, rows_class
from moiety.runtime.telemetry import Silent
from tests.runtime.kernels.routed_rows import DTYPES, Case, case_of, tolerance

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Array = NDArray[Any]


@st.composite
def cases(draw: st.DrawFn) -> Case:
    """Draw small cases: empty slots and rows, one row, all rows in one slot, sizes that no tile divides."""
    num_slots = draw(st.integers(1, 6))
    return case_of(
        num_rows=draw(st.sampled_from((0, 1, 2, 15, 16, 17, 40))),
        num_slots=num_slots,
        width=draw(st.integers(1, num_slots)),
        sizes=draw(st.sampled_from(((32, 32), (64, 16), (33, 7), (130, 40), (1, 1)))),
        dtype=draw(st.sampled_from(DTYPES)),
        kind=draw(st.sampled_from(("spread", "some", "one slot", "nowhere"))),
        is_transposed=draw(st.booleans()),
        seed=draw(st.integers(0, 99)),
        gate=draw(st.sampled_from(Gate)),
        is_biased=draw(st.booleans()),
        fp8_from=draw(st.sampled_from((None, 0, 100))),
    )


def outputs_of(case: Case) -> torch.Tensor:
    return fused_outputs(case.rows, case.weights, Silent(), 0)


def assert_right(case: Case) -> None:
    sums, doubt = case.reference()
    off = (outputs_of(case).double() - sums).abs()
    dtype = case.rows.hidden.dtype
    floor = torch.finfo(dtype).smallest_normal * case.weights.down.shape[1]
    assert (off <= tolerance(dtype) * doubt + floor).all()


@given(case=cases())
@settings(max_examples=30)
def test_sums_are_those_of_float64_within_the_rounding_of_the_format(case: Case) -> None:
    assert_right(case)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(
    ("num_rows", "kind"), [(1, "spread"), (40, "one slot"), (0, "some"), (3, "nowhere"), (17, "some")]
)
def test_the_corners(dtype: torch.dtype, num_rows: int, kind: str) -> None:
    assert_right(case_of(num_rows=num_rows, num_slots=5, width=3, sizes=(70, 37), dtype=dtype, kind=kind))


def test_float32_is_within_a_hundred_thousandth_of_the_largest() -> None:
    case = case_of(num_rows=24, num_slots=4, width=2, sizes=(200, 100))
    sums, _ = case.reference()
    assert (outputs_of(case) - sums).abs().max() <= 1e-5 * sums.abs().max()


def test_more_slots_than_rows() -> None:
    assert_right(case_of(num_rows=3, num_slots=70, width=2))


@pytest.mark.parametrize("gate", Gate)
@pytest.mark.parametrize("kind", ["spread", "some", "one slot"])
def test_it_computes_what_the_grouped_products_compute(kind: str, gate: Gate) -> None:
    case = case_of(num_rows=23, num_slots=4, width=3, kind=kind, gate=gate, is_biased=gate is Gate.GPT_OSS)
    rows = replace(case.rows, hidden=case.rows.hidden.contiguous())  # torch's product takes rows on whole words only
    theirs = partial_outputs(rows, case.weights, Silent(), 0)
    torch.testing.assert_close(outputs_of(case), theirs, rtol=1e-4, atol=1e-5)


@given(seed=st.integers(0, 99), dtype=st.sampled_from((torch.float32, torch.bfloat16)))
@settings(max_examples=10)
def test_bits_do_not_depend_on_the_order_in_which_rows_arrive(seed: int, dtype: torch.dtype) -> None:
    case = case_of(num_rows=21, num_slots=4, width=3, dtype=dtype, seed=seed)
    arrival = torch.randperm(21, generator=torch.Generator().manual_seed(seed))
    held = case.rows
    moved = Rows(held.hidden[arrival], held.keys[arrival], held.slots[arrival], held.weights[arrival])
    assert torch.equal(outputs_of(case)[arrival], outputs_of(replace(case, rows=moved)))


def test_bits_do_not_depend_on_whether_a_row_names_all_its_slots_or_one() -> None:
    case = case_of(num_rows=19, num_slots=4, width=2, kind="spread")
    held = case.rows
    single = Rows(
        hidden=held.hidden.repeat_interleave(2, dim=0),
        keys=held.keys.repeat_interleave(2),
        slots=held.slots.reshape(-1, 1),
        weights=held.weights.reshape(-1, 1),
    )
    each = outputs_of(replace(case, rows=single)).view(19, 2, -1)
    assert torch.equal(outputs_of(case), each[:, 0] + each[:, 1])


@pytest.fixture
def rows_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have the interpreter sum each row of a product alike, as tensor cores do; a BLAS does not on every processor."""

    def product(left: Array, right: Array, dtype: np.dtype[Any]) -> Array:
        return np.einsum("mk,kn->mn", left, right, dtype=dtype)

    monkeypatch.setattr(np, "matmul", product)


@pytest.mark.usefixtures("rows_apart")
def test_rows_beside_it_do_not_change_a_rows_bits() -> None:
    case = case_of(num_rows=20, num_slots=3, width=2, kind="spread")
    held = case.rows
    few = Rows(held.hidden[:4], held.keys[:4], held.slots[:4], held.weights[:4])
    assert torch.equal(outputs_of(case)[:4], outputs_of(replace(case, rows=few)))


@pytest.mark.parametrize("is_biased", [False, True])
def test_programs_that_stay_where_slots_have_many_rows(*, is_biased: bool) -> None:
    case = case_of(
        num_rows=1030, num_slots=2, width=1, sizes=(40, 24), dtype=torch.bfloat16, kind="spread", is_biased=is_biased
    )
    assert rows_class(1030, 2) == MOST_ROWS
    assert_right(case)


@pytest.mark.parametrize("dtype", DTYPES)
def test_rows_that_are_known_to_go_nowhere_else_have_the_same_bits(dtype: torch.dtype) -> None:
    case = case_of(num_rows=21, num_slots=5, width=3, kind="spread", dtype=dtype)
    assert torch.equal(outputs_of(replace(case, rows=replace(case.rows, all_here=True))), outputs_of(case))
