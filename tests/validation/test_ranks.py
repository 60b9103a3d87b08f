"""Which groups of rows are in the wrong order, and what that costs of the rank correlation."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moiety.validation.compare import Compared
from moiety.validation.score import metric_scores, worst_ranked

ORDERS = st.dictionaries(st.sampled_from("abcdef"), st.permutations(range(6)), min_size=1)


def rows_of(orders: dict[str, list[int]]) -> list[Compared]:
    """Return groups of rows that were measured in order, and predicted in these."""
    return [
        Compared(
            id=f"{name}{place}",
            line=0,
            group={"model": name},
            measured={"tpot_ms": 10.0 + place},
            predicted={"tpot_ms": 20.0 + rank},
        )
        for name, order in orders.items()
        for place, rank in enumerate(order)
    ]


def test_the_group_that_is_farthest_from_its_order_comes_first() -> None:
    rows = rows_of({"right": [0, 1, 2, 3], "swapped": [0, 1, 3, 2], "turned": [3, 2, 1, 0], "few": [2, 1, 0]})
    first, second = worst_ranked(rows, "tpot_ms")
    assert (first.name, first.num_rows, first.spearman) == ("turned", 4, pytest.approx(-1.0))
    assert (second.name, second.spearman) == ("swapped", pytest.approx(0.8))
    assert first.share_of_missing == pytest.approx(2 / 2.2)


@given(ORDERS)
def test_shares_make_up_what_the_mean_of_all_groups_lacks(orders: dict[str, list[int]]) -> None:
    rows = rows_of(orders)
    groups, mean = worst_ranked(rows, "tpot_ms"), metric_scores(rows)["tpot_ms"].spearman
    assert mean is not None
    lacking = sum(1 - each.spearman for each in groups)
    assert lacking == pytest.approx(len(orders) * (1 - mean), abs=1e-9)
    assert sum(each.share_of_missing for each in groups) == pytest.approx(1.0 if groups else 0.0)
