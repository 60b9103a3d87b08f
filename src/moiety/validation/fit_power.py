"""The law of power from measured rows.

For each architecture, fitted to the relative errors and tested on rows left out: what active and computing SMs draw
under dense models and under mixtures, and what memory draws.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from moiety.calibration.calibration import PowerCurve
from moiety.calibration.catalog import load_calibration
from moiety.validation.fitting import Fitting, Split, each_value, every_fold
from moiety.validation.least_squares import minimise, robust
from moiety.validation.power_case import power_point
from moiety.validation.skipped import SkippedRow
from moiety.validation.system_row import SystemRow

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from moiety.calibration.calibration import DevicePower, PowerConstants
    from moiety.validation.power_case import PowerPoint
    from moiety.validation.serving_row import ServingRow

_SCALE, _ROUNDS = 0.1, 40
_START, _REACH = 0.3, 5.0
"""Of the power limit, where each of the three terms starts, and how far its logarithm may go from there.

A term whose rows all draw the limit could grow for ever, and one that they lack could vanish.
"""


@dataclass(frozen=True, slots=True)
class Powered:
    """A row, its point and what was measured."""

    row: SystemRow
    point: PowerPoint
    measured_w: float


def powered_rows(rows: Sequence[ServingRow | SystemRow]) -> list[Powered]:
    """Return the rows that state watts of a GPU and what they were drawn for."""
    found = list[Powered]()
    for row in rows:
        if isinstance(row, SystemRow) and (watts := row.metric("gpu_power_W_per_gpu")):
            try:
                found.append(Powered(row, power_point(row), watts))
            except SkippedRow:
                continue
    return found


def fitted(law: PowerConstants, rows: Sequence[Powered]) -> PowerConstants:
    """Return the law with the curves of every architecture and kind that the rows cover."""
    return law.model_copy(update={"devices": tuple(_device(law, known, rows) for known in law.devices)})


def _device(law: PowerConstants, known: DevicePower, rows: Sequence[Powered]) -> DevicePower:
    """Return the constants whose watts are nearest to the measured ones, by the relative errors."""
    own = [each for each in rows if each.point.device.architecture in known.architectures]
    if not own:
        return known

    def residuals(logs: NDArray[np.float64]) -> NDArray[np.float64]:
        constants = law.model_copy(update={"devices": (_with_watts(known, np.exp(logs)),)})
        return robust(np.array([each.point.power_w(constants) / each.measured_w - 1 for each in own]), _SCALE)

    start = np.log([_START * known.max_power_w] * 5)
    return _with_watts(known, np.exp(minimise(residuals, start, rounds=_ROUNDS, reach=_REACH)).round())


def _with_watts(known: DevicePower, watts: NDArray[np.float64]) -> DevicePower:
    """Return the constants with active and compute watts of dense models, of mixtures, and memory's of both."""
    dense, dense_compute, moe, moe_compute, memory = watts.tolist()
    curves = {
        "dense": PowerCurve(base_w=known.idle_w + dense, compute_w=dense_compute, memory_w=memory),
        "moe": PowerCurve(base_w=known.idle_w + moe, compute_w=moe_compute, memory_w=memory),
    }
    return known.model_copy(update=curves)


def power_errors(law: PowerConstants, rows: Sequence[Powered]) -> dict[str, list[float]]:
    """Return the relative errors of the rows' watts."""
    return {"power": [each.point.power_w(law) / each.measured_w - 1 for each in rows]}


def _splits(rows: Sequence[Powered]) -> list[Split[Powered]]:
    by_model = each_value(lambda each: each.row.model, rows)
    return [
        Split("a fifth of the rows at a time", every_fold(lambda each: each.row.id)),
        Split("each model in turn", tuple(by_model.values())),
    ]


def _rewritten(text: str, law: PowerConstants, rows: Sequence[Powered]) -> str:  # noqa: ARG001 - the shape of all fits
    """Return a calibration with the curves in the place of its own."""
    calibration = json.loads(text)
    calibration["power"]["devices"] = [each.model_dump(mode="json") for each in law.devices]
    return json.dumps(calibration, indent=2) + "\n"


POWER_FIT = Fitting(
    "power", powered_rows, lambda rows: fitted(load_calibration().power, rows), power_errors, _splits, _rewritten
)
