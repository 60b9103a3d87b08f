"""`python -m moiety.validation.fit_collectives ROWS... --into CALIBRATION.json`: protocols of NCCL from measured rows.

Each collective on each architecture has three protocols of three constants and one exponent, fitted to the relative
errors of all sizes and groups at once, and tested on rows left out.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
from collections import Counter, defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from moiety.calibration.calibration import CollectiveProtocols, Protocol
from moiety.cost.collective_library import library_times
from moiety.files import write_all
from moiety.validation.least_squares import minimise, robust
from moiety.validation.rows import read_rows
from moiety.validation.score import error_percents, score_of
from moiety.validation.serving_case import row_cluster
from moiety.validation.skipped import SkippedRow
from moiety.validation.system_row import SystemRow
from moiety.validation.transfer_case import COLLECTIVES, row_device

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

_START_S, _STEP_S, _SHARE, _EXPONENT = (5e-6, 8e-6, 15e-6), (1e-6, 1e-6, 2e-6), (0.1, 0.5, 0.85), 0.2
"""Where the fit starts: what LL, LL128 and Simple are known for."""
_SCALE, _PRIOR_WIDTH, _PRIOR_WEIGHT, _ROUNDS = 0.1, 1.5, 0.05, 60
_STARTS = (0.0, 0.7, 1.4)
"""Logarithms that all start-up times are moved by, to begin the fit elsewhere: launches from Python take longer."""
_HELD_OUT_PERCENT = 30

_ALONE = 20
"""Rows of a collective on an architecture from which it has constants of its own; others share theirs."""

Key = tuple[str, tuple[str, ...]]
"""Architecture, and the collectives that share constants there."""


@dataclass(frozen=True, slots=True)
class Timed:
    """A measured collective inside one domain of links."""

    row: SystemRow
    architecture: str
    size_bytes: float
    bandwidth_bytes_per_s: float
    measured_us: float

    @property
    def gpus(self) -> int:
        """Members of the group."""
        return self.row.n_gpus or 1

    def predicted_us(self, known: CollectiveProtocols) -> float:
        """Return the time under some protocols."""
        times = library_times(
            known, COLLECTIVES[self.row.model], self.size_bytes, self.gpus, self.bandwidth_bytes_per_s
        )
        return 1e6 * sum(times)


def timed_rows(rows: Sequence[SystemRow]) -> list[Timed]:
    """Return the rows that name a library's collective, its bytes, its GPUs in one domain, and a time."""
    found = list[Timed]()
    for row in rows:
        size, us = row.metrics.get("bytes"), row.metrics.get("us")
        if row.kind != "comm" or row.model not in COLLECTIVES or not isinstance(size, float) or not us:
            continue
        try:
            device = row_device(row)
            cluster = row_cluster(device.name, row.n_gpus or 1)
        except SkippedRow:
            continue
        if 1 < (row.n_gpus or 1) <= cluster.tiers[0].num_gpus:
            found.append(Timed(row, device.architecture, size, cluster.bandwidth_per_gpu(0), float(us)))
    return found


def fit_all(rows: Sequence[Timed]) -> dict[Key, CollectiveProtocols]:
    """Return the protocols of every architecture and collective that was measured."""
    count = Counter((each.architecture, each.row.model) for each in rows)
    groups: dict[Key, list[Timed]] = defaultdict(list)
    for each in rows:
        alone = count[each.architecture, each.row.model] >= _ALONE
        few = tuple(sorted(name for (where, name), n in count.items() if where == each.architecture and n < _ALONE))
        groups[each.architecture, (each.row.model,) if alone else few].append(each)
    return {key: _fit(key, found) for key, found in sorted(groups.items())}


def _fit(key: Key, rows: Sequence[Timed]) -> CollectiveProtocols:
    """Return the protocols whose times are nearest to the measured ones, by the relative errors."""
    largest = max(each.gpus for each in rows)
    centre = np.array([*np.log([*_START_S, *_STEP_S, *_SHARE]), _EXPONENT])

    def residuals(constants: NDArray[np.float64]) -> NDArray[np.float64]:
        known = _protocols(key, constants, largest)
        errors = np.array([each.predicted_us(known) / each.measured_us - 1 for each in rows])
        return np.concatenate([robust(errors, _SCALE), _PRIOR_WEIGHT * (constants - centre) / _PRIOR_WIDTH])

    starts = (centre + shift * np.array([*[1.0] * 6, *[0.0] * 4]) for shift in _STARTS)
    fitted = (minimise(residuals, start, rounds=_ROUNDS) for start in starts)
    return _protocols(key, min(fitted, key=lambda each: float(np.square(residuals(each)).sum())), largest)


