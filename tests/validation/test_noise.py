"""What repeats of a measurement leave to a law without error."""

from __future__ import annotations

import math
import random

import pytest

from moiety.validation.compare import Compared, compare_rows
from moiety.validation.facts import catalog_facts
from moiety.validation.noise import attainable_spearman, repeat_spread


def test_values_far_apart_keep_their_order_and_values_alike_have_none() -> None:
    far, near = [2.0**power for power in range(8)], [1 + 1e-4 * step for step in range(8)]
    assert attainable_spearman([far], 0.01) == 1
    assert abs(attainable_spearman([near] * 50, 0.5) or 1) < 0.2
    assert attainable_spearman([[1.0, 1.0, 1.0, 1.0]], 0.1) is None


def test_the_spread_of_repeats_is_found_again() -> None:
    first = next(each for each in compare_rows(catalog_facts().rows[:5]) if each.case is not None)
    draws = random.Random(1)  # noqa: S311 - a simulation, no secret
    rows = [
        Compared(
            id=f"{load}-{again}",
            line=0,
            group={"model": str(load)},
            measured={"tpot_ms": 10 * load * math.exp(draws.gauss(0, 0.05))},
            case=first.case,
        )
        for load in range(1, 200)
        for again in range(3)
    ]
    assert repeat_spread(rows, "tpot_ms") == pytest.approx(0.05, rel=0.15)
    assert repeat_spread(rows[:6], "tpot_ms") is None
    assert repeat_spread(rows[::3], "tpot_ms") is None
