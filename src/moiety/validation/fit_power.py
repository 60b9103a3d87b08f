"""`python -m moiety.validation.fit_power ROWS... --into CALIBRATION.json`: the law of power from measured rows.

For each architecture, fitted to the relative errors and tested on rows left out: what active and computing SMs draw
under dense models and under mixtures, and what memory draws.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from moiety.calibration.calibration import PowerCurve
from moiety.calibration.catalog import load_calibration
from moiety.files import write_all
from moiety.validation.least_squares import minimise, robust
from moiety.validation.power_case import power_point
from moiety.validation.rows import read_rows
from moiety.validation.score import error_percents, score_of
from moiety.validation.serving_case import SkippedRow
from moiety.validation.system_row import SystemRow

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from moiety.calibration.calibration import DevicePower, PowerConstants
    from moiety.validation.power_case import PowerPoint

_SCALE, _ROUNDS = 0.1, 40
_START = 0.3
"""Of the power limit, where each of the three terms starts."""
_HELD_OUT_PERCENT = 30


@dataclass(frozen=True, slots=True)
class Powered:
    """A row, its point and what was measured."""

    row: SystemRow
    point: PowerPoint
    measured_w: float


def powered_rows(rows: Sequence[SystemRow]) -> list[Powered]:
    """Return the rows that state watts of a GPU and what they were drawn for."""
    found = list[Powered]()
    for row in rows:
        watts = row.metrics.get("gpu_power_W_per_gpu")
        if isinstance(watts, float) and watts > 0:
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
    return _with_watts(known, np.exp(minimise(residuals, start, rounds=_ROUNDS)).round())


def _with_watts(known: DevicePower, watts: NDArray[np.float64]) -> DevicePower:
    """Return the constants with active and compute watts of dense models, of mixtures, and memory's of both."""
    dense, dense_compute, moe, moe_compute, memory = watts.tolist()
    curves = {
        "dense": PowerCurve(base_w=known.idle_w + dense, compute_w=dense_compute, memory_w=memory),
        "moe": PowerCurve(base_w=known.idle_w + moe, compute_w=moe_compute, memory_w=memory),
    }
    return known.model_copy(update=curves)


def held_out(row: Powered) -> bool:
    """Return whether a row is kept from the fit that is tested."""
    return int(hashlib.sha256(row.row.id.encode()).hexdigest(), 16) % 100 < _HELD_OUT_PERCENT


def cross_validation(law: PowerConstants, rows: Sequence[Powered]) -> list[str]:
    """Return a line for 30 % of the rows left out, and one for every model left out in its turn."""
    kept = [each for each in rows if not held_out(each)]
    lines = [f"power, {_HELD_OUT_PERCENT} % of the rows: {_line(fitted(law, kept), [*filter(held_out, rows)])}"]
    errors = list[float]()
    for model in sorted({each.row.model for each in rows}):
        others = fitted(law, [each for each in rows if each.row.model != model])
        errors += _errors(others, [each for each in rows if each.row.model == model])
    return [*lines, f"power, each model left out in its turn: {_text(errors)}"]


def _errors(law: PowerConstants, rows: Sequence[Powered]) -> list[float]:
    return [each.point.power_w(law) / each.measured_w - 1 for each in rows]


def _line(law: PowerConstants, rows: Sequence[Powered]) -> str:
    return _text(_errors(law, rows))


def _text(errors: Sequence[float]) -> str:
    score = score_of(errors)
    return "{} rows; MAPE {}, median {}, bias {}".format(score.num_rows, *error_percents(score))


def main(arguments: Sequence[str] | None = None) -> None:
    """Fit the curves on the rows of the files named, print the errors, and write them into a calibration."""
    parser = argparse.ArgumentParser(prog="python -m moiety.validation.fit_power", description=main.__doc__)
    parser.add_argument("rows", nargs="+", type=Path, help="files of measured rows, JSON Lines")
    parser.add_argument("--into", type=Path, help="the calibration whose curves are replaced")
    parser.add_argument("--cross-validate", action="store_true", help="also fit without some rows, and test on those")
    given = parser.parse_args(arguments)
    read = [read_rows(path) for path in given.rows]
    rows = powered_rows([each.row for found in read for each in found.rows if isinstance(each.row, SystemRow)])
    law = load_calibration().power
    if given.cross_validate:
        sys.stdout.writelines(f"{line}\n" for line in cross_validation(law, rows))
    law = fitted(law, rows)
    sys.stdout.write(f"power, fitted on: {_line(law, rows)}\n")
    if given.into:
        calibration = json.loads(given.into.read_text(encoding="utf-8"))
        calibration["power"]["devices"] = [each.model_dump(mode="json") for each in law.devices]
        write_all(given.into.parent, {given.into.name: json.dumps(calibration, indent=2) + "\n"})


if __name__ == "__main__":
    main()
