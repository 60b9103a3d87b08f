"""How many guesses of speculative decoding are right, from rows that ran with it."""

from __future__ import annotations

import statistics
from typing import TYPE_CHECKING

from moiety.validation.predict import ServingPredictor

if TYPE_CHECKING:
    from collections.abc import Sequence

    from moiety.calibration.serving import ServingConstants
    from moiety.validation.serving_case import ServingCase

_STEPS = 7
"""Halvings of the range that the share is looked for in: to less than 1 %."""


def with_acceptance(constants: ServingConstants, cases: Sequence[tuple[ServingCase, float]]) -> ServingConstants:
    """Return the constants with the share of right guesses that leaves no bias (median) in the cases' TPOT.

    `cases` are (deployment that speculates, measured seconds per token). The other constants are those of rows without
    speculation: this is all that such rows decide.
    """
    if not cases:
        return constants
    low, high = 0.0, 1.0
    for _ in range(_STEPS):
        tried = constants.model_copy(update={"draft_acceptance": (low + high) / 2})
        predictor = ServingPredictor(tried)
        ratio = statistics.median(predictor.predict(case).tpot_s / measured for case, measured in cases)
        low, high = (tried.draft_acceptance, high) if ratio > 1 else (low, tried.draft_acceptance)
    return constants.model_copy(update={"draft_acceptance": round((low + high) / 2, 3)})
