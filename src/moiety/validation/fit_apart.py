"""What deployments add that compute prompts apart: the constants of their time to first token from measured runs.

Given the serving constants of the catalogue, which say what steps take. One set for all devices and releases, fitted to
the logarithms of the times' ratios.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from moiety.calibration.serving import PREFILL_APART, PrefillApart, ServingConstants
from moiety.validation.fit_serving import HELD_OUT, held_out
from moiety.validation.fitting import Fitting, Split, every_fold, rounded_fields
from moiety.validation.least_squares import minimise, robust
from moiety.validation.predict import ServingPredictor
from moiety.validation.serving_case import serving_case
from moiety.validation.serving_row import ServingRow
from moiety.validation.skipped import SkippedRow

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from moiety.projection.serving_apart import ApartParts
    from moiety.validation.system_row import SystemRow

_CONSTANTS = ("handover_overhead_s", "group_overhead_s", "handshake_rounds", "concurrency_overhead_s")
_SCALE, _PRIOR_WEIGHT, _ROUNDS = 0.3, 0.3, 25


@dataclass(frozen=True, slots=True)
class TimedApart:
    """A run with prefill apart beside its time to first token."""

    row: ServingRow
    parts: ApartParts
    ttft_s: float


def timed_apart(rows: Sequence[ServingRow | SystemRow]) -> list[TimedApart]:
    """Return the rows with prefill apart that can be predicted and whose time to first token was measured."""
    predictor, found = ServingPredictor(), list[TimedApart]()
    for row in rows:
        if not isinstance(row, ServingRow) or row.measured.ttft_ms is None:
            continue
        try:
            case = serving_case(row)
        except SkippedRow:
            continue
        if not case.disaggregated:
            continue
        found.append(TimedApart(row, predictor.apart_parts(case), row.measured.ttft_ms / 1e3))
    return found


def fit_apart(runs: Sequence[TimedApart]) -> PrefillApart:
    """Return the constants under which the predicted times are nearest to the measured ones."""
    centre = _logs(PREFILL_APART)
    measured = np.array([each.ttft_s for each in runs])

    def residuals(logs: NDArray[np.float64]) -> NDArray[np.float64]:
        constants = _constants(logs)
        errors = np.log(np.array([each.parts.ttft_s(constants) for each in runs]) / measured)
        return np.concatenate([robust(errors, _SCALE), _PRIOR_WEIGHT * (logs - centre)])

    fitted = _constants(minimise(residuals, centre, rounds=_ROUNDS))
    sources = sorted({each.row.source.partition(" (")[0] for each in runs})
    source = f"{len(runs)} rows of {', '.join(sources)}"
    return rounded_fields(fitted.model_copy(update={"basis": "fitted", "source": source}))


def _logs(constants: PrefillApart) -> NDArray[np.float64]:
    return np.log([getattr(constants, name) for name in _CONSTANTS])


def _constants(logs: NDArray[np.float64]) -> PrefillApart:
    return PREFILL_APART.model_copy(update=dict(zip(_CONSTANTS, np.exp(logs).tolist(), strict=True)))


def _errors(constants: PrefillApart, runs: Sequence[TimedApart]) -> dict[str, list[float]]:
    return {"TTFT": [each.parts.ttft_s(constants) / each.ttft_s - 1 for each in runs]}


def _splits(_runs: Sequence[TimedApart]) -> list[Split[TimedApart]]:
    return [
        Split(HELD_OUT, (lambda each: held_out(each.row),)),
        Split("a fifth of the groups at a time", every_fold(_group)),
    ]


def _group(run: TimedApart) -> str:
    """Return what runs share that differ in load and workers only; R1 and V3 list the same runs."""
    row = run.row
    parts = (row.model.replace("R1", "V3"), row.precision, row.system, row.backend, row.backend_version)
    return "|".join(map(str, (*parts, row.isl, row.osl)))


def _rewritten(text: str, constants: PrefillApart, _runs: Sequence[TimedApart]) -> str:
    before = ServingConstants.model_validate_json(text)
    return before.model_copy(update={"apart": constants}).model_dump_json(indent=2, exclude_none=True) + "\n"


APART_FIT = Fitting("prefill-apart", timed_apart, fit_apart, _errors, _splits, _rewritten)
