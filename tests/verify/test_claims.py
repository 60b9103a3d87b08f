"""Claim files: what people write, and what they get told when it is wrong."""

from __future__ import annotations

import contextlib
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moiety.errors import InputError
from moiety.verify.claims import catalog_claims, claims_about, load_claims, read_claims, written_precision
from moiety.verify.interval import Interval
from moiety.verify.quantities import QUANTITIES

FILE = """\
name: mine
strategy: ep8_tp2
claims:
  - {id: fast, quantity: throughput, of: enhanced, value: 12.5, unit: k tokens/s, text: very fast}
  - id: gpus
    quantity: num_gpus
    value: 16
    unit: GPUs
    text: "16 GPUs"
    stated_in: [somewhere]
"""


def refused(text: str) -> InputError:
    with pytest.raises(InputError) as caught:
        read_claims(text, source="c.yaml")
    return caught.value


def test_file_is_read() -> None:
    claims = read_claims(FILE, source="c.yaml")
    fast, gpus = claims.claims
    assert (fast.number, fast.interval.low, fast.interval.high) == (12500, 12450, 12550)
    assert fast.shown == "12.5 k tokens/s"
    assert (gpus.interval.low, gpus.interval.high, gpus.stated_in) == (16, 16, ("somewhere",))


@pytest.mark.parametrize(
    ("old", "new", "field", "rule"),
    [
        ("quantity: num_gpus", "quantity: gpus", "claims[1].quantity", "must be"),
        ("unit: GPUs", "unit: nodes", "claims[1].unit", "must be"),
        ("value: 16", "value: many", "claims[1].value", "must be a number"),
        ("value: 16", "value: .nan", "claims[1].value", "must be a number"),
        ("value: 16", "value: .inf", "claims[1].value", "must be a number"),
        ("value: 16", "value: -16", "claims[1].value", "negative"),
        ("value: 16", "value: 1e300", "claims[1].value", "must be a number"),
        ("value: 16", "value:", "claims[1].value", "is missing"),
        ("of: enhanced, ", "", "claims[0].of", "is missing"),
        ("of: enhanced", "of: fastest", "claims[0].of", "must be"),
        ("of: enhanced", "of: enhanced, tier: nvlink", "claims[0].tier", "says nothing"),
        ("id: gpus", "id: fast", "claims[1].id", "given twice"),
        ("strategy: ep8_tp2", "", "strategy", "is missing"),
        ("name: mine", "name: mine\nprice: 1", "price", "unknown"),
        ("    text:", "    txet:", "claims[1].txet", "unknown"),
    ],
)
def test_bad_field_is_named(old: str, new: str, field: str, rule: str) -> None:
    error = refused(FILE.replace(old, new))
    assert error.field == field
    assert rule in error.rule
    assert str(error.source).startswith("c.yaml")


@given(st.text(max_size=200))
def test_any_text_is_read_or_refused(text: str) -> None:
    with pytest.raises(InputError):
        read_claims(text, source="c.yaml")


@given(st.sampled_from(["value: 16", "unit: GPUs", "quantity: num_gpus", "id: gpus"]), st.text(max_size=30))
def test_any_value_is_read_or_refused(field: str, text: str) -> None:
    with contextlib.suppress(InputError):
        claims = read_claims(FILE.replace(field, f"{field.partition(':')[0]}: {text}"), source="c.yaml")
        assert [math.isfinite(claim.number) for claim in claims.claims] == [True, True]


def test_catalogue_reads() -> None:
    for name in catalog_claims():
        claims = load_claims(name)
        assert claims.name == name
        assert {claim.quantity for claim in claims.claims} <= set(QUANTITIES)


def test_claims_are_found_by_scenario() -> None:
    reference = load_claims("reference")
    assert reference.model and reference.cluster and reference.workload  # noqa: PT018 - all three name the scenario
    assert claims_about(reference.model, reference.cluster, reference.workload) == reference
    assert claims_about(reference.model, reference.cluster, "another") is None


@pytest.mark.parametrize(
    ("value", "half"), [(56.7, 0.05), (614400, 0.5), (1.63, 0.005), (0, 0.5), (1e-3, 5e-4), (1e22, 0.5)]
)
def test_precision_is_half_of_the_last_digit(value: float, half: float) -> None:
    assert written_precision(value) == pytest.approx(half)


NUMBERS = st.floats(0.1, 100)


@given(NUMBERS, NUMBERS, NUMBERS, NUMBERS, st.floats(0, 1), st.floats(0, 1))
def test_interval_arithmetic_holds_every_value(a: float, b: float, da: float, db: float, x: float, y: float) -> None:
    first, second = Interval(a, a + da / 2, a + da), Interval(b, b + db / 2, b + db)
    one, other = a + x * da, b + y * db
    for computed, value in ((first * second, one * other), (first / second, one / other), (first + 1.5, one + 1.5)):
        assert computed.overlaps(Interval.exactly(value))