def _protocols(key: Key, constants: NDArray[np.float64], largest: int) -> CollectiveProtocols:
    """Return nine logarithms and an exponent as the catalogue holds them."""
    values = [float(f"{each:.5g}") for each in np.exp(constants[:9]).tolist()]
    return CollectiveProtocols(
        collectives=tuple(COLLECTIVES[name] for name in key[1]),
        architectures=(key[0],),
        largest_group=largest,
        share_exponent=float(np.clip(round(constants[9], 5), -2, 2)),
        protocols=tuple(
            Protocol(start_s=start, step_s=step, share=min(max(share, 1e-6), 1.0))
            for start, step, share in zip(values[:3], values[3:6], values[6:9], strict=True)
        ),
    )


def held_out(row: Timed) -> bool:
    """Return whether a row is kept from the fit that is tested."""
    digest = hashlib.sha256(f"{row.row.id}|{row.row.hardware}|{row.size_bytes}".encode()).hexdigest()
    return int(digest, 16) % 100 < _HELD_OUT_PERCENT


def cross_validation(rows: Sequence[Timed]) -> list[str]:
    """Return one line for each way to leave rows out: 30 % of them, each set of Hopper rows."""
    splits: list[tuple[str, Callable[[Timed], bool]]] = [(f"collectives, {_HELD_OUT_PERCENT} % of the rows", held_out)]
    hopper = [each for each in rows if each.architecture == "hopper"]
    for hardware in sorted({each.row.hardware for each in hopper}):
        splits.append((f"collectives on {hardware}", _on(hardware)))  # noqa: PERF401 - the list is typed above
    lines = list[str]()
    for name, left_out in splits:
        fitted = fit_all([each for each in rows if not left_out(each)])
        lines.append(f"{name}: {_line(fitted, [each for each in rows if left_out(each)])}")
    return lines


def _on(hardware: str) -> Callable[[Timed], bool]:
    return lambda each: each.row.hardware == hardware


def _line(fitted: dict[Key, CollectiveProtocols], rows: Sequence[Timed]) -> str:
    errors = [
        each.predicted_us(known) / each.measured_us - 1
        for each in rows
        for (architecture, names), known in fitted.items()
        if architecture == each.architecture and each.row.model in names
    ]
    score = score_of(errors)
    return "{} rows; MAPE {}, median {}, bias {}".format(score.num_rows, *error_percents(score))


def main(arguments: Sequence[str] | None = None) -> None:
    """Fit the protocols on the rows of the files named, print the errors, and write them into a calibration."""
    parser = argparse.ArgumentParser(prog="python -m moiety.validation.fit_collectives", description=main.__doc__)
    parser.add_argument("rows", nargs="+", type=Path, help="files of measured rows, JSON Lines")
    parser.add_argument("--into", type=Path, help="the calibration whose protocols are replaced")
    parser.add_argument("--cross-validate", action="store_true", help="also fit without some rows, and test on those")
    given = parser.parse_args(arguments)
    read = [read_rows(path) for path in given.rows]
    rows = timed_rows([each.row for found in read for each in found.rows if isinstance(each.row, SystemRow)])
    if given.cross_validate:
        sys.stdout.writelines(f"{line}\n" for line in cross_validation(rows))
    fitted = fit_all(rows)
    sys.stdout.write(f"collectives, fitted on: {_line(fitted, rows)}\n")
    if given.into:
        calibration = json.loads(given.into.read_text(encoding="utf-8"))
        calibration["collectives"]["protocols"] = [each.model_dump(mode="json") for each in fitted.values()]
        write_all(given.into.parent, {given.into.name: json.dumps(calibration, indent=2) + "\n"})


if __name__ == "__main__":
    main()
