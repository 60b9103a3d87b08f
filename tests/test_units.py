"""Quantities with units: what is read, what is refused, how they are printed."""

from __future__ import annotations

import math
from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moiety.errors import InputError
from moiety.units import EXAMPLES, UNITS, Dimension, format_duration, format_si, parse_quantity

DIMENSIONS: tuple[Dimension, ...] = get_args(Dimension)


@pytest.mark.parametrize(
    ("text", "dimension", "expected"),
    [
        ("64 GB", "bytes", 64e9),
        ("80 GiB", "bytes", 80 * 2**30),
        ("600 GB/s", "bytes_per_s", 600e9),
        ("400 Gbit/s", "bytes_per_s", 50e9),
        ("4.8TB/s", "bytes_per_s", 4.8e12),
        ("1,979 TFLOPS", "flops_per_s", 1979e12),
        ("624 TOPS", "flops_per_s", 624e12),
        ("1e3 GFLOP/s", "flops_per_s", 1e12),
        ("5 us", "s", 5e-6),
        ("1.98 GHz", "hz", 1.98e9),
        (" 0.7 kW ", "w", 700.0),
        (2.5e9, "hz", 2.5e9),
    ],
)
def test_quantity_is_read_in_base_units(text: object, dimension: Dimension, expected: float) -> None:
    assert parse_quantity(text, dimension, field="x") == pytest.approx(expected)


@pytest.mark.parametrize("dimension", DIMENSIONS)
def test_the_example_of_each_dimension_can_be_read(dimension: Dimension) -> None:
    for example in EXAMPLES[dimension].split(" or "):
        assert parse_quantity(example, dimension, field="x") > 0


@pytest.mark.parametrize(
    "value",
    [
        None,
        True,
        [],
        {},
        "",
        "GB",
        "64",
        "64 GB GB",
        "-64 GB",
        "0 GB",
        "1,5 GB",
        "nan GB",
        "inf GB",
        "1e999 GB",
        "٣ GB",
        math.nan,
        math.inf,
        -math.inf,
        -1,
        0,
        10**400,
        10**5000,
        "9" * 5000 + " GB",
    ],
    ids=lambda value: type(value).__name__,
)
def test_impossible_quantity_is_refused(value: object) -> None:
    with pytest.raises(InputError) as caught:
        parse_quantity(value, "bytes", field="device.memory")
    assert str(caught.value).startswith("device.memory")
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize(
    ("text", "dimension", "remedy"),
    [
        ("400 Gb/s", "bytes_per_s", "write Gbit/s"),
        ("400 Gbps", "bytes_per_s", "write Gbit/s"),
        ("50 GBps", "bytes_per_s", "write GB/s"),
        ("64 Gi", "bytes", "did you mean 'GiB'?"),
        ("64 gb", "bytes", "did you mean 'GB'?"),
        ("989 tflops", "flops_per_s", "did you mean 'TFLOPS'?"),
        ("5 furlongs", "s", "write for instance 50 ms"),
    ],
)
def test_unknown_unit_names_the_way_out(text: str, dimension: Dimension, remedy: str) -> None:
    with pytest.raises(InputError) as caught:
        parse_quantity(text, dimension, field="x")
    assert caught.value.remedy == remedy


def test_zero_is_legal_only_where_it_is_asked_for() -> None:
    assert parse_quantity("0 us", "s", field="latency", zero=True) == 0
    with pytest.raises(InputError, match="above 0"):
        parse_quantity("0 us", "s", field="latency")
    with pytest.raises(InputError, match="at least 0"):
        parse_quantity("-1 us", "s", field="latency", zero=True)


@given(st.sampled_from(DIMENSIONS), st.floats(1e-3, 1e6), st.data())
def test_units_scale(dimension: Dimension, number: float, data: st.DataObject) -> None:
    unit = data.draw(st.sampled_from(sorted(UNITS[dimension])))
    read = parse_quantity(f"{number:.12f} {unit}", dimension, field="x")
    assert read == pytest.approx(number * UNITS[dimension][unit], rel=1e-6)
    half = parse_quantity(f"{number / 2:.12f} {unit}", dimension, field="x")
    assert half == pytest.approx(read / 2, rel=1e-6)


@given(st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(), st.lists(st.integers())))
def test_anything_else_is_a_positive_number_or_an_input_error(value: object) -> None:
    try:
        number = parse_quantity(value, "bytes_per_s", field="x")
    except InputError as error:
        assert "\n" not in str(error)  # noqa: PT017 - the other outcome is legal too
    else:
        assert 0 < number < math.inf


@pytest.mark.parametrize(
    ("value", "unit", "expected"),
    [
        (614_400, "", "614 k"),
        (25e9, "B/s", "25 GB/s"),
        (999.9e9, "B", "1,000 GB"),
        (1.234e18, "FLOPS", "1,234 PFLOPS"),
        (0.5, "W", "0.5 W"),
        (0, "", "0"),
        (-2.5e6, "B", "-2.5 MB"),
    ],
)
def test_si_format(value: float, unit: str, expected: str) -> None:
    assert format_si(value, unit) == expected


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [(2.0, "2 s"), (1234.5, "1,234 s"), (0.05, "50 ms"), (5e-6, "5 us"), (0, "0 us"), (1.63e-6, "1.63 us")],
)
def test_duration_format(seconds: float, expected: str) -> None:
    assert format_duration(seconds) == expected


@given(st.floats(1e-6, 1e14))
def test_formats_never_fall_back_to_powers_of_ten(value: float) -> None:
    assert "e" not in format_si(value * 1e3)
    assert "e+" not in format_duration(value)
