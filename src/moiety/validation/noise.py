"""How far measurements repeat, and what rank correlation that leaves to a law without error."""

from __future__ import annotations

import math
import random
import statistics
from typing import TYPE_CHECKING

from moiety.validation.rank import spearman

if TYPE_CHECKING:
    from collections.abc import Hashable, Sequence

    from moiety.validation.compare import Compared

_DRAWS, _LEAST_REPEATS = 20, 10
_NORMAL = math.sqrt(math.pi / 2)
"""Standard deviation of a normal law over its mean absolute deviation."""


def repeat_spread(rows: Sequence[Compared], metric: str) -> float | None:
    """Return the standard deviation of the logarithm of a metric among repeats; None where too few were repeated.

    Repeats are rows that agree in all that is stated, load and degrees included, but not in what was measured
    (`Compared.repeated`).
    """
    groups: dict[Hashable, set[float]] = {}
    for row in rows:
        repeated = row.repeated
        if repeated is not None and metric in row.measured and metric not in row.unpredicted:
            groups.setdefault((*row.group.values(), repeated), set()).add(math.log(row.measured[metric]))
    found: list[float] = []
    for values in groups.values():
        if len(values) > 1:
            middle = statistics.median(values)
            # n deviations from a centre of their own have n - 1 degrees of freedom
            freedom = math.sqrt(len(values) / (len(values) - 1))
            found += [abs(each - middle) * freedom for each in values]
    return _NORMAL * statistics.fmean(found) if len(found) >= _LEAST_REPEATS else None


def attainable_spearman(groups: Sequence[Sequence[float]], spread: float) -> float | None:
    """Return the mean rank correlation of values with themselves measured again, in groups, over some draws.

    That is what the exact law would reach where measurements scatter by `spread`: values that lie closer together
    than that have no order to predict.
    """
    draws = random.Random(0)  # noqa: S311 - a simulation, no secret
    found: list[float] = []
    for _ in range(_DRAWS):
        for values in groups:
            again = [value * math.exp(draws.gauss(0, spread)) for value in values]
            reached = spearman(list(zip(values, again, strict=True)))
            if reached is not None:
                found.append(reached)
    return statistics.fmean(found) if found else None
