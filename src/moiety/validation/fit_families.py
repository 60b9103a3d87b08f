"""The constants of the serving law, fitted for all families of devices together.

Each family has constants of its own, drawn to what the families have in common: what the rows of one do not tell, those
of another do, and a family without rows has what is common to the others.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from moiety.validation.fit_law import OF_TTFT, Law, Rows, dependence, names, prior
from moiety.validation.least_squares import minimise, robust

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from numpy.typing import NDArray

Logs = dict[int, "NDArray[np.float64]"]
"""Logarithms of the constants of each family, in the order of `fit_law.names`."""
_TPOT_SCALE, _TTFT_SCALE, _TTFT_WEIGHT, _PRIOR_WEIGHT = 0.15, 0.25, 0.6, 0.3
_OWN_SHARE = 0.7
"""How far a family may move from what is common, as a share of how far that may move from what is expected."""
_SWEEPS = 3
"""How often the families and what they have in common are fitted in turn."""


@dataclass(frozen=True, slots=True)
class _Stage:
    """A part of the fit: the free constants, the latencies that count, and an error of predicted / measured."""

    free: NDArray[np.bool_]
    latencies: tuple[str, ...]
    error: Callable[[NDArray[np.float64]], NDArray[np.float64]]
    rounds: int


def fit_families(tables: Mapping[int, Rows], num_families: int) -> Logs:
    """Return the logarithms of the constants of each family, {family: [constants]}: TPOT, then TTFT, then both.

    The first two look for the logarithm of the ratio, which leads from afar; the last for the relative error.
    """
    centre, width = prior()
    of_ttft = np.array([name.rpartition(".")[2] in OF_TTFT for name in names()])
    stages = (
        _Stage(~of_ttft, ("tpot",), np.log, 6),
        _Stage(of_ttft, ("ttft",), np.log, 6),
        _Stage(np.ones_like(of_ttft), ("tpot", "ttft"), lambda ratio: ratio - 1, 7),
    )
    laws = {family: Law(table) for family, table in tables.items()}
    fitted, common = {family: centre.copy() for family in tables}, centre
    for stage in stages:
        for _ in range(_SWEEPS):
            for family, table in tables.items():
                logs, free = fitted[family], stage.free
                pull = _Residuals(laws[family], table, logs, stage, common[free], (_OWN_SHARE * width)[free])
                fitted[family][free] = minimise(pull, logs[free], rounds=stage.rounds, depends=pull.depends())
            common = _common(list(fitted.values()), centre, width)
    return {family: fitted.get(family, common) for family in range(num_families)}


def _common(
    families: Sequence[NDArray[np.float64]], centre: NDArray[np.float64], width: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Return the logarithms that leave least cost where families are drawn to them, and they to `centre`."""
    expected, own = 1 / width**2, 1 / (_OWN_SHARE * width) ** 2
    return (centre * expected + sum(families) * own) / (expected + len(families) * own)


@dataclass(frozen=True, slots=True)
class _Residuals:
    """What `minimise` squares: the free constants' distance from their centre, and the errors of some latencies."""

    law: Law
    table: Rows
    logs: NDArray[np.float64]
    stage: _Stage
    centre: NDArray[np.float64]
    width: NDArray[np.float64]

    def __call__(self, chosen: NDArray[np.float64]) -> NDArray[np.float64]:
        logs, error = self.logs.copy(), self.stage.error
        logs[self.stage.free] = chosen
        period, first = self.law.predict(logs)
        parts = [_PRIOR_WEIGHT * (chosen - self.centre) / self.width]
        if "tpot" in self.stage.latencies:
            parts.append(robust(np.nan_to_num(error(period / self.table.tpot_s)), _TPOT_SCALE))
        if "ttft" in self.stage.latencies:
            parts.append(_TTFT_WEIGHT * robust(np.nan_to_num(error(first / self.table.ttft_s)), _TTFT_SCALE))
        return np.concatenate(parts)

    def depends(self) -> NDArray[np.bool_]:
        """Return which free constants each term depends on [terms, free constants]."""
        of_rows = dependence(self.table)[:, self.stage.free]
        return np.concatenate([np.eye(len(self.centre), dtype=np.bool_), *(of_rows for _ in self.stage.latencies)])
