"""Whatever stands in a row's fields: it is predicted, malformed or left out with a reason, and stops no other."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moiety.package_data import catalog_text
from moiety.validation.compare import Compared, compare_rows
from moiety.validation.facts import FACTS
from moiety.validation.rows import ReadRows, rows_of_text

ROWS: list[dict[str, Any]] = [json.loads(line) for line in catalog_text("measurements", FACTS, ".jsonl").splitlines()]
GOOD = ROWS[0]
ODD: tuple[Any, ...] = (None, math.nan, "nan", "", "x", -1, 0, 1, 3, 1e30, True, [1], {}, {"tp": "x", "ep": "y"})
FIELDS = sorted({field for row in ROWS for field in row})


def _read(*rows: dict[str, Any]) -> ReadRows:
    return rows_of_text("\n".join(json.dumps(row) for row in rows).encode(), "rows")


def _only(row: dict[str, Any]) -> Compared:
    (found,) = compare_rows(_read(row).rows)
    return found


@given(st.sampled_from(ROWS), st.dictionaries(st.sampled_from(FIELDS), st.sampled_from(ODD), min_size=1, max_size=3))
def test_an_odd_field_stops_nothing(row: dict[str, Any], changes: dict[str, Any]) -> None:
    read = _read(row | changes, GOOD)
    found = compare_rows(read.rows)
    assert len(found) + len(read.malformed) == 2
    assert found[-1].predicted
    assert all(each.skipped or each.predicted or each.measured == {} for each in found)
    assert all(0 < value < math.inf for each in found for value in each.predicted.values())


ENERGY = next(row for row in ROWS if row.get("kind") == "energy")
PHASE = next(row for row in ROWS if row.get("phase") == "decode")


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        (ENERGY | {"batch": 0}, "the batch is not stated as a number"),
        (PHASE | {"parallel": {"ep": "32/72"}}, "parallel.ep = '32/72' is no number of ranks"),
        (ENERGY | {"parallel": {"attn_tp": 10**9}}, "what it states cannot be planned: tp: "),
    ],
)
def test_what_a_system_row_does_not_state_has_a_reason(row: dict[str, Any], reason: str) -> None:
    assert reason in (_only(row).skipped or "")


@pytest.mark.parametrize("changes", [{"id": math.nan}, {"isl": -1}, {"model": ""}, {"metrics": None}])
def test_a_malformed_system_row_is_named_by_its_line(changes: dict[str, Any]) -> None:
    read = _read(GOOD, PHASE | changes)
    assert [each.line for each in read.malformed] == [2]
    assert next(iter(changes)) in read.malformed[0].reason
