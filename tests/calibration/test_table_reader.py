"""Measured tables: what is read is what was written, lines over logarithms between, nothing beyond."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moiety.calibration.table_reader import read_tables
from moiety.calibration.tables import MeasuredRates, grid_of
from moiety.errors import InputError
from tests.measured_tables import (
    FILES,
    LEAST,
    MOST,
    all_reduce_rows,
    attention_rows,
    gemm_ms,
    gemm_rows,
    mla_rows,
    moe_rows,
    nccl_rows,
    parquet,
)

if TYPE_CHECKING:
    from moiety.calibration.tables import KernelTables

RATES = MeasuredRates({"bf16": 1e15}, 4.5e11)
GEMM = "gemm/vllm/0.24.0/gemm_perf.parquet"


def read(**files: bytes) -> KernelTables:
    by_path = {f"x/{name}_perf.parquet": data for name, data in files.items()}
    return read_tables(by_path, name="measured", folder="x", rates=RATES)


TABLES = read(
    gemm=parquet(gemm_rows()),
    moe=parquet(moe_rows()),
    context_attention=parquet(attention_rows()),
    generation_attention=parquet(attention_rows(decode=True)),
    context_mla=parquet(mla_rows()),
    generation_mla=parquet(mla_rows(decode=True)),
    custom_allreduce=parquet(all_reduce_rows()),
    nccl=parquet(nccl_rows()),
)


@given(st.floats(LEAST, MOST), st.floats(16, 2**18), st.floats(16, 2**18))
def test_a_power_law_is_met_everywhere_between_its_measured_points(m: float, n: float, k: float) -> None:
    assert TABLES.seconds(("gemm", "bfloat16"), k, n, m) == pytest.approx(gemm_ms(m, n, k) / 1e3)


@given(st.floats(1e-3, 1e9), st.floats(1e-3, 1e9), st.floats(1e-3, 1e9))
def test_nothing_is_said_of_a_size_outside_of_what_was_measured(m: float, n: float, k: float) -> None:
    inside = LEAST <= m <= MOST and all(16 <= each <= 2**18 for each in (n, k))
    assert (TABLES.seconds(("gemm", "bfloat16"), k, n, m) is not None) == inside


def test_a_hole_in_the_rows_is_not_bridged_by_their_neighbours() -> None:
    grid = grid_of([((1.0, 1.0), 2.0), ((1.0, 4.0), 8.0), ((2.0, 1.0), 2.0), ((4.0, 1.0), 3.0), ((4.0, 4.0), 9.0)])
    assert grid.at(1.0, 2.0) == pytest.approx(4.0)
    assert grid.at(2.0, 2.0) is None
    assert grid.at(1.5, 2.0) is None
    assert grid.at(1.5, 1.0) == pytest.approx(2.0)


def test_of_two_kernels_at_one_point_the_faster_counts() -> None:
    assert grid_of([((1.0,), 3.0), ((1.0,), 2.0)]).at(1.0) == 2.0


def test_each_family_is_found_by_its_own_columns_and_units() -> None:
    experts = ("moe", "bfloat16", 1024, 512, 2, 16, 1, 1)
    assert TABLES.seconds(experts, 500) == pytest.approx(1e-3)  # the balanced rows
    assert TABLES.seconds(("moe", "fp8_block", *experts[2:]), 500) is None
    shape = (16, 4, 64, 0, "bfloat16")
    assert TABLES.seconds(("prefill", *shape), 1024, 2) == pytest.approx(1e-8 * 2 * 1024)
    assert TABLES.seconds(("decode", *shape), 1024, 2) == pytest.approx(1e-8 * 2 * 1024)
    assert TABLES.seconds(("decode", 8, *shape[1:]), 1024, 2) is None
    for phase in ("prefill mla", "decode mla"):
        assert TABLES.seconds((phase, 128, "bfloat16"), 1024, 2) == pytest.approx(3e-8 * 2 * 1024)
    assert TABLES.seconds(("all_reduce", 8, "graph"), 2000) == pytest.approx(1e-6)  # 1,000 elements of 2 bytes
    assert TABLES.seconds(("all_reduce", 8, "eager"), 2000) == pytest.approx(5e-6)
    assert TABLES.seconds(("nccl", "all_gather", 4), 2000) == pytest.approx(1e-6)
    assert TABLES.seconds(("nccl", "all_gather", 3), 2000) is None


def test_the_digest_is_of_the_rows() -> None:
    again = read(gemm=parquet(gemm_rows()))
    assert again.source == read(gemm=parquet(gemm_rows())).source
    assert again.source != read(gemm=parquet(gemm_rows()[1:])).source


@pytest.mark.parametrize(
    ("data", "rule"),
    [
        (b"", "is not a Parquet table"),
        (b"PAR1 and then nothing PAR1", "is not a Parquet table"),
        (parquet([{key: value for key, value in row.items() if key != "m"} for row in gemm_rows()]), "m: the table"),
        (parquet([{**row, "latency": None} for row in gemm_rows()]), "latency = None: must hold a number"),
        (parquet([{**row, "gemm_dtype": 8} for row in gemm_rows()]), "gemm_dtype = '8': must hold a name"),
        (parquet([{**row, "latency": 0.0} for row in gemm_rows()]), "row 0 = 0.0: sizes and latency must be"),
        (parquet([{**row, "k": -1} for row in gemm_rows()]), "row 0 = -1: sizes and latency must be"),
        (parquet([{**row, "latency": float("nan")} for row in gemm_rows()]), "row 0 = nan: sizes and latency"),
    ],
    ids=["empty", "not parquet", "no column", "null", "not a name", "no time", "no size", "nan"],
)
def test_a_file_that_is_no_such_table_is_refused_in_one_line(data: bytes, rule: str) -> None:
    with pytest.raises(InputError) as refused:
        read_tables({GEMM: data}, name="measured", folder="x", rates=RATES)
    message = str(refused.value)
    assert message.startswith(f"{GEMM}: ")
    assert rule in message
    assert "\n" not in message


def test_without_pyarrow_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    with pytest.raises(InputError, match=r"moiety\[tables\]"):
        read_tables({GEMM: parquet(FILES[GEMM])}, name="measured", folder="x", rates=RATES)
