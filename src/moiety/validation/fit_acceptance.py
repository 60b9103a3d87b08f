"""How many guesses of speculative decoding are right, from rows that ran with it."""

from __future__ import annotations

import statistics
from typing import TYPE_CHECKING

from moiety.validation.predict import ServingPredictor
from moiety.validation.serving_case import serving_case
from moiety.validation.skipped import SkippedRow

if TYPE_CHECKING:
    from collections.abc import Sequence

    from moiety.calibration.serving import ServingConstants
    from moiety.validation.serving_case import ServingCase
    from moiety.validation.serving_row import ServingRow

_STEPS = 7
"""Halvings of the range that the share is looked for in: to less than 1 %."""


def with_acceptance(constants: ServingConstants, rows: Sequence[ServingRow]) -> ServingConstants:
    """Return the constants with the share of right guesses that leaves no bias (median) in the rows' TPOT.

    The other constants are those of rows without speculation: this is all that such rows decide.
    """
    cases = _guessing(rows)
    if not cases:
        return constants
    low, high = 0.0, 1.0
    for _ in range(_STEPS):
        tried = constants.model_copy(update={"draft_acceptance": (low + high) / 2})
        predictor = ServingPredictor(tried)
        ratio = statistics.median(predictor.predict(case).tpot_s / measured for case, measured in cases)
        low, high = (tried.draft_acceptance, high) if ratio > 1 else (low, tried.draft_acceptance)
    return constants.model_copy(update={"draft_acceptance": round((low + high) / 2, 3)})


def _guessing(rows: Sequence[ServingRow]) -> list[tuple[ServingCase, float]]:
    """Return (case, measured seconds per token) of the rows that ran with speculation."""
    found = list[tuple["ServingCase", float]]()
    for row in rows:
        try:
            case = serving_case(row)
        except SkippedRow:
            continue
        if case.draft_tokens and row.measured.tpot_ms is not None:
            found.append((case, row.measured.tpot_ms / 1e3))
    return found
