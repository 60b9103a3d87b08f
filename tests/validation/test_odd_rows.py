"""Whatever stands in a row's fields: it is predicted, malformed or left out with a reason, and stops no other."""

from __future__ import annotations

import json
import math
import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moiety.package_data import catalog_text
from moiety.validation.compare import Compared, compare_rows
from moiety.validation.facts import FACTS
from moiety.validation.rows import ReadRows, rows_of_text
from moiety.validation.score import skipped_reasons

ROWS: list[dict[str, Any]] = [json.loads(line) for line in catalog_text("measurements", FACTS, ".jsonl").splitlines()]
GOOD = ROWS[0]
MANY_DIGITS = "9" * 5000
ODD: tuple[Any, ...] = (
    *(None, math.nan, math.inf, "nan", "", "x", -1, 0, 0.5, 1, 3, 1e30, True, [1], MANY_DIGITS),
    *({}, {"tp": "x", "ep": "y"}, {"ep": math.nan}, {"ep": math.inf}, {"tp": 1, "pp": 8, "ep": 8, "vp": 1e308}),
)
FIELDS = sorted({field for row in ROWS for field in row})


def _read(*rows: dict[str, Any]) -> ReadRows:
    return rows_of_text("\n".join(json.dumps(row) for row in rows).encode(), "rows")


def _only(row: dict[str, Any]) -> Compared:
    (found,) = compare_rows(_read(row).rows)
    return found


@given(
    st.sampled_from(ROWS),
    st.dictionaries(st.sampled_from(FIELDS), st.sampled_from(ODD), min_size=1, max_size=3),
    st.booleans(),
)
def test_an_odd_field_stops_nothing(row: dict[str, Any], changes: dict[str, Any], as_planned: bool) -> None:
    read = _read(row | changes, GOOD)
    found = compare_rows(read.rows, as_planned=as_planned)
    assert len(found) + len(read.malformed) == 2
    assert found[-1].predicted
    assert all(each.skipped or each.predicted for each in found)
    assert all(0 < value < math.inf for each in found for value in each.predicted.values())


def _kernel(pattern: str) -> dict[str, Any]:
    return next(row for row in ROWS if row.get("kind") == "kernel" and pattern in row["model"])


@given(
    st.sampled_from([row for row in ROWS if "kind" in row]),
    st.sampled_from(("model", "batch", "hardware", "precision", "notes")),
    st.sampled_from((MANY_DIGITS, "9" * 11, "0", "1")),
)
def test_odd_sizes_in_the_words_of_a_row_stop_nothing(row: dict[str, Any], field: str, size: str) -> None:
    read = _read(row | {field: re.sub(r"\d+", size, str(row.get(field)))}, GOOD)
    found = compare_rows(read.rows)
    assert len(found) + len(read.malformed) == 2
    assert all(0 < value < math.inf for each in found for value in each.predicted.values())


@given(st.sampled_from([row for row in ROWS if row.get("metrics")]), st.data(), st.sampled_from((-5, 0, 1e-300, 1e308)))
def test_odd_measurements_stop_nothing_and_are_compared_with_nothing(
    row: dict[str, Any], data: st.DataObject, value: float
) -> None:
    name = data.draw(st.sampled_from(sorted(row["metrics"])))
    found = compare_rows(_read(row | {"metrics": row["metrics"] | {name: value}}, GOOD).rows)
    assert len(found) == 2
    assert all(math.isfinite(error) and error > -1 for each in found for error in each.error.values())


@pytest.mark.parametrize("field", ["num_gpus", "isl", "osl", "concurrency", "draft_tokens", "frontends", "tp"])
def test_true_is_no_number(field: str) -> None:
    (malformed,) = _read(GOOD | {field: True}).malformed
    assert malformed.reason == f"{field} = True: must be a number, not true or false"


def test_a_key_that_stands_twice_is_named() -> None:
    line = json.dumps(GOOD)[:-1] + ', "isl": 7}'
    (malformed,) = rows_of_text(line.encode(), "rows").malformed
    assert malformed.reason == "isl: the key is there twice in one object; keep one"


@pytest.mark.parametrize("mode", ["agg", "disagg"])
def test_one_output_token_has_a_time_to_first_token_and_none_per_output_token(mode: str) -> None:
    row = next(row for row in ROWS if row.get("mode") == mode and len(row["measured"]) == 2)
    found = _only(row | {"osl": 1, "draft_tokens": 0})
    assert (set(found.error), set(found.unpredicted)) == ({"ttft_ms"}, {"tpot_ms"})
    assert found.measured == row["measured"]
    assert skipped_reasons([found]) == {"osl = 1: one output token has no time per output token": 1}
    (planned,) = compare_rows(_read(row | {"osl": 1, "draft_tokens": 0}).rows, as_planned=True)
    assert (set(planned.error), set(planned.unpredicted)) == ({"ttft_ms"}, {"tpot_ms"})
    untimed = _only(row | {"osl": 1, "measured": {"tpot_ms": 7.0}})
    assert (untimed.skipped, dict(untimed.predicted)) == (found.unpredicted["tpot_ms"], {})


ENERGY = next(row for row in ROWS if row.get("kind") == "energy")
PHASE = next(row for row in ROWS if row.get("phase") == "decode")


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        (ENERGY | {"batch": 0}, "the batch is not stated as a number"),
        (PHASE | {"parallel": {"ep": "32/72"}}, "parallel.ep = '32/72' is no number of ranks"),
        (ENERGY | {"parallel": {"attn_tp": 10**9}}, "parallel.attn_tp = 1000000000 is no number of ranks"),
        (PHASE | {"parallel": {"ep": math.inf}}, "parallel.ep = inf is no number of ranks"),
        (_kernel("dense GEMM") | {"model": "dense GEMM M0 N0 K0"}, "the sizes that it states come to no work"),
        (
            _kernel("grouped GEMM 4 experts") | {"metrics": {"tokens_per_expert": 1e-300, "up_us": 5}},
            "tokens_per_expert is not stated, or below 1",
        ),
        (GOOD | {"measured": {}}, "neither ttft_ms nor tpot_ms was measured"),
    ],
)
def test_what_a_system_row_does_not_state_has_a_reason(row: dict[str, Any], reason: str) -> None:
    assert reason in (_only(row).skipped or "")


@pytest.mark.parametrize("changes", [{"id": math.nan}, {"isl": -1}, {"model": ""}, {"metrics": None}])
def test_a_malformed_system_row_is_named_by_its_line(changes: dict[str, Any]) -> None:
    read = _read(GOOD, PHASE | changes)
    assert [each.line for each in read.malformed] == [2]
    assert next(iter(changes)) in read.malformed[0].reason
