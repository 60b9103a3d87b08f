"""Rows beside their predictions: what each came to, or why it could not be predicted."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from pydantic import ValidationError

from moiety.errors import InputError
from moiety.records import broken_rule
from moiety.validation.as_planned import PlanPredictor
from moiety.validation.predict import ServingPredictor
from moiety.validation.serving_case import serving_case
from moiety.validation.serving_row import NOTHING_BETWEEN, ServingRow
from moiety.validation.skipped import SkippedRow
from moiety.validation.system_case import predict_system, system_group
from moiety.validation.training_case import trained_deployment

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Mapping, Sequence

    from moiety.validation.rows import ReadRow
    from moiety.validation.serving_case import ServingCase
    from moiety.validation.system_row import SystemRow
    from moiety.validation.training_case import TrainedDeployment

_NO_SERVING = "as planned only serving rows are predicted"


@dataclass(frozen=True, slots=True)
class Compared:
    """A row's prediction beside its measurement, metric by metric; `skipped` is why there is none."""

    id: str
    line: int
    group: Mapping[str, str]
    """What rows are grouped by: model, system, backend, version, phase and so on."""
    measured: Mapping[str, float]
    predicted: Mapping[str, float] = field(default_factory=dict[str, float])
    skipped: str | None = None
    unpredicted: Mapping[str, str] = field(default_factory=dict[str, str])
    """Why a predicted row has no prediction of some of what was measured."""
    case: ServingCase | None = None
    """What a serving row describes, for what compares whole deployments."""
    trained: TrainedDeployment | None = None
    """The same of a training row."""

    @property
    def repeated(self) -> Hashable | None:
        """What rows have in common beside their group that measured one thing again; None where it is not known.

        That is all that is stated, but the release of a training framework: its law has no constants by release.
        """
        if self.trained is not None:
            return self.trained.load, self.trained.way
        case = self.case
        if case is None:
            return None
        return case.prefill, case.decode, case.input_tokens, case.output_tokens, case.concurrency

    @property
    def error(self) -> dict[str, float]:
        """Relative errors, predicted / measured - 1."""
        return {
            name: self.predicted[name] / self.measured[name] - 1 for name in self.measured if name in self.predicted
        }


def compare_rows(
    rows: Sequence[ReadRow], moved: Callable[[int, int], None] | None = None, *, as_planned: bool = False
) -> list[Compared]:
    """Return every row beside its prediction; `moved` is told (rows done, rows in all).

    With `as_planned` it is what `moiety plan` would say of a serving row's deployment; other rows are skipped.
    """
    predictor = PlanPredictor() if as_planned else ServingPredictor()
    found = list[Compared]()
    for done, each in enumerate(rows, 1):
        if isinstance(each.row, ServingRow):
            found.append(_serving(each.row, each.line, predictor))
        elif as_planned:
            found.append(
                Compared(each.row.id, each.line, system_group(each.row), _numbers(each.row), skipped=_NO_SERVING)
            )
        else:
            found.append(_system(each.row, each.line))
        if moved is not None and done % 50 == 0:
            moved(done, len(rows))
    return found


def _serving(row: ServingRow, line: int, predictor: ServingPredictor | PlanPredictor) -> Compared:
    measured, known = row.measured.model_dump(exclude_none=True), row.latencies.model_dump(exclude_none=True)
    group = {
        "model": row.model,
        "system": row.system,
        "backend": row.backend,
        "version": row.backend_version or "not stated",
        "phase": row.mode,
        "precision": row.precision or "not stated",
    }
    if not measured:
        return Compared(row.id, line, group, measured, skipped="neither ttft_ms nor tpot_ms was measured")
    if not known:
        return Compared(row.id, line, group, measured, skipped=NOTHING_BETWEEN)
    try:
        case = serving_case(row)
        latency = predictor.predict(case)
    except (SkippedRow, InputError, ValidationError) as reason:
        return Compared(row.id, line, group, measured, skipped=_why(reason))
    group["phase"] = "disagg" if case.disaggregated else "agg"
    predicted = {"ttft_ms": latency.ttft_s * 1e3, "tpot_ms": latency.tpot_s * 1e3}
    return Compared(
        row.id,
        line,
        group,
        measured,
        {name: value for name, value in predicted.items() if name in known},
        unpredicted=dict.fromkeys(measured.keys() - known.keys(), NOTHING_BETWEEN),
        case=case,
    )


def _system(row: SystemRow, line: int) -> Compared:
    measured = _numbers(row)
    group = system_group(row)
    try:
        predicted = predict_system(row)
    except (SkippedRow, InputError, ValidationError) as reason:
        return Compared(row.id, line, group, measured, skipped=_why(reason))
    if not all(0 < value < math.inf for value in predicted.values()):
        return Compared(row.id, line, group, measured, skipped="the sizes that it states come to no work")
    kept = {name: value for name, value in predicted.items() if row.metric(name)}
    if not kept:
        return Compared(row.id, line, group, measured, skipped="none of its metrics is predicted")
    trained = trained_deployment(row) if row.phase == "training" else None
    return Compared(row.id, line, group, {name: measured[name] for name in kept}, kept, trained=trained)


def _numbers(row: SystemRow) -> dict[str, float]:
    """Return what was measured in a row."""
    return {name: value for name, value in row.metrics.items() if isinstance(value, float)}


def _why(reason: Exception) -> str:
    """Return why a row has no prediction, also where what it describes breaks a rule of our own nouns."""
    if not isinstance(reason, ValidationError):
        return str(reason)
    first = broken_rule(reason)
    return f"what it states cannot be planned: {first.field or reason.title}: {first.rule}"
